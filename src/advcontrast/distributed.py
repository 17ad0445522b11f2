"""Process groups and collectives. Every collective is a no-op in a single process."""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from . import _deprecated
from ._checks import check_real, complaint

_deprecated.serve_old_names(__name__)

_OWNER = "init_from_torchrun"
# Gloo has no error class of its own; its messages begin with the source file of the transport that failed.
_TRANSPORT = ("gloo/transport/", "NCCL error", "Connection closed by peer")


def init_from_torchrun(timeout: float) -> None:
    """Initialise the process group of the processes that ``torchrun`` has started or restarted.

    Tensors of an accelerator are sent by its own backend, small objects by gloo, so that comparing shapes does not wait
    for the device, as it would in a group made with ``backend="nccl"`` alone.

    Args:
        timeout: seconds that a process waits for the others, here and in every collective later, > 0.

    Raises:
        RuntimeError: ``torchrun`` has not started this process, or there is a process group already.
        ValueError: ``timeout`` is not positive.
        TypeError: ``timeout`` is not a number.
    """
    check_real(_OWNER, "timeout", timeout, low=0, above=True, remedy="Pass seconds")
    missing = [name for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if missing:
        raise RuntimeError(complaint(_OWNER, "a process of torchrun", f"no {missing[0]}", "Start it with torchrun"))
    if dist.is_initialized():
        raise RuntimeError(complaint(_OWNER, "no process group yet", "one", "Do not call init_process_group"))
    # If it is imported after the group is created, as by DDP, this module keeps the group alive until the interpreter
    # exits, and the threads of a group that was not destroyed may then abort the process.
    import torch.distributed.nn.functional  # noqa: F401

    patience = timedelta(seconds=timeout)
    store, rank, world_size = next(dist.rendezvous("env://", timeout=patience))  # type: ignore[attr-defined]
    if os.environ.get("LOCAL_WORLD_SIZE") == os.environ.get("WORLD_SIZE"):
        # The store still holds the addresses of the last attempt. Several machines do not share a count of attempts.
        attempt = f"attempt {os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"
        store = dist.PrefixStore(attempt, store)  # type: ignore[attr-defined]
    dist.init_process_group(store=store, rank=rank, world_size=world_size, timeout=patience)


def world_size() -> int:
    """Return the number of processes, 1 where no process group is initialised."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Return the index of this process, 0 where no process group is initialised."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def all_gather_object(value: Any) -> list[Any]:
    """Return the small picklable ``value`` of every rank, in the order of the ranks. The call waits for all ranks."""
    if world_size() == 1:
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def broadcast_object(value: Any) -> Any:
    """Return the picklable ``value`` of rank 0 in every process; the values of other ranks are ignored."""
    if world_size() == 1:
        return value
    values = [value if rank() == 0 else None]
    dist.broadcast_object_list(values, 0)
    return values[0]


@torch.no_grad()
def broadcast_(tensors: Iterable[Tensor]) -> None:
    """Copy the values of rank 0 into the tensors of every process, in place; running statistics for example."""
    if world_size() > 1:
        for tensor in tensors:
            dist.broadcast(tensor, 0)


@contextmanager
def explain_lost_peer(owner: str, remedy: str) -> Iterator[None]:
    """Explain the NCCL or Gloo error of a collective in the block if another process has ended or does not respond.

    How long a process waits is the ``timeout`` of ``torch.distributed.init_process_group``.
    """
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, dist.DistError) and not any(part in str(error) for part in _TRANSPORT):
            raise
        late = "imed out" in str(error) or "timeout" in str(error).lower()
        got = f"{'a timeout' if late else 'a lost connection'} on process {rank()}"
        raise RuntimeError(complaint(owner, f"all {world_size()} processes to stay connected", got, remedy)) from error


class _AllGather(torch.autograd.Function):
    """Gather with a gradient: the gradients of all copies are summed in the rank that the tensor came from."""

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
    """Stack the equally shaped tensors of all ranks to ``[world_size, *tensor.shape]``, with gradient.

    The backward pass sums over the ranks. If rank r then computes the loss ``L_r``, its parameters receive the gradient
    of ``sum_r L_r``, and averaging over the ranks, as DDP does, gives the gradient of the mean of the ``L_r``.
    """
    if world_size() == 1:
        return tensor.unsqueeze(0)
    return _AllGather.apply(tensor)  # type: ignore[no-any-return]
