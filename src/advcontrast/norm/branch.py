"""Switch the branch of all dual norms of a model; list the parameters of a branch."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from .._checks import check_module, complaint
from .dual_norm import DualNorm, check_branch, check_switch, dual_norms, dual_norms_in
from .recomputation import COMPILED, copied_buffers, recomputation, refuse_unchecked_switch


@contextmanager
def _switched(branches: Mapping[DualNorm, str], *, recorded: bool = False) -> Iterator[None]:
    before = {norm: norm._branch for norm in branches}
    try:
        _enter(branches, before, recorded)
        yield
    finally:
        try:
            _leave(before)
        except KeyboardInterrupt:  # may interrupt the loop
            _leave(before)
            raise


def _enter(branches: Mapping[DualNorm, str], before: dict[DualNorm, str], recorded: bool) -> None:
    if torch.compiler.is_compiling():
        for norm, branch in branches.items():
            norm._switch(branch)
        return
    if not recorded:
        refuse_unchecked_switch("bn_branch")
    moment = recomputation()
    if moment is not None and not recorded:
        if any(norm._history.looked_up == moment for norm in branches):
            got = "one that uses the norms on both sides of the switch"
            remedy = "Call torch.utils.checkpoint inside bn_branch"
            raise RuntimeError(complaint("bn_branch", "a checkpointed function that does not switch", got, remedy))
        for norm in branches:
            norm._history.switched = moment
    if moment is not None:
        COMPILED.contexts[id(before)] = moment
    for norm, branch in branches.items():
        norm._history.contexts.append((before, moment, recorded or moment is not None))
        norm.__dict__["_recorded"] = any(entered_again for *_, entered_again in norm._history.contexts)
        norm._switch(branch, moment)


def _leave(before: dict[DualNorm, str]) -> None:
    if torch.compiler.is_compiling():
        for norm, branch in before.items():
            norm._switch(branch)
        return
    COMPILED.contexts.pop(id(before), None)
    for norm, branch in before.items():
        contexts = norm._history.contexts
        place = next((i for i, (other, *_) in enumerate(contexts) if other is before), None)
        if place is None:  # never entered, or left already
            continue
        if place + 1 < len(contexts):
            # A context that was entered later is still in use; on exit it restores the branch from before this one.
            contexts[place + 1][0][norm] = branch
        else:
            norm._switch(branch, contexts[place][1])
        del contexts[place]
        norm.__dict__["_recorded"] = any(entered_again for *_, entered_again in contexts)


def bn_branch(model: nn.Module, branch: str) -> AbstractContextManager[None]:
    """Return a context in which all dual norms of ``model`` use one branch.

    On exit, also after an exception, every norm returns to its previous branch. Contexts nest, and may overlap: the
    context in use that was entered last decides. The branch is a mode of the model, like train and eval: threads that
    share a model share its branch. Activation checkpointing recomputes on the branch of the forward pass.

    Args:
        model: a network with dual norms; wrappers such as DDP or ``torch.compile`` may surround it.
        branch: ``"clean"`` or ``"adv"``, or a name of your own that the model was converted with.

    Raises:
        ValueError: a dual norm has no such branch, or the model holds no dual norm.
        TypeError: ``model`` is not an ``nn.Module``.
        RuntimeError: on entry, where activation checkpointing recomputes a function that uses a norm on both sides of
            the switch; or under the stance ``skip_guard_eval_unsafe=True`` of ``torch.compiler``.

    Example:
        >>> model = convert_to_dual_bn(torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8)))
        >>> with bn_branch(model, "adv"):
        ...     model[1].branch
        'adv'
        >>> model[1].branch
        'clean'
    """
    return norms_on(dual_norms("bn_branch", model), branch)


def norms_on(norms: Sequence[DualNorm], branch: str) -> AbstractContextManager[None]:
    """Return a context in which dual norms, at least one, use one branch; errors are those of :func:`bn_branch`."""
    check_branch("bn_branch", norms, branch)
    return _switched(dict.fromkeys(norms, branch))


def set_bn_branch(model: nn.Module, branch: str) -> None:
    """Use one branch of all dual norms of ``model`` from now on; arguments as for :func:`bn_branch`.

    Raises:
        ValueError, TypeError: as for :func:`bn_branch`.
        RuntimeError: it is called inside a backward pass, for example by a checkpointed function, or under the stance
            ``skip_guard_eval_unsafe=True`` of ``torch.compiler``.

    Example:
        >>> model = convert_to_dual_bn(torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8)))
        >>> set_bn_branch(model, "adv")
        >>> model[1].branch
        'adv'
    """
    norms = dual_norms("set_bn_branch", model)
    check_branch("set_bn_branch", norms, branch)
    check_switch("set_bn_branch")
    for norm in norms:
        norm._switch(branch)


def branch_parameters(model: nn.Module, branch: str) -> list[nn.Parameter]:
    """Return the parameters that only ``branch`` of the dual norms of ``model`` uses; none if branches share them.

    Each is returned once, in the order of the modules. Add those of ``"adv"`` to an optimizer built before the
    conversion: ``optimizer.add_param_group({"params": branch_parameters(model, "adv")})``. Freeze those of branches
    that are not trained. Arguments, ``ValueError`` and ``TypeError`` are those of :func:`bn_branch`.

    Example:
        >>> model = convert_to_dual_bn(torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8)))
        >>> [tuple(parameter.shape) for parameter in branch_parameters(model, "adv")]
        [(8,), (8,)]
    """
    norms = dual_norms("branch_parameters", model)
    check_branch("branch_parameters", norms, branch)
    own = dict.fromkeys(parameter for norm in norms for parameter in getattr(norm, branch).parameters())
    others = [getattr(norm, name) for norm in norms for name in norm.branches if name != branch]
    shared = {parameter for other in others for parameter in other.parameters()}
    return [parameter for parameter in own if parameter not in shared]


class _Recorded(AbstractContextManager[None]):
    """Context of a checkpointed forward pass and, in each backward pass, of its recomputation."""

    def __init__(self, model: nn.Module) -> None:
        self._branches = {norm: norm.branch for norm in dual_norms_in(model)}
        self._norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]

    def __enter__(self) -> None:
        self._entered = ExitStack()
        if recomputation() is not None:
            self._entered.enter_context(copied_buffers(self._norms))
        self._entered.enter_context(_switched(self._branches, recorded=True))

    def __exit__(self, *exception: Any) -> None:
        self._entered.__exit__(*exception)


def _contexts(model: nn.Module) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    return _Recorded(model), _Recorded(model)


def checkpoint_context_fn(
    model: nn.Module,
) -> Callable[[], tuple[AbstractContextManager[None], AbstractContextManager[None]]]:
    """Return a ``context_fn`` for ``torch.utils.checkpoint`` that records the branches and restores them.

    Checkpointing runs a part of the network a second time during the backward pass, when the ``with`` block of
    :func:`bn_branch` is over. Dual norms usually find the branch of the forward pass without this function, or raise an
    error. In modules that were compiled separately, and under compiled autograd, they always raise an error without it.
    It also prevents the second run from updating the running statistics of single batch norms. The returned function
    may be used for any number of forward passes, and can be copied and pickled with the model that holds it. Pass it
    together with ``use_reentrant=False``.

    Args:
        model: the network or the checkpointed part of it, with all dual norms that run there; may be converted later.

    Raises:
        TypeError: ``model`` is not an ``nn.Module``.

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
