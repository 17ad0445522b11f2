"""Data set of images in memory."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from .._checks import check_device, check_int, check_one_device, check_shape, check_tensor, check_within, complaint
from .._digest import digest, raw

_OWNER = "ImageSet"


def check_row(owner: str, name: str, value: Tensor, *, remedy: str) -> None:
    """Require int64 ``[N]`` with N at least 1."""
    check_tensor(owner, name, value, (torch.int64,), remedy=remedy)
    check_shape(owner, name, value, "[N] with N >= 1", value.dim() == 1 and len(value) > 0, remedy=remedy)


@dataclass(frozen=True, eq=False, repr=False)
class ImageSet:
    """Images and labels, a tensor each, on one device.

    Images are kept as uint8, a quarter of the memory of floats; :meth:`batches` converts them.

    Attributes:
        x: images, uint8 ``[N, C, H, W]`` with N at least 1.
        y: classes of the images, int64 ``[N]`` in [0, number of classes).
        classes: names of the classes, in the order of their labels.

    Raises:
        ValueError: shapes, lengths or devices do not match or, on the CPU, a label is out of range.
        TypeError: an argument has the wrong type.

    Example:
        >>> images = ImageSet(torch.full((5, 3, 8, 8), 51, dtype=torch.uint8), torch.arange(5) % 2, ("cat", "dog"))
        >>> images
        ImageSet(x=uint8 [5, 3, 8, 8], y=int64 [5], classes=('cat', 'dog'))
        >>> [(len(x), round(x.max().item(), 4), y.tolist()) for x, y in images.batches(3)]
        [(3, 0.2, [0, 1, 0]), (2, 0.2, [1, 0])]
    """

    x: Tensor
    y: Tensor
    classes: tuple[str, ...]

    def __post_init__(self) -> None:
        check_tensor(_OWNER, "x", self.x, (torch.uint8,), remedy="Pass images with values from 0 to 255")
        remedy = "Pass one class index per image"
        check_tensor(_OWNER, "y", self.y, (torch.int64,), remedy=remedy)
        fits = self.x.dim() == 4 and 0 not in self.x.shape
        check_shape(_OWNER, "x", self.x, "[N, C, H, W] without a zero", fits, remedy="Pass at least one image")
        check_shape(_OWNER, "y", self.y, f"[{len(self.x)}]", self.y.shape == self.x.shape[:1], remedy=remedy)
        check_one_device(_OWNER, x=self.x, y=self.y)
        if not isinstance(self.classes, tuple) or not all(isinstance(name, str) for name in self.classes):
            expected = "classes to be a tuple of strings"
            raise TypeError(complaint(_OWNER, expected, repr(self.classes), "Pass the names of the classes"))
        remedy = "Name every class, and number them from 0"
        check_within(_OWNER, "labels", self.y, (0, len(self.classes) - 1), remedy=remedy)

    def __len__(self) -> int:
        return len(self.x)

    def __repr__(self) -> str:
        x, y = (f"{str(t.dtype).removeprefix('torch.')} {list(t.shape)}" for t in (self.x, self.y))
        return f"{_OWNER}(x={x}, y={y}, classes={self.classes})"

    def to(self, device: torch.device | str | int) -> ImageSet:
        """Return the same images on ``device``, sharing the tensors that are there already.

        Args:
            device: a device, its name or its number; anything else raises a ``TypeError``.
        """
        device = check_device(_OWNER, device)
        return ImageSet(self.x.to(device), self.y.to(device), self.classes)

    def subset(self, indices: Tensor) -> ImageSet:
        """Return a copy of some of the images, in the order of ``indices`` and on the device of this set.

        Args:
            indices: int64 ``[M]`` in [0, N) on any device, M at least 1.

        Raises:
            ValueError: ``indices`` is empty or not one-dimensional or, on the CPU, out of range.
            TypeError: ``indices`` is not an int64 tensor.
        """
        owner, remedy = f"{_OWNER}.subset", f"Pass some of the indices 0 to {len(self) - 1}"
        check_row(owner, "indices", indices, remedy=remedy)
        check_within(owner, "indices", indices, (0, len(self) - 1), remedy=remedy)
        indices = indices.to(self.x.device)
        return ImageSet(self.x[indices], self.y[indices], self.classes)

    def batches(self, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Iterate over pairs of images, float32 ``[size, C, H, W]`` in [0, 1], and their labels ``[size]``, in order.

        Args:
            size: images per batch, at least 1; the last batch may be smaller.
        """
        check_int(f"{_OWNER}.batches", "size", size, low=1, remedy="Pass the number of images of a batch")
        return ((x.float() / 255, y) for x, y in zip(torch.split(self.x, size), torch.split(self.y, size), strict=True))

    def fingerprint(self) -> str:
        """Return the SHA-256 of images, labels and names of the classes, as hexadecimal digits.

        Equal sets have equal fingerprints on every device. Save it with a result to identify the data.
        """
        return digest(ascii((tuple(self.x.shape), self.classes)), raw(self.x), raw(self.y))
