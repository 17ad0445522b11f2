"""Data sets held in one tensor, their splits, and folders of images that are larger than memory."""

from .. import _deprecated
from .cifar import cifar10, cifar100
from .cifar_c import CIFAR10_C, CIFAR10_C_MAIN, cifar10_c
from .decoding import UnreadableImageError
from .folder import image_folder
from .images import ImageSet
from .splits import interleave, labelled_subset, train_validation_split
from .stream import ImageStream

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

_deprecated.serve_old_names(__name__)
