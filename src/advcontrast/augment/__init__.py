"""Random views of images, a batch at a time, every image with its own randomness; and corruptions."""

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
