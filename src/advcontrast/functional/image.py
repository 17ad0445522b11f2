"""Image operations on batches in which every sample has parameters of its own. Images are floating point, in [0, 1]."""

from __future__ import annotations

import torch
from torch import Tensor

_LUMA = (0.2989, 0.587, 0.114)


def crop_and_resize(
    x: Tensor, top: Tensor, left: Tensor, height: Tensor, width: Tensor, size: tuple[int, int], flip: Tensor
) -> Tensor:
    """Cut a rectangle out of each image, resize it with antialiased bicubic interpolation, and mirror some.

    Equals ``torchvision.transforms.functional.resized_crop`` followed by ``hflip`` to 2e-6 in float32. Bicubic
    interpolation overshoots: the result may leave [0, 1] by 9/32.

    Args:
        x: images ``[N, C, H, W]``.
        top: first row of each rectangle, ``[N]``.
        left: first column of each rectangle, ``[N]``.
        height: rows of each rectangle, ``[N]``, at least 1.
        width: columns of each rectangle, ``[N]``, at least 1.
        size: height and width of the result.
        flip: which results to mirror left to right, ``[N]``, bool.

    Returns:
        Images ``[N, C, *size]``.
    """
    rows = _resampling(top, height, x.shape[2], size[0], torch.zeros_like(flip), x.dtype)
    columns = _resampling(left, width, x.shape[3], size[1], flip, x.dtype)
    return rows[:, None] @ (x @ columns[:, None].mT)


def _resampling(start: Tensor, extent: Tensor, length: int, out: int, mirror: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the matrices ``[N, out, length]`` that resample ``extent`` pixels from ``start`` on to ``out`` pixels."""
    steps = torch.arange(out, device=start.device)
    target = torch.where(mirror[:, None], out - 1 - steps, steps).to(dtype)
    ratio = (extent.to(dtype) / out)[:, None]
    centre = ratio * (target + 0.5)
    source = torch.arange(length, device=start.device) - start[:, None]
    # When the image shrinks, the kernel grows with it: that is what antialiasing means here.
    distance = (source[:, None].to(dtype) + 0.5 - centre[:, :, None]) / ratio.clamp_min(1)[:, :, None]
    inside = (source >= 0) & (source < extent[:, None])
    weights = _bicubic(distance.abs()) * inside[:, None]
    return weights / weights.sum(2, keepdim=True)


def _bicubic(x: Tensor) -> Tensor:
    """Return Keys' cubic convolution kernel with a = -1/2 at the distances ``x >= 0``."""
    near = (1.5 * x - 2.5) * x * x + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    return torch.where(x < 1, near, torch.where(x < 2, far, 0))


def luma(x: Tensor) -> Tensor:
    """Return the brightness of each pixel of gray or RGB images ``[N, C, H, W]`` as ``[N, 1, H, W]``."""
    if x.shape[1] == 1:
        return x
    red, green, blue = x.unbind(1)
    return (_LUMA[0] * red + _LUMA[1] * green + _LUMA[2] * blue)[:, None]


def blend(x: Tensor, base: Tensor, factor: Tensor) -> Tensor:
    """Return ``factor * x + (1 - factor) * base``, clamped to [0, 1]; a factor of one changes nothing.

    Brightness is a blend with black, contrast with the mean of the luma, saturation with the luma itself.

    Args:
        x: images ``[N, C, H, W]``.
        base: what to blend them with, broadcastable to ``x``.
        factor: one number an image, ``[N]``, at least 0.

    Returns:
        Images like ``x``.
    """
    factor = factor.view(-1, 1, 1, 1)
    return (factor * x + (1 - factor) * base).clamp(0, 1)


def rotate_hue(x: Tensor, shift: Tensor) -> Tensor:
    """Turn the hue of RGB images, keeping the saturation and value of the HSV model.

    Args:
        x: images ``[N, 3, H, W]``.
        shift: fraction of a full turn for each image, ``[N]``, in [-0.5, 0.5].

    Returns:
        Images like ``x``.
    """
    red, green, blue = x.unbind(1)
    value, smallest = x.amax(1), x.amin(1)
    chroma = value - smallest
    unit = chroma.masked_fill(chroma == 0, 1)
    # Six sectors; the branch is that of the largest channel.
    from_red = (green - blue) / unit
    from_green = 2 + (blue - red) / unit
    from_blue = 4 + (red - green) / unit
    hue = torch.where(value == red, from_red, torch.where(value == green, from_green, from_blue))
    hue = hue + 6 * shift.view(-1, 1, 1)

    def channel(offset: int) -> Tensor:
        sector = (hue + offset) % 6
        return value - chroma * torch.minimum(sector, 4 - sector).clamp(0, 1)

    return torch.stack([channel(5), channel(3), channel(1)], 1)
