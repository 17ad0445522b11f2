"""Borrow a model: change its modes for a while and give them back exactly as they were."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from torch import nn


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Put every module of ``model`` into eval mode; on the way out restore what each one had.

    The flag is kept module by module, because ``model.train()`` would wake a norm that was frozen on purpose. A module
    with a ``train()`` method of its own, as one that keeps something for evaluation and must forget it, is told by it.
    """
    before = [(module, module.training) for module in model.modules()]
    try:
        _set([(module, False) for module, _ in before])
        yield
    finally:
        _set(before)


def _set(modes: Sequence[tuple[nn.Module, bool]]) -> None:
    for module, training in modes:
        if type(module).train is not nn.Module.train:
            module.train(training)
    for module, training in modes:
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
