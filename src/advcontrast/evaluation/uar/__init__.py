"""Accuracy under unforeseen attacks (UAR), with its attacks and their transforms."""

from .elastic import ElasticAttack as ElasticAttack
from .elastic import warp as warp
from .frank_wolfe import FrankWolfeAttack as FrankWolfeAttack
from .jpeg import JPEGAttack as JPEGAttack
from .jpeg import jpeg_decode as jpeg_decode
from .jpeg import jpeg_encode as jpeg_encode
from .score import CALIBRATIONS as CALIBRATIONS
from .score import UAR as UAR
from .score import Calibration as Calibration
from .score import calibrated_attacks as calibrated_attacks
from .score import uar as uar

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
