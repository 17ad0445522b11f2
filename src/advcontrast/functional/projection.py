"""Balls around an image, exact in floating point.

The usual ``x + delta`` with ``|delta| <= eps`` leaves the ball: the sum is rounded, and of the coordinates pushed to
the edge about one in seven ends beyond it. Here every returned number satisfies the constraint in exact arithmetic.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .._checks import check_bounds, check_real, check_tensor, complaint

_DTYPES = (torch.float32, torch.float64)


def linf_box(x: Tensor, eps: float, bounds: tuple[float, float] = (0.0, 1.0)) -> tuple[Tensor, Tensor]:
    """Return the corners of all points within ``eps`` of ``x`` in every coordinate, and within ``bounds``.

    The corners are numbers of the dtype of ``x`` that satisfy both constraints exactly, not only after rounding: the
    outermost ones for an ``eps`` that is itself rounded down to that dtype.

    Args:
        x: any shape, float32 or float64, inside the bounds.
        eps: radius, at least 0, in the units of ``x``.
        bounds: smallest and largest value of a coordinate.

    Returns:
        The lower and the upper corner, each with the shape of ``x``.

    Raises:
        ValueError: eps < 0, or bounds that are not in order.
        TypeError: an argument of the wrong kind.

    Example:
        >>> lower, upper = linf_box(torch.tensor([0.0, 0.5, 1.0]), 0.25)
        >>> lower.tolist(), upper.tolist()
        ([0.0, 0.25, 0.75], [0.25, 0.75, 1.0])
    """
    _check_ball("linf_box", x, eps)
    check_bounds("linf_box", bounds)
    radius = _rounded_down(eps, x)
    low, high = inward_bounds(bounds, x)
    return _edge(x, -radius).clamp_(low, high), _edge(x, radius).clamp_(low, high)


def project_l2(point: Tensor, x: Tensor, eps: float) -> Tensor:
    """Return the point of the L2 ball around each sample of ``x`` that is nearest to ``point``.

    Computed in the dtype of ``point``, which should be the widest at hand. The radius is reduced by the most that
    rounding the result to the dtype of ``x`` can add, so that the rounded result still lies in the ball: by some
    1e-5 of an ``eps`` of 0.5 for a float32 image of 3 x 32 x 32 values.

    Args:
        point: ``[N, ...]``.
        x: the centres, of the same shape.
        eps: radius of each sample's ball, at least 0.

    Returns:
        A tensor like ``point``.

    Raises:
        ValueError: eps < 0, or shapes that differ.
        TypeError: an argument of the wrong kind.

    Example:
        >>> project_l2(torch.tensor([[3.0, 4.0]]), torch.zeros(1, 2), 5.1).tolist()
        [[3.0, 4.0]]
    """
    _check_ball("project_l2", x, eps)
    check_tensor("project_l2", "point", point, _DTYPES, remedy="Pass float images")
    if point.shape != x.shape or x.dim() == 0:
        shapes = f"{list(point.shape)} and {list(x.shape)}"
        remedy = "Pass a point for each centre"
        raise ValueError(complaint("project_l2", "point and x of one shape [N, ...]", shapes, remedy))
    delta = point - x
    length, radius = sample_norm(delta), rounded_radius(x, eps)
    return torch.where(length > radius, x + delta * (radius / length), point)


def _check_ball(owner: str, x: Tensor, eps: float) -> None:
    check_tensor(owner, "x", x, _DTYPES, remedy="Pass float images")
    check_real(owner, "eps", eps, low=0, remedy="For images in [0, 1] it is usually 8/255")


def sample_norm(x: Tensor, *, dtype: torch.dtype | None = None) -> Tensor:
    """Return the norm of each sample of ``x``, of shape ``[N, 1, ...]`` to compute with ``x``, perhaps more exactly."""
    norm: Tensor = torch.linalg.vector_norm(x.reshape(len(x), math.prod(x.shape[1:])), dim=1, dtype=dtype)
    return norm.reshape(-1, *[1] * (x.dim() - 1))


def rounded_radius(x: Tensor, eps: float) -> Tensor:
    """Return, for each sample, a radius below ``eps`` that rounding a point of the sphere to ``x`` cannot exceed it."""
    reach = x.reshape(len(x), math.prod(x.shape[1:])).abs().amax(1).view(-1, *[1] * (x.dim() - 1)) + eps
    # Half of it is for rounding the result, the other half for the arithmetic of the projection.
    rounding = torch.finfo(x.dtype).eps * (math.sqrt(math.prod(x.shape[1:])) + 4) * reach
    return (eps - rounding).clamp_min(0)


def inward_bounds(bounds: tuple[float, float], like: Tensor) -> tuple[float, float]:
    """Return the outermost numbers of the dtype of ``like`` that lie within ``bounds``."""
    low, high = bounds
    return -_rounded_down(-low, like), _rounded_down(high, like)


def _rounded_down(number: float, like: Tensor) -> float:
    """Return the largest number of the dtype of ``like`` that is not above ``number``."""
    rounded = torch.tensor(number, dtype=like.dtype, device="cpu")
    if rounded.item() > number:
        rounded = torch.nextafter(rounded, torch.full_like(rounded, -math.inf))
    return rounded.item()


def _edge(x: Tensor, way: float) -> Tensor:
    """Return the outermost numbers of the dtype of ``x`` between it and the exact sum of ``x`` and ``way``."""
    total = x + way
    # What rounding the sum has lost, exactly (Knuth's two-sum): (x - (total - back)) + (way - back).
    back = total - x
    lost = (back - total).add_(x).sub_(back.sub_(way)).sign_()
    # Where rounding went too far, the next number inwards. Selecting it takes longer than arithmetic on signs.
    inwards = lost.clamp_(max=0) if way > 0 else lost.clamp_(min=0)
    return total.nextafter_(inwards.mul_(torch.finfo(x.dtype).max).add_(total))
