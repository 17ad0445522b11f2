"""Difference between the two branches of dual batch norms."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..._transfer import on_cpu
from ...functional.nt_xent import alignment
from ...norm import DualNorm, bn_branch
from ...norm.dual_norm import dual_norms
from ...surgery import branch_parameters
from ..inputs import prepared_for_evaluation
from .label_free import checked_features, image_batches

_OWNER = "branch_gap"


@dataclass(frozen=True, kw_only=True)
class BranchGap:
    """Difference between the branches of dual batch norms; every number is 0 for equal branches.

    Attributes:
        features: mean over the images of one minus the cosine of the features of both branches, in [0, 2].
        statistics: divergence of the running statistics, at least 0.
        affine: distance of the scales and shifts relative to their own length, in [0, 2].
    """

    features: float
    statistics: float
    affine: float


def branch_gap(model: nn.Module, batches: Iterable[Tensor | tuple[Tensor, object]]) -> BranchGap:
    r"""Measure the difference between the clean and the adversarial branch of a model.

    The features of both branches, c and a, are compared on the same images by :math:`1 - \cos(c, a)`. The running
    statistics of a channel are taken for Gaussians, with the ``eps`` of the norm added to the variances, and compared
    by the mean of both Kullback-Leibler divergences,

    .. math::

        \frac{(v_c - v_a)^2}{4\, v_c v_a} + \frac{(\mu_c - \mu_a)^2}{4} \Big( \frac{1}{v_c} + \frac{1}{v_a} \Big)

    averaged over the channels of each norm and then over the norms. All scales and shifts together, as vectors
    :math:`\theta`, are compared by :math:`\lVert \theta_c - \theta_a \rVert / \sqrt{(\lVert \theta_c \rVert^2 + \lVert
    \theta_a \rVert^2) / 2}`. Norms without running statistics, or without scale and shift, count as equal.

    The cost is two forward passes per image. Model, branch and random state are restored. Errors are those of
    :func:`label_free_robustness`, and a ``ValueError`` for a model without dual norms.

    Args:
        model: a network with dual norms, from images in [0, 1] to features ``[N, D]``.
        batches: as for :func:`label_free_robustness`; one image is enough.

    Example:
        A unit variance and means one apart: the divergence is 1/2.

        >>> model = convert_to_dual_bn(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.BatchNorm1d(4)))
        >>> _ = model[1].adv.running_mean.fill_(1)
        >>> gap = branch_gap(model, [torch.rand(8, 4)])
        >>> round(gap.statistics, 4), gap.affine
        (0.5, 0.0)
    """
    norms = dual_norms(_OWNER, model)
    features = []
    with prepared_for_evaluation(_OWNER, model) as device:
        for x in image_batches(_OWNER, batches, device, least=1):
            with bn_branch(model, "clean"):
                clean = checked_features(_OWNER, model, x)
            with bn_branch(model, "adv"):
                features.append((clean, checked_features(_OWNER, model, x)))
        # On the CPU values can be checked before a number is returned.
        clean, adv = on_cpu([torch.cat(part) for part in zip(*features, strict=True)])
        # Half the squared distance of two unit vectors is one minus their cosine, without its cancellation near 1.
        gap = alignment(clean, adv).item() / 2
        return BranchGap(features=gap, statistics=_statistics_gap(norms), affine=_affine_gap(model))


def _statistics_gap(norms: list[DualNorm]) -> float:
    pairs = [
        [(branch.running_mean, branch.running_var, branch.eps) for branch in (norm.clean, norm.adv)]
        for norm in norms
        if all(getattr(branch, "running_mean", None) is not None for branch in (norm.clean, norm.adv))
    ]
    gaps: list[float] = []
    for pair in on_cpu(pairs):
        # Mean and variance of each channel, as the norm sees them.
        (mean, variance), (other_mean, other_variance) = ((m.double(), v.double() + eps) for m, v, eps in pair)
        spread = (variance - other_variance).square() / (variance * other_variance)
        shift = (mean - other_mean).square() * (1 / variance + 1 / other_variance)
        gaps.append((spread + shift).mean().item() / 4)
    return sum(gaps) / max(len(gaps), 1)


def _affine_gap(model: nn.Module) -> float:
    # Norms without scale and shift have no parameters; the zero in front makes a vector of none.
    clean, adv = (
        torch.cat([torch.zeros(1).double(), *(each.double().flatten() for each in parameters)])
        for parameters in on_cpu([[p.detach() for p in branch_parameters(model, name)] for name in ("clean", "adv")])
    )
    length = math.sqrt((clean.square().sum().item() + adv.square().sum().item()) / 2)
    return torch.linalg.vector_norm(clean - adv).item() / length if length else 0.0
