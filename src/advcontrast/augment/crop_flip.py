"""The augmentation of supervised training on CIFAR."""

import torch
from torch import Tensor
from torch.nn import functional as F

from .._checks import check_int, check_real, source_device
from .._transfer import to_device
from ..functional.image import as_floats, check_images

_OWNER = "CropFlip"


class CropFlip:
    """Shift every image of a batch at random by zero padding and a crop of the original size, and flip some.

    Randomness is drawn on the CPU, or on the device of the generator.

    Args:
        padding: width of the black border in pixels, at least 0: the largest shift.
        flip: probability of a horizontal flip, in [0, 1].

    Raises:
        ValueError: a number is out of range.
        TypeError: an argument has the wrong type.

    Example:
        >>> CropFlip(padding=0, flip=1.0)(torch.tensor([[[[0.0, 0.25, 0.5]]]])).tolist()
        [[[[0.5, 0.25, 0.0]]]]
    """

    def __init__(self, padding: int = 4, *, flip: float = 0.5) -> None:
        check_int(_OWNER, "padding", padding, low=0, remedy="4 is usual for 32 x 32 pixels")
        check_real(_OWNER, "flip", flip, low=0, high=1, remedy="0.5 is usual")
        self.padding, self.flip = padding, flip

    def __repr__(self) -> str:
        return f"{_OWNER}({self.padding}, flip={self.flip})"

    def __call__(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Return a random version of every image, of the same size; all else as in :meth:`SimCLRAugment.__call__`."""
        check_images(_OWNER, x)
        device = source_device(_OWNER, generator)
        n, channels, height, width = x.shape
        uniform = to_device(torch.rand(n, 3, generator=generator, device=device), x.device)
        top, left = (uniform[:, :2] * (2 * self.padding + 1)).long().unbind(1)
        rows = top[:, None] + torch.arange(height, device=x.device)
        columns = torch.arange(width, device=x.device)
        columns = left[:, None] + torch.where(uniform[:, 2:] < self.flip, width - 1 - columns, columns)
        padded = F.pad(x, [self.padding] * 4)
        # Gathering bytes, before the conversion to floats, moves a quarter of the data.
        pixel = (rows[:, :, None] * padded.shape[3] + columns[:, None, :]).view(n, 1, height * width)
        cut = padded.flatten(2).gather(2, pixel.expand(-1, channels, -1)).view(x.shape)
        channels_last = x.is_contiguous(memory_format=torch.channels_last)
        layout = torch.channels_last if channels_last else torch.contiguous_format
        return as_floats(cut).contiguous(memory_format=layout)
