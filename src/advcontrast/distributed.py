"""The few collectives that the losses need. Every function is a no-op in a single process."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


def world_size() -> int:
    """Return the number of processes, 1 where no process group is initialised."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Return the index of this process, 0 where no process group is initialised."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def exchange(value: Any) -> list[Any]:
    """Return the small picklable ``value`` of every rank, in the order of the ranks.

    The call waits for all ranks: what one rank knows to be wrong, every rank can then report instead of hanging.
    """
    if world_size() == 1:
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def share_buffers(module: nn.Module) -> None:
    """Give the buffers of every process, such as running statistics, the values of the first one's."""
    if world_size() > 1:
        for buffer in module.buffers():
            dist.broadcast(buffer, 0)


class _AllGather(torch.autograd.Function):
    """Gather with a gradient: what reaches any rank's copy flows back to the rank it came from."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        tensor = tensor.contiguous()
        gathered = [torch.empty_like(tensor) for _ in range(world_size())]
        dist.all_gather(gathered, tensor)
        return torch.stack(gathered)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        gradient = gradient.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(gradient)
        return gradient[rank()]


def all_gather(tensor: Tensor) -> Tensor:
    """Stack the equally shaped tensors of all ranks along a new first dimension, with gradient.

    The backward pass sums over the ranks. If rank r then computes the loss ``L_r``, its parameters receive the gradient
    of ``sum_r L_r``, and averaging over the ranks, as DDP does, gives the gradient of the mean of the ``L_r``.

    Args:
        tensor: any shape, the same on every rank.

    Returns:
        A tensor of shape ``[world_size, *tensor.shape]``.
    """
    if world_size() == 1:
        return tensor.unsqueeze(0)
    gathered: Tensor = _AllGather.apply(tensor)
    return gathered
