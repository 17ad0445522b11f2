"""Random views of batches of images, with separate randomness for every image, and common corruptions."""

from .corruptions import CORRUPTIONS, Corruption
from .crop_flip import CropFlip
from .multi_view import MultiView
from .pair import ContrastivePairAugment
from .replay import Replay
from .simclr import SimCLRAugment, ViewParameters

__all__ = [
    "CORRUPTIONS",
    "ContrastivePairAugment",
    "Corruption",
    "CropFlip",
    "MultiView",
    "Replay",
    "SimCLRAugment",
    "ViewParameters",
]
