"""Borrow a model: change its modes for a while and give them back exactly as they were."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Put every module of ``model`` into eval mode; on the way out restore what each one had.

    The flag is kept module by module, because ``model.train()`` would wake a norm that was frozen on purpose. Only
    flags change: a ``train()`` method that does more than setting them is not called.
    """
    before = [(module, module.training) for module in model.modules()]
    try:
        for module, _ in before:
            module.training = False
        yield
    finally:
        for module, training in before:
            module.training = training


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Stop gradients from reaching the parameters of ``model``; on the way out restore what each one had.

    A compiled backward computes every gradient that it could be asked for, and an eager forward keeps the activations
    that they need. With frozen parameters neither happens.
    """
    before = [(parameter, parameter.requires_grad) for parameter in model.parameters() if parameter.is_leaf]
    try:
        for parameter, _ in before:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter, requires_grad in before:
            parameter.requires_grad_(requires_grad)
