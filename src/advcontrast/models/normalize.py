"""Normalisation as a layer, so that attacks see raw images."""

from collections.abc import Sequence
from typing import TypeAlias

import torch
from torch import Tensor, nn

from .._checks import check_real, check_tensor, check_type, complaint

Statistics: TypeAlias = tuple[Sequence[float], Sequence[float]]

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
IMAGENET: Statistics = (IMAGENET_MEAN, IMAGENET_STD)


class Normalize(nn.Module):
    """Subtract a mean from every channel and divide by a standard deviation.

    Make it the first layer of the network: images are then in [0, 1] everywhere else, and the radius of an attack is in
    units of pixels. The constants move with the network but are not in its state dict.

    Args:
        mean: one number per channel, in units of the images; by default the mean of ImageNet.
        std: one positive number per channel; by default the standard deviation of ImageNet.

    Raises:
        ValueError: the lengths differ or are 0, a number is not finite, or a standard deviation is not positive.
        TypeError: an argument has the wrong type.

    Example:
        >>> Normalize(mean=(0.5,), std=(0.25,))(torch.ones(1, 1, 1, 1)).item()
        2.0
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float] = IMAGENET_MEAN, std: Sequence[float] = IMAGENET_STD) -> None:
        remedy = "Pass one number per channel"
        for name, values in (("mean", mean), ("std", std)):
            check_type("Normalize", name, values, (tuple, list), remedy=remedy)
        if len(mean) != len(std) or not mean:
            got = f"{len(mean)} and {len(std)} numbers"
            raise ValueError(complaint("Normalize", "mean and std to have the same length >= 1", got, remedy))
        for value in mean:
            check_real("Normalize", "each of mean", value, remedy=remedy)
        for value in std:
            check_real("Normalize", "each of std", value, low=0, above=True, remedy=remedy)
        super().__init__()
        self.values = tuple(map(float, mean)), tuple(map(float, std))
        self.register_buffer("mean", torch.tensor(self.values[0]).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(self.values[1]).view(-1, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return the normalised images, in the dtype and memory format of ``x``.

        Args:
            x: images ``[N, C, H, W]``, floating point, normally in [0, 1].

        Raises:
            ValueError: ``x`` has another number of channels or dimensions.
            TypeError: ``x`` is not a floating-point tensor.
        """
        check_tensor("Normalize", "x", x, remedy="Convert images to floating point in [0, 1]")
        if x.dim() != 4 or x.shape[1] != len(self.mean):
            expected, remedy = f"x of shape [N, {len(self.mean)}, H, W]", "Pass mean and std of each channel of x"
            raise ValueError(complaint("Normalize", expected, f"{list(x.shape)}", remedy))
        return (x - self.mean.to(x.dtype)) / self.std.to(x.dtype)

    def extra_repr(self) -> str:
        """Show the settings as they were passed."""
        return f"mean={self.values[0]}, std={self.values[1]}"


def input_layer(owner: str, normalize: Statistics | None, in_channels: int) -> nn.Module:
    """Return the first layer of a network: a :class:`Normalize`, or an identity for ``None``."""
    if normalize is None:
        return nn.Identity()
    remedy = "Pass (mean, std), or None to leave it out"
    check_type(owner, "normalize", normalize, tuple, remedy=remedy)
    if len(normalize) != 2:
        raise ValueError(complaint(owner, "normalize to have two items", str(len(normalize)), remedy))
    layer = Normalize(*normalize)
    if len(layer.mean) != in_channels:
        got = f"{len(layer.mean)} numbers"
        raise ValueError(complaint(owner, f"normalize for in_channels={in_channels}", got, remedy))
    return layer
