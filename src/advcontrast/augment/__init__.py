"""Random views of images, a batch at a time, every image with its own randomness; and corruptions."""

from .corruptions import CORRUPTIONS as CORRUPTIONS
from .corruptions import Corruption as Corruption
from .crop_flip import CropFlip as CropFlip
from .pair import ContrastivePairAugment as ContrastivePairAugment
from .replay import Replay as Replay
from .simclr import SimCLRAugment as SimCLRAugment
from .simclr import ViewParameters as ViewParameters

__all__ = [
    "CORRUPTIONS",
    "ContrastivePairAugment",
    "Corruption",
    "CropFlip",
    "Replay",
    "SimCLRAugment",
    "ViewParameters",
]
