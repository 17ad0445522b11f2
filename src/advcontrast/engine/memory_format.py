"""The memory format in which to train."""

from __future__ import annotations

import torch
from torch import nn


def choose_memory_format(module: nn.Module) -> torch.memory_format:
    """Put the weights into channels-last format where that is possible and safe, else make them contiguous."""
    possible = all(parameter.dim() <= 4 for parameter in module.parameters())
    chosen = torch.channels_last if possible and _is_safe(module) else torch.contiguous_format
    module.to(memory_format=chosen)
    return chosen


def _is_safe(module: nn.Module) -> bool:
    """Tell whether channels last is safe, which on a CPU it is not for all networks.

    In that format, with several threads and batches of an odd size, PyTorch (2.10 to 2.15 at least) writes beyond its
    memory in the weight gradient of a 1x1 convolution with a stride above 1 and fewer than 16 input channels.
    """
    return not any(
        isinstance(part, nn.Conv2d)
        and part.kernel_size == (1, 1)
        and part.stride != (1, 1)
        and part.in_channels < 16
        and part.weight.device.type == "cpu"
        for part in module.modules()
    )
