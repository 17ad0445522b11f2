"""What the blocks and networks of this package require of their arguments."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .._checks import check_int, check_tensor, complaint


def check_block(owner: str, channels: Any, width: Any, stride: Any) -> None:
    """Require the settings that all blocks share."""
    check_int(owner, "channels", channels, low=1, remedy="Pass the number of channels of the input")
    check_int(owner, "width", width, low=1, remedy="Pass the number of channels of the convolutions")
    check_int(owner, "stride", stride, low=1, remedy="1 keeps the size, 2 halves it")


def check_maps(owner: str, x: Any, first: nn.Module) -> None:
    """Require feature maps that the first convolution of a block or network takes."""
    check_tensor(owner, "x", x, remedy="Convert images to floating point in [0, 1]")
    channels = getattr(first, "in_channels", "C")
    if x.dim() != 4 or channels not in ("C", x.shape[1]) or not x.shape[2] * x.shape[3]:
        expected = f"x of shape [N, {channels}, H, W] with at least one pixel"
        raise ValueError(complaint(owner, expected, f"{list(x.shape)}", "Pass a batch of images"))
    weight = getattr(first, "weight", None)
    # Autocast, and what shards or quantises weights, converts on its own.
    kind = x.device.type
    autocast = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
    plain = type(weight) is nn.Parameter and not autocast
    if plain and isinstance(weight, Tensor) and weight.dtype != x.dtype:
        got, remedy = f"{x.dtype}", "Convert the images or the network"
        raise TypeError(complaint(owner, f"x in the dtype of the weights, {weight.dtype}", got, remedy))
