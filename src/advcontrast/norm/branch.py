"""The branch of all dual norms of a model: for a while, for good, for a recomputation; and its parameters."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from .._checks import check_module
from .dual_norm import DualNorm, check_branch, dual_norms


@contextmanager
def _switched(branches: dict[DualNorm, str]) -> Iterator[None]:
    before = {norm: norm.branch for norm in branches}
    try:
        _switch(branches)
        yield
    finally:
        _switch(before)


def _switch(branches: dict[DualNorm, str]) -> None:
    # Not through the property: the compiler of PyTorch 2.10 does not see what its setter does, and says nothing.
    for norm, branch in branches.items():
        norm._branch = branch


def bn_branch(model: nn.Module, branch: str) -> AbstractContextManager[None]:
    """Send everything that passes through ``model`` inside the ``with`` block through one branch.

    On the way out, also after an exception, every norm gets back the branch that it had. Contexts nest. The branch is a
    mode of the model like train and eval: threads that share a model share its branch.

    Args:
        model: a network with dual norms; wrappers such as DDP or ``torch.compile`` may surround it.
        branch: ``"clean"`` or ``"adv"``, or a name of your own that the model was converted with.

    Returns:
        A context manager.

    Raises:
        ValueError: a dual norm has no such branch, or the model holds no dual norm.
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
    check_branch("bn_branch", norms, branch)
    return _switched(dict.fromkeys(norms, branch))


def set_bn_branch(model: nn.Module, branch: str) -> None:
    """Send everything that passes through ``model`` from now on through one branch.

    Args:
        model: a network with dual norms.
        branch: ``"clean"`` or ``"adv"``, or a name of your own that the model was converted with.

    Raises:
        ValueError: a dual norm has no such branch, or the model holds no dual norm.
        TypeError: ``model`` is no ``nn.Module``.

    Example:
        >>> model = convert_to_dual_bn(torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8)))
        >>> set_bn_branch(model, "adv")
        >>> model[1].branch
        'adv'
    """
    norms = dual_norms("set_bn_branch", model)
    check_branch("set_bn_branch", norms, branch)
    _switch(dict.fromkeys(norms, branch))


def branch_parameters(model: nn.Module, branch: str) -> list[nn.Parameter]:
    """Return the parameters that only ``branch`` of the dual norms of ``model`` uses; none where branches share them.

    An optimizer built before conversion lacks those of ``"adv"``: ``optimizer.add_param_group({"params":
    branch_parameters(model, "adv")})``. A branch that a training leaves idle can be frozen with them.

    Args:
        model: a network with dual norms.
        branch: ``"clean"`` or ``"adv"``, or a name of your own that the model was converted with.

    Returns:
        The parameters, each once, in the order of the modules.

    Raises:
        ValueError: a dual norm has no such branch, or the model holds no dual norm.
        TypeError: ``model`` is no ``nn.Module``.

    Example:
        >>> model = convert_to_dual_bn(torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8)))
        >>> [tuple(parameter.shape) for parameter in branch_parameters(model, "adv")]
        [(8,), (8,)]
    """
    owner = "branch_parameters"
    norms = dual_norms(owner, model)
    check_branch(owner, norms, branch)
    own = dict.fromkeys(parameter for norm in norms for parameter in getattr(norm, branch).parameters())
    others = [getattr(norm, name) for norm in norms for name in norm.branches if name != branch]
    shared = {parameter for other in others for parameter in other.parameters()}
    return [parameter for parameter in own if parameter not in shared]


class _Recomputation(AbstractContextManager[None]):
    """Re-enters branches as often as it is entered: every backward pass through a graph that is kept recomputes it.

    Batches that come a second time are not counted again: running statistics stay as they are.
    """

    def __init__(self, model: nn.Module) -> None:
        self._branches = {module: module.branch for module in model.modules() if isinstance(module, DualNorm)}
        self._norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]

    def __enter__(self) -> None:
        self._kept = [(norm, norm.momentum, norm.num_batches_tracked) for norm in self._norms]
        for norm, _, count in self._kept:
            norm.momentum = 0.0
            norm.num_batches_tracked = None if count is None else count.new_empty(())
        self._switched = _switched(self._branches)
        self._switched.__enter__()

    def __exit__(self, *exception: Any) -> None:
        self._switched.__exit__(*exception)
        for norm, momentum, count in self._kept:
            norm.momentum, norm.num_batches_tracked = momentum, count


def _contexts(model: nn.Module) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    return nullcontext(), _Recomputation(model)


def checkpoint_context_fn(
    model: nn.Module,
) -> Callable[[], tuple[AbstractContextManager[None], AbstractContextManager[None]]]:
    """Return the ``context_fn`` with which activation checkpointing recomputes on the right branch.

    ``torch.utils.checkpoint`` runs a part of the network a second time during the backward pass, when the ``with``
    block of :func:`bn_branch` is long over, and would silently recompute on whatever branch is then active. The
    function returned here notes the branches at the forward pass and re-enters them for the recomputation. It also
    keeps the second run from moving running statistics again, those of single batch norms included.

    Args:
        model: the network, or the part of it that is checkpointed. It may be converted later.

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
