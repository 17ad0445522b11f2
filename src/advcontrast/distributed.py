"""The few collectives that are needed. Every function is a no-op in a single process."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from ._checks import check_real, complaint

# Gloo has no error class of its own; its messages begin with the file of the transport that gave up.
_TRANSPORT = ("gloo/transport/", "NCCL error", "Connection closed by peer")


def join(timeout: float) -> None:
    """Join the processes that ``torchrun`` has started, also after it has started them again.

    Tensors of an accelerator are sent by its own backend, small objects by gloo, so that comparing shapes does not wait
    for the device, as it would in a group made with ``backend="nccl"`` alone.

    Args:
        timeout: seconds that a process waits for the others, here and in every collective later, > 0.

    Raises:
        RuntimeError: ``torchrun`` has not started this process, or it has joined already.
        ValueError: ``timeout`` is not positive.
        TypeError: ``timeout`` is no number.
    """
    check_real("join", "timeout", timeout, low=0, above=True, remedy="Pass seconds")
    missing = [name for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if missing:
        remedy = "Start the script with torchrun, or do not call this"
        raise RuntimeError(complaint("join", "a process that torchrun has started", f"no {missing[0]}", remedy))
    if dist.is_initialized():
        raise RuntimeError(complaint("join", "no process group yet", "one", "Call this once, in the place of yours"))
    # Imported while there is a group, as DDP does, this module keeps it for good. A group that ends with the
    # interpreter, not with destroy_process_group, may abort the process: its threads find no Python to return to.
    import torch.distributed.nn.functional  # noqa: F401

    patience = timedelta(seconds=timeout)
    store, rank, world_size = next(dist.rendezvous("env://", timeout=patience))  # type: ignore[attr-defined]
    environment = os.environ
    if environment.get("LOCAL_WORLD_SIZE") == environment.get("WORLD_SIZE"):
        # The store still knows where the processes of the last attempt were; on several machines nobody counts for all.
        attempt = f"attempt {environment.get('TORCHELASTIC_RESTART_COUNT', 0)}"
        store = dist.PrefixStore(attempt, store)  # type: ignore[attr-defined]
    dist.init_process_group(store=store, rank=rank, world_size=world_size, timeout=patience)


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


def from_first(value: Any) -> Any:
    """Return the picklable ``value`` of the first process in every process; what the others pass is not looked at."""
    if world_size() == 1:
        return value
    values = [value if rank() == 0 else None]
    dist.broadcast_object_list(values, 0)
    return values[0]


@torch.no_grad()
def share(tensors: Iterable[Tensor]) -> None:
    """Give tensors of every process, such as running statistics, the values of the first one's."""
    if world_size() > 1:
        for tensor in tensors:
            dist.broadcast(tensor, 0)


@contextmanager
def together(owner: str, remedy: str) -> Iterator[None]:
    """Reword what a collective inside the block raises when another process is gone or gives no sign of life.

    Without it the message is one of the transport. How long a process waits is up to the process group: the
    ``timeout`` of ``torch.distributed.init_process_group``.
    """
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, dist.DistError) and not any(part in str(error) for part in _TRANSPORT):
            raise
        late = "imed out" in str(error) or "timeout" in str(error).lower()
        got = "no sign of life from another" if late else "an end of the connection to another"
        expected = f"all {world_size()} processes to go on together"
        raise RuntimeError(complaint(owner, expected, f"{got} on process {rank()}", remedy)) from error


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
