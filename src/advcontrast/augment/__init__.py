"""Random views of images, a batch at a time, every image with its own randomness."""

from .crop_flip import CropFlip as CropFlip
from .pair import ContrastivePairAugment as ContrastivePairAugment
from .simclr import SimCLRAugment as SimCLRAugment
from .simclr import ViewParameters as ViewParameters

__all__ = ["ContrastivePairAugment", "CropFlip", "SimCLRAugment", "ViewParameters"]
