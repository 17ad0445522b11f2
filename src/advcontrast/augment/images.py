"""Checks and conversions of the image batches of augmentations."""

from typing import Any

import torch
from torch import Tensor

from .._checks import check_int, check_tensor, check_within, complaint


def unit_range(owner: str, x: Tensor, *, overshoot: float = 0.0) -> Tensor:
    """Check images and return them as floats in [0, 1], clamped if they may leave it by ``overshoot``."""
    check_images(owner, x, overshoot=overshoot)
    return as_floats(x).clamp(0, 1) if overshoot else as_floats(x)


def check_images(owner: str, x: Tensor, *, overshoot: float = 0.0) -> None:
    """Require gray or RGB images ``[N, C, H, W]``: uint8, or float32 or float64 within ``overshoot`` of [0, 1]."""
    remedy = "Convert with torchvision.transforms.functional.pil_to_tensor, and stack to a batch"
    check_tensor(owner, "x", x, (torch.uint8, torch.float32, torch.float64), remedy=remedy)
    if x.dim() != 4 or x.shape[1] not in (1, 3) or 0 in x.shape[2:]:
        expected = "x of shape [N, C, H, W] with C = 1 or 3"
        raise ValueError(complaint(owner, expected, f"{list(x.shape)}", "Pass a batch of gray or RGB images"))
    if x.is_floating_point():
        remedy = "Pass uint8, or divide by 255; normalise inside the model"
        check_within(owner, "x", x, (0.0 - overshoot, 1.0 + overshoot), remedy=remedy)


def as_floats(x: Tensor) -> Tensor:
    """Return uint8 images divided by 255 as float32, and floating ones as they are."""
    return x.float().div_(255) if x.dtype == torch.uint8 else x


def to_device(x: Tensor, device: torch.device) -> Tensor:
    """Copy a tensor of the host to the device without waiting, through pinned memory for a GPU."""
    return (x.pin_memory() if device.type == "cuda" and x.device.type == "cpu" else x).to(device, non_blocking=True)


def height_width(owner: str, size: Any) -> tuple[int, int]:
    """Return a size, one number or (height, width), as the latter."""
    remedy = "Pass the side in pixels, or (height, width)"
    if isinstance(size, tuple) and len(size) != 2:
        raise ValueError(complaint(owner, "size to be an int or (height, width)", repr(size), remedy))
    height, width = size if isinstance(size, tuple) else (size, size)
    check_int(owner, "size", height, low=1, remedy=remedy)
    check_int(owner, "size", width, low=1, remedy=remedy)
    return height, width
