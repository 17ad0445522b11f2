"""Memory format of networks, some of which crash PyTorch in channels last."""

import warnings

import torch
from torch import Tensor, nn

from ._checks import complaint


def choose_memory_format(module: nn.Module) -> torch.memory_format:
    """Convert the weights to channels last where that is possible and safe, else to contiguous memory."""
    possible = all(parameter.dim() <= 4 for parameter in module.parameters())
    safe = _crashing_convolution(module) is None
    chosen = torch.channels_last if possible and safe else torch.contiguous_format
    module.to(memory_format=chosen)
    return chosen


def warn_of_channels_last(module: nn.Module, *images: Tensor) -> None:
    """Warn if weights or images are channels last and PyTorch can crash in training because of it."""
    if torch.compiler.is_compiling():
        return
    name = _crashing_convolution(module)
    if name is not None and any(map(_is_channels_last, (*module.parameters(), *images))):
        expected = "contiguous memory, since channels last can crash PyTorch's backward pass on a CPU"
        got = f"channels last and {name!r}, a 1x1 convolution with a stride and fewer than 16 input channels"
        remedy = "Call .to(memory_format=torch.contiguous_format) on the network and .contiguous() on its images"
        # Every caller warns from this line, so that a user sees the text once.
        warnings.warn(complaint(type(module).__name__, expected, got, remedy), UserWarning, stacklevel=1)


def _crashing_convolution(module: nn.Module) -> str | None:
    """Return the name of a convolution for which channels last is not safe.

    In that format, with several threads and batches of an odd size, PyTorch (2.10 to 2.15 at least) writes out of
    bounds in the weight gradient of a 1x1 convolution with a stride above 1 and fewer than 16 input channels, on a CPU.
    """
    for name, part in module.named_modules():
        if (
            isinstance(part, nn.Conv2d)
            and part.kernel_size == (1, 1)
            and part.stride != (1, 1)
            and 0 < part.in_channels < 16  # 0 is that of a lazy convolution
            and part.weight.device.type == "cpu"
        ):
            return str(name)
    return None


def _is_channels_last(x: Tensor) -> bool:
    # Not is_contiguous(memory_format=...): a 1x1 kernel is contiguous in both formats, and its strides decide.
    return x.dim() == 4 and x.stride(1) == 1 and x.stride(3) != 1
