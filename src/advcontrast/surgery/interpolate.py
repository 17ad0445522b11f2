"""Interpolate between the branches of a network with dual norms."""

import copy
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .. import _deprecated
from .._checks import check_copyable, check_real, check_type, complaint
from .._types import BRANCHES
from ..norm import update_bn
from ..norm.dual_norm import check_branch, dual_norms
from .export import keep_branch
from .modules import check_surgery


def interpolate_branches(
    model: nn.Module, weights: Mapping[str, float], *, loader: Iterable[Any] | None = None
) -> nn.Module:
    r"""Return a plain copy of ``model`` whose norms are a weighted mean of branches, to trade accuracy for robustness.

    .. math:: \theta = \sum_b w_b\,\theta_b

    for scales, shifts and running statistics; branches share all other layers. Integer tensors, such as counts of
    batches, come from the branch with the largest weight. If one weight is 1, the copy is bit-identical to that of
    :func:`export_branch`.

    Interpolated statistics are not those of any data. With a ``loader``, :func:`advcontrast.update_bn` recomputes them;
    pass the kind of images that the copy is used for: clean, attacked, or both.

    Args:
        model: a network with dual norms.
        weights: a weight for each branch by its name, in [0, 1], 0 for branches that are left out. They add up to 1.
        loader: batches of images to estimate the statistics from, if there are any; ``None`` interpolates them.

    Raises:
        ValueError: a weight out of range, weights that do not add up to 1, a branch that a dual norm does not have,
            no dual norm in the model, a loader without batches or one for a model without running statistics.
        TypeError: ``weights`` is not a mapping to numbers, or ``model`` is not a module, or is wrapped or scripted.
        RuntimeError: ``model`` cannot be copied, as in :func:`export_branch`.

    Example:
        >>> model = convert_to_dual_bn(torch.nn.Sequential(torch.nn.BatchNorm1d(2)))
        >>> _ = torch.nn.init.constant_(model[0].adv.weight, 3.0)
        >>> interpolate_branches(model, {"clean": 0.75, "adv": 0.25})[0].weight.mean().item()
        1.5
    """
    owner, remedy = "interpolate_branches", 'Pass weights such as {"clean": 0.3, "adv": 0.7}'
    check_surgery(owner, model)
    norms = dual_norms(owner, model)
    check_type(owner, "weights", weights, Mapping, remedy=remedy)
    for branch, weight in weights.items():
        check_branch(owner, norms, branch)
        check_real(owner, f"weights[{branch!r}]", weight, low=0, high=1, remedy=remedy)
    if abs(sum(weights.values()) - 1) > 1e-6:
        raise ValueError(complaint(owner, "weights that add up to 1", repr(dict(weights)), remedy))
    check_copyable(owner, model)
    first, *others = sorted(weights, key=lambda branch: weights[branch], reverse=True)
    model, total = copy.deepcopy(model), weights[first]
    with torch.no_grad():
        for other in others:
            total += weights[other]
            pairs: dict[Tensor, Tensor] = {}  # keyed by the tensor: norms may share one, which is interpolated once
            for norm in dual_norms(owner, model):
                ours, theirs = (getattr(norm, branch).state_dict(keep_vars=True) for branch in (first, other))
                floats = (name for name, here in ours.items() if isinstance(here, Tensor) and here.is_floating_point())
                pairs |= {ours[name]: theirs[name] for name in floats}
            for here, there in pairs.items():
                here.lerp_(there, weights[other] / total)
    keep_branch(model, first)
    if loader is not None:
        update_bn(model, loader)
    return model


def blend(
    model: nn.Module, alpha: float, loader: Iterable[Any] | None = None, *, branches: Sequence[str] = BRANCHES
) -> nn.Module:
    """Deprecated form of :func:`interpolate_branches`, with one weight ``alpha`` in [0, 1] for two branches."""
    _deprecated.warn("blend", 'interpolate_branches(model, {"clean": 1 - alpha, "adv": alpha})', stacklevel=2)
    first, second = branches
    return interpolate_branches(model, {first: 1 - alpha, second: alpha}, loader=loader)
