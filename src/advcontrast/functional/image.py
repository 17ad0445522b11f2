"""Checks of image batches, and operations on float images in [0, 1] with a parameter tensor ``[N]`` each."""

import math
from typing import Any

import torch
from torch import Tensor

from .._checks import check_int, check_shape, check_tensor, check_within, complaint


def crop_and_resize(
    x: Tensor, top: Tensor, left: Tensor, height: Tensor, width: Tensor, size: tuple[int, int], flip: Tensor
) -> Tensor:
    """Crop each image, resize it to ``size`` with antialiased bicubic interpolation, and flip some horizontally."""
    # Equals torchvision's resized_crop and hflip to 2e-6 in float32. The result may leave [0, 1] by 9/32.
    n, channels, rows, columns = x.shape
    start, extent = (torch.stack(pair).to(x.dtype) for pair in ((left, top), (width, height)))
    both = _resampling(start, extent, (columns, rows), (size[1], size[0]))
    across, down = both[0, :, : size[1], :columns], both[1, :, : size[0], :rows]
    across = torch.where(flip[:, None, None], across.flip(1), across)
    narrow = x.reshape(n, channels * rows, columns) @ across.mT
    return down[:, None] @ narrow.view(n, channels, rows, size[1])


def _resampling(start: Tensor, extent: Tensor, length: tuple[int, int], out: tuple[int, int]) -> Tensor:
    """Return ``[2, N, max(out), max(length)]``: matrices to resample ``extent`` pixels from ``start`` on to ``out``."""
    # Both axes have one size, so that an accelerator launches each operation once; the shorter uses a part of its own.
    ratio = torch.stack([pixels / size for pixels, size in zip(extent, out, strict=True)])[:, :, None]
    start, extent = start[:, :, None], extent[:, :, None]
    # Antialiasing: the kernel grows where the image shrinks.
    scale = ratio.clamp_min(1)
    centre = ratio * torch.arange(0.5, max(out), dtype=start.dtype, device=start.device) - 0.5
    # Weights of the pixels that the kernel can reach, 0 for pixels outside the crop. Pixels count from its start.
    shrinking = max(pixels / size for pixels, size in zip(length, out, strict=True))
    reach = min(max(length), math.ceil(4 * max(1, shrinking)))
    first = (centre - 2 * scale).floor_().add_(1).clamp_(-start, max(length) - reach - start)
    source = first[..., None] + torch.arange(reach, device=start.device)
    distance = (source - centre[..., None]).div_(scale[..., None]).abs_()
    weights = _bicubic(distance).masked_fill_((source < 0) | (source >= extent[..., None]), 0)
    weights /= weights.sum(3, keepdim=True)
    index = (source + start[..., None]).long()
    return weights.new_zeros(*start.shape[:2], max(out), max(length)).scatter_(3, index, weights)


def _bicubic(x: Tensor) -> Tensor:
    """Return twice Keys' cubic convolution kernel with a = -1/2 at the distances ``x >= 0``."""
    # Two pieces that are 0, with their slopes, at the distances 2 and 1.
    outer = torch.rsub(x, 2).clamp_min_(0)
    beyond = outer - 1
    inner = beyond.clamp_min(0)
    return outer.square_().mul_(beyond).add_(torch.rsub(inner, 2, alpha=4).mul_(inner.square_()))


def luma(x: Tensor) -> Tensor:
    """Return the brightness of each pixel of gray or RGB images ``[N, C, H, W]`` as ``[N, 1, H, W]``."""
    if x.shape[1] == 1:
        return x
    red, green, blue = x.unbind(1)
    return (0.2989 * red).add_(green, alpha=0.587).add_(blue, alpha=0.114)[:, None]


def adjust(x: Tensor, own: Tensor, mean: Tensor, gray: Tensor) -> Tensor:
    """Return a weighted sum of each image, the mean of its luma and its luma, clamped to [0, 1]."""
    # A factor f of brightness has the weights f, 0, 0; of contrast f, 1 - f, 0; of saturation f, 0, 1 - f.
    own, mean, gray = (weight.view(-1, 1, 1, 1) for weight in (own, mean, gray))
    brightness = luma(x)
    rest = torch.addcmul(brightness.mean((2, 3), keepdim=True) * mean, brightness, gray)
    return torch.addcmul(rest, own, x).clamp_(0, 1)


def rotate_hue(x: Tensor, shift: Tensor) -> Tensor:
    """Rotate the hue of RGB images by a fraction of a full turn in [-0.5, 0.5]; keep saturation and value."""
    red, green, blue = x.unbind(1)
    value, smallest = x.amax(1), x.amin(1)
    chroma = value - smallest
    # Hue as an angle from green, in sixths of a turn, in [-3, 3].
    angle = (red - smallest).add_(blue - smallest).add_(value - green).copysign_(blue - red)
    angle = angle / chroma.clamp_min(torch.finfo(x.dtype).tiny)
    # Distances of red, green and blue from the rotated hue: at most one turn.
    to_primary = torch.arange(2, -4, -2, device=x.device, dtype=x.dtype)
    turn = (6 * shift[:, None] + to_primary + 3).remainder_(6).sub_(3)
    distance = (angle[:, None] + turn[:, :, None, None]).abs_()
    # A channel has its full value within a sixth of a turn, and no chroma beyond two.
    missing = distance.sub_(3).abs_().sub_(2).clamp_(-1, 0)
    return torch.addcmul(value[:, None], chroma[:, None], missing)


def unit_range(owner: str, x: Tensor, *, overshoot: float = 0.0) -> Tensor:
    """Check images and return them as floats in [0, 1], clamped if they may leave it by ``overshoot``."""
    check_images(owner, x, overshoot=overshoot)
    return as_floats(x).clamp(0, 1) if overshoot else as_floats(x)


def check_images(owner: str, x: Tensor, *, overshoot: float = 0.0) -> None:
    """Require gray or RGB images ``[N, C, H, W]``: uint8, or float32 or float64 within ``overshoot`` of [0, 1]."""
    remedy = "Convert with torchvision.transforms.functional.pil_to_tensor, and stack to a batch"
    check_tensor(owner, "x", x, (torch.uint8, torch.float32, torch.float64), remedy=remedy)
    fits = x.dim() == 4 and x.shape[1] in (1, 3) and 0 not in x.shape[2:]
    check_shape(owner, "x", x, "[N, C, H, W] with C = 1 or 3", fits, remedy="Pass a batch of gray or RGB images")
    if x.is_floating_point():
        remedy = "Pass uint8, or divide by 255; normalise inside the model"
        check_within(owner, "x", x, (0.0 - overshoot, 1.0 + overshoot), remedy=remedy)


def as_floats(x: Tensor) -> Tensor:
    """Return uint8 images divided by 255 as float32, and floating-point images unchanged."""
    return x.float().div_(255) if x.dtype == torch.uint8 else x


def height_width(owner: str, size: Any) -> tuple[int, int]:
    """Return a size, one number or (height, width), as the latter."""
    remedy = "Pass the side in pixels, or (height, width)"
    if isinstance(size, tuple) and len(size) != 2:
        raise ValueError(complaint(owner, "size to be an int or (height, width)", repr(size), remedy))
    height, width = size if isinstance(size, tuple) else (size, size)
    check_int(owner, "size", height, low=1, remedy=remedy)
    check_int(owner, "size", width, low=1, remedy=remedy)
    return height, width
