"""Choose the branch of all dual norms of a model: for a while, for good, or again when activations are recomputed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

from torch import nn

from .._checks import check_choice, check_module
from .._types import BRANCHES, Branch
from .dual_batch_norm import DualBatchNorm


def dual_norms(owner: str, model: nn.Module) -> list[DualBatchNorm]:
    """Return the dual norms of ``model``, also those behind DDP or a compiled wrapper; raise if there is none."""
    check_module(owner, model)
    norms = [module for module in model.modules() if isinstance(module, DualBatchNorm)]
    if not norms:
        raise ValueError(
            f"{owner}: expected a model with dual batch norms, found none in {type(model).__name__}. "
            "Call convert_to_dual_bn(model) first."
        )
    return norms


@contextmanager
def _switched(branches: dict[DualBatchNorm, Branch]) -> Iterator[None]:
    before = {norm: norm.branch for norm in branches}
    try:
        for norm, branch in branches.items():
            norm.branch = branch
        yield
    finally:
        for norm, branch in before.items():
            norm.branch = branch


def bn_branch(model: nn.Module, branch: Branch) -> AbstractContextManager[None]:
    """Send everything that passes through ``model`` inside the ``with`` block through one branch.

    On the way out, also after an exception, every norm gets back the branch that it had. Contexts nest. The branch is a
    mode of the model like train and eval: threads that share a model share its branch.

    Args:
        model: a network with dual norms; wrappers such as DDP or ``torch.compile`` may surround it.
        branch: ``"clean"`` or ``"adv"``.

    Returns:
        A context manager.

    Raises:
        ValueError: ``branch`` is another word, or the model holds no dual norm.
        TypeError: ``model`` is no ``nn.Module``.

    Example:
        >>> model = convert_to_dual_bn(torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8)))
        >>> with bn_branch(model, "adv"):
        ...     model[1].branch
        'adv'
        >>> model[1].branch
        'clean'
    """
    norms = dual_norms("bn_branch", model)
    check_choice("bn_branch", "branch", branch, BRANCHES)
    return _switched(dict.fromkeys(norms, branch))


def set_bn_branch(model: nn.Module, branch: Branch) -> None:
    """Send everything that passes through ``model`` from now on through one branch.

    Args:
        model: a network with dual norms.
        branch: ``"clean"`` or ``"adv"``.

    Raises:
        ValueError: ``branch`` is another word, or the model holds no dual norm.
        TypeError: ``model`` is no ``nn.Module``.

    Example:
        >>> model = convert_to_dual_bn(torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8)))
        >>> set_bn_branch(model, "adv")
        >>> model[1].branch
        'adv'
    """
    norms = dual_norms("set_bn_branch", model)
    check_choice("set_bn_branch", "branch", branch, BRANCHES)
    for norm in norms:
        norm.branch = branch


class _Recomputation(AbstractContextManager[None]):
    """Re-enters branches as often as it is entered: every backward pass through a graph that is kept recomputes it."""

    def __init__(self, branches: dict[DualBatchNorm, Branch]) -> None:
        self._branches = branches

    def __enter__(self) -> None:
        self._switch = _switched(self._branches)
        self._switch.__enter__()

    def __exit__(self, *exception: Any) -> None:
        self._switch.__exit__(*exception)


def _contexts(model: nn.Module) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    now = {module: module.branch for module in model.modules() if isinstance(module, DualBatchNorm)}
    return nullcontext(), _Recomputation(now)


def checkpoint_context_fn(
    model: nn.Module,
) -> Callable[[], tuple[AbstractContextManager[None], AbstractContextManager[None]]]:
    """Return the ``context_fn`` with which activation checkpointing recomputes on the right branch.

    ``torch.utils.checkpoint`` runs a part of the network a second time during the backward pass, when the ``with``
    block of :func:`bn_branch` is long over, and would silently recompute on whatever branch is then active. The
    function returned here notes the branches at the forward pass and re-enters them for the recomputation.

    Args:
        model: the network, or the part of it that is checkpointed. It may be converted later; a network without dual
            norms has nothing to re-enter.

    Returns:
        The ``context_fn=`` of ``torch.utils.checkpoint.checkpoint(..., use_reentrant=False)``. It may be used for any
        number of forward passes, and copies and pickles with the model that holds it.

    Raises:
        TypeError: ``model`` is no ``nn.Module``.

    Example:
        >>> from torch.utils.checkpoint import checkpoint
        >>> model = convert_to_dual_bn(torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.BatchNorm1d(4)))
        >>> x = torch.arange(8.0).view(2, 4)
        >>> with bn_branch(model, "adv"):
        ...     y = checkpoint(model, x, use_reentrant=False, context_fn=checkpoint_context_fn(model))
        >>> y.square().sum().backward()
        >>> model[1].clean.weight.grad is None, model[1].adv.weight.grad is None
        (True, False)
    """
    check_module("checkpoint_context_fn", model)
    return partial(_contexts, model)
