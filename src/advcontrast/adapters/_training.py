"""What training under another library begins with: arguments of the right kinds."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.optim import Optimizer

from .._checks import check_int, check_iterable, check_module, complaint, type_name
from ..engine.arguments import check_optimizer


def check(learner: nn.Module, batches: Any, optimizer: Any, epochs: Any) -> None:
    """Require what can be trained, on what, by what and for how long, before anything changes."""
    check_module("pretrain", learner)
    if hasattr(batches, "__array__"):  # one of NumPy can be walked too, but accelerate trips over it
        raise TypeError(complaint("pretrain", "batches to be an iterable", type_name(batches), "Pass a DataLoader"))
    check_iterable("pretrain", "batches", batches, remedy="Pass a DataLoader")
    check_optimizer("pretrain", learner, checked("pretrain", optimizer))
    check_int("pretrain", "epochs", epochs, low=1, remedy="An epoch is one pass over the batches")


def check_functions(owner: str, **functions: Any) -> None:
    """Require what can be called."""
    for name, function in functions.items():
        if not callable(function):
            raise TypeError(complaint(owner, f"{name} to be callable", type_name(function), "Pass a function"))


def checked(owner: str, optimizer: Any) -> Optimizer:
    """Require an optimizer, and return it."""
    if isinstance(optimizer, Optimizer):
        return optimizer
    remedy = "Take one of torch.optim, such as SGD(learner.parameters(), lr=0.1)"
    raise TypeError(complaint(owner, "an optimizer", type_name(optimizer), remedy))
