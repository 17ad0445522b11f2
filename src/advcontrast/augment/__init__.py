"""Random views of images, a batch at a time, every image with its own randomness."""

from .pair import ContrastivePairAugment as ContrastivePairAugment
from .simclr import SimCLRAugment as SimCLRAugment
from .simclr import ViewParameters as ViewParameters

__all__ = ["ContrastivePairAugment", "SimCLRAugment", "ViewParameters"]
