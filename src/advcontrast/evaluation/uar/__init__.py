"""Accuracy under unforeseen attacks (UAR), with its attacks and their transforms."""

from .elastic import ElasticAttack, warp
from .frank_wolfe import FrankWolfeAttack
from .jpeg import JPEGAttack, jpeg_decode, jpeg_encode
from .score import CALIBRATIONS, UAR, Calibration, calibrated_attacks, uar

__all__ = [
    "CALIBRATIONS",
    "UAR",
    "Calibration",
    "ElasticAttack",
    "FrankWolfeAttack",
    "JPEGAttack",
    "calibrated_attacks",
    "jpeg_decode",
    "jpeg_encode",
    "uar",
    "warp",
]
