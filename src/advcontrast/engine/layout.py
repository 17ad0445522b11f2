"""The memory layout in which to train."""

from __future__ import annotations

import torch
from torch import nn


def lay_out(module: nn.Module) -> torch.memory_format:
    """Give the weights the layout in which to train, channels last where that is possible and safe, and return it."""
    possible = all(parameter.dim() <= 4 for parameter in module.parameters())
    layout = torch.channels_last if possible and _is_safe(module) else torch.contiguous_format
    module.to(memory_format=layout)
    return layout


def _is_safe(module: nn.Module) -> bool:
    """Tell whether channels last is safe, which on a CPU it is not for all networks.

    In that layout, with several threads and batches of an odd size, PyTorch (2.10 to 2.15 at least) writes beyond its
    memory when it computes the weight gradient of a 1x1 convolution of a stride and less than 16 channels.
    """
    return not any(
        isinstance(part, nn.Conv2d)
        and part.kernel_size == (1, 1)
        and part.stride != (1, 1)
        and part.in_channels < 16
        and part.weight.device.type == "cpu"
        for part in module.modules()
    )
