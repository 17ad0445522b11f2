"""Take a plain network out of one with dual norms."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .._checks import check_copyable, check_real, complaint
from .._types import BRANCHES
from ..norm import DualNorm, update_bn
from ..norm.dual_norm import check_branch, dual_norms
from .modules import become, check_surgery


def export_branch(model: nn.Module, branch: str) -> nn.Module:
    """Return a plain copy of ``model`` that holds one branch only.

    The copy has the architecture, the state-dict keys and the modes of the network before conversion, and the outputs
    of that branch, bit for bit. ``model`` is not touched.

    Args:
        model: a network with dual norms.
        branch: ``"clean"`` or ``"adv"``, or a name of your own that the model was converted with.

    Returns:
        A deep copy with plain norms.

    Raises:
        ValueError: a dual norm has no such branch, or the model holds no dual norm.
        TypeError: ``model`` is not a module, is wrapped or scripted.
        RuntimeError: ``model`` cannot be copied, as it holds the old ``weight_norm``, pruned layers, results of a
            forward pass, or functions that hold its modules.

    Example:
        >>> model = convert_to_dual_bn(torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8)))
        >>> list(export_branch(model, "adv").state_dict())[:3]
        ['0.weight', '0.bias', '1.weight']
    """
    owner = "export_branch"
    check_surgery(owner, model)
    check_branch(owner, dual_norms(owner, model), branch)
    check_copyable(owner, model)
    model = copy.deepcopy(model)
    _keep(dual_norms(owner, model), branch, model)
    return model


def _keep(norms: Iterable[DualNorm], branch: str, model: nn.Module) -> None:
    """Turn dual norms of ``model`` into those of one branch."""
    modules = {id(module): module for module in model.modules()}
    for norm in norms:
        become(norm, norm._norm_of(branch), modules)


def blend(
    model: nn.Module, alpha: float, loader: Iterable[Any] | None = None, *, branches: Sequence[str] = BRANCHES
) -> nn.Module:
    r"""Return a plain copy of ``model`` whose norms lie between two branches: a dial from accuracy to robustness.

    .. math:: \theta = (1 - \alpha)\,\theta_\mathrm{clean} + \alpha\,\theta_\mathrm{adv}

    for scales, shifts and running statistics. What convolutions and linear layers compute, both branches share. At
    ``alpha`` 0 and 1 the copy is that of :func:`export_branch`, bit for bit.

    Interpolated statistics are those of no network. With a ``loader`` they are estimated anew, by
    :func:`advcontrast.update_bn`, from the images that the copy will see: clean ones, attacked ones, or some of
    each.

    Args:
        model: a network with dual norms.
        alpha: the place between the branches, in [0, 1].
        loader: batches of images, for statistics of the copy's own; ``None`` interpolates them. Norms without
            statistics, such as layer norms, need none.
        branches: the branches at 0 and at 1.

    Returns:
        A deep copy with plain norms.

    Raises:
        ValueError: alpha outside of [0, 1], a branch that a dual norm does not have, no dual norm in the model, a
            loader without batches or one for a model without running statistics.
        TypeError: ``model`` is not a module, is wrapped or scripted.
        RuntimeError: ``model`` cannot be copied, as in :func:`export_branch`.

    Example:
        >>> model = convert_to_dual_bn(torch.nn.Sequential(torch.nn.BatchNorm1d(2)))
        >>> _ = torch.nn.init.constant_(model[0].adv.weight, 3.0)
        >>> [blend(model, alpha)[0].weight.mean().item() for alpha in (0, 0.25, 1)]
        [1.0, 1.5, 3.0]
    """
    owner = "blend"
    check_surgery(owner, model)
    check_real(owner, "alpha", alpha, low=0, high=1, remedy="0 gives the first branch, 1 the second")
    if not isinstance(branches, (tuple, list)) or len(branches) != 2:
        remedy = 'Pass the two to blend, such as ("clean", "adv")'
        raise TypeError(complaint(owner, "branches to be two names", repr(branches), remedy))
    for branch in branches:
        check_branch(owner, dual_norms(owner, model), branch)
    check_copyable(owner, model)
    # What cannot lie in between, such as counts of batches, comes from the nearer branch.
    (near, far), way = (branches, alpha) if alpha <= 0.5 else (branches[::-1], 1 - alpha)
    model = copy.deepcopy(model)
    norms = dual_norms(owner, model)
    # By the tensor: norms may share one, which is to move once.
    targets = {here: there for norm in norms for here, there in _tensors(getattr(norm, near), getattr(norm, far))}
    with torch.no_grad():
        for here, there in targets.items():
            here.lerp_(there, way)
    _keep(norms, near, model)
    if loader is not None:
        update_bn(model, loader)
    return model


def _tensors(near: nn.Module, far: nn.Module) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield what two copies of a norm can be blended of, side by side."""
    for name, here in near.state_dict(keep_vars=True).items():
        if isinstance(here, Tensor) and here.is_floating_point():
            yield here, far.state_dict(keep_vars=True)[name]
