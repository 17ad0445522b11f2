"""Lending a network to an attack."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from .._checks import check_module
from .._modes import eval_mode, frozen


@contextmanager
def under_attack(model: nn.Module) -> Iterator[None]:
    """Put a network into the state in which it is usually attacked; on the way out restore what it had.

    Inside the block every module is in eval mode, so that the attack neither moves running statistics nor meets
    dropout, and no parameter requires a gradient, so that none is computed. Modes and flags are kept module by module
    and parameter by parameter, also when the block raises.

    Args:
        model: the network.

    Raises:
        TypeError: ``model`` is no module.

    Example:
        >>> from advcontrast.attacks import under_attack
        >>> model = torch.nn.Linear(2, 2)
        >>> with under_attack(model):
        ...     print(model.training, model.weight.requires_grad)
        False False
        >>> model.training, model.weight.requires_grad
        (True, True)
    """
    check_module("under_attack", model)
    with eval_mode(model), frozen(model):
        yield
