"""What must be the same when a run is resumed, in words."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from .ema import EMA


def identity(
    learner: nn.Module,
    tensors: Sequence[Tensor],
    groups: Tensor | None,
    optimizer: Optimizer,
    schedule: Callable[[int], float],
    ema: EMA | None,
) -> dict[str, str | None]:
    """Return what tells one run from another, as plain data."""
    return {
        "learner": f"{type(learner).__name__}({_words(learner.extra_repr())})",
        "modules": _words(learner),
        "data": _fingerprint(tensors),
        "groups": None if groups is None else _fingerprint([groups]),
        "optimizer": f"{type(optimizer).__name__} {_hyperparameters(optimizer)}",
        "schedule": _words(schedule),
        "ema": _words(ema),
    }


def _hyperparameters(optimizer: Optimizer) -> str:
    groups = [{**group, "lr": group.get("initial_lr", group["lr"])} for group in optimizer.param_groups]
    return _words([{k: v for k, v in group.items() if k not in ("params", "initial_lr")} for group in groups])


def _words(value: Any) -> str:
    """Return the ``repr`` without the address in memory, which differs from process to process."""
    return re.sub(r" at 0x[0-9a-f]+", "", value if isinstance(value, str) else repr(value))


def _fingerprint(tensors: Sequence[Tensor]) -> str:
    """Return shapes, dtypes and a digest of some 32 samples, to tell one data set from another."""
    digest = hashlib.sha256()
    for tensor in tensors:
        few = tensor[:: max(1, len(tensor) // 32)].cpu().contiguous()
        digest.update(f"{list(tensor.shape)} {tensor.dtype}".encode())
        digest.update(bytes(few.view(torch.uint8).flatten().tolist()))
    return f"{[list(tensor.shape) for tensor in tensors]} {digest.hexdigest()[:16]}"
