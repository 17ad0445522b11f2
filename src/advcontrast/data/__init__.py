"""Data sets as one tensor, how to split them, and folders that are larger than memory."""

from .cifar import cifar10 as cifar10
from .cifar import cifar100 as cifar100
from .cifar_c import CIFAR10_C as CIFAR10_C
from .cifar_c import CIFAR10_C_MAIN as CIFAR10_C_MAIN
from .cifar_c import cifar10_c as cifar10_c
from .decoding import UnreadableImageError as UnreadableImageError
from .folder import image_folder as image_folder
from .images import ImageSet as ImageSet
from .splits import interleave as interleave
from .splits import labelled_subset as labelled_subset
from .splits import train_validation_split as train_validation_split
from .stream import ImageStream as ImageStream

__all__ = [
    "CIFAR10_C",
    "CIFAR10_C_MAIN",
    "ImageSet",
    "ImageStream",
    "UnreadableImageError",
    "cifar10",
    "cifar10_c",
    "cifar100",
    "image_folder",
    "interleave",
    "labelled_subset",
    "train_validation_split",
]
