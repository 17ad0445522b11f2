"""Balls around an image, exact in floating point.

The usual ``x + delta`` with ``|delta| <= eps`` may leave the ball, since the sum is rounded: about one in seven of the
coordinates at the edge ends up outside. Here every returned number satisfies the constraint in exact arithmetic.
"""

import math

import torch
from torch import Tensor

from .._checks import check_bounds, check_real, check_tensor


def linf_box(x: Tensor, eps: float, bounds: tuple[float, float] = (0.0, 1.0)) -> tuple[Tensor, Tensor]:
    """Return the lower and upper corner of all points within ``eps`` of ``x`` in each coordinate and within ``bounds``.

    The corners, each with the shape of ``x``, are the outermost numbers of its dtype that satisfy both constraints
    exactly, for an ``eps`` that is itself rounded down to that dtype.

    Args:
        x: any shape, float32 or float64, inside the bounds.
        eps: radius, at least 0, in the units of ``x``.
        bounds: smallest and largest value of a coordinate.

    Raises:
        ValueError: eps < 0, or bounds that are not in order.
        TypeError: an argument has the wrong type.

    Example:
        >>> lower, upper = linf_box(torch.tensor([0.0, 0.5, 1.0]), 0.25)
        >>> lower.tolist(), upper.tolist()
        ([0.0, 0.25, 0.75], [0.25, 0.75, 1.0])
    """
    check_tensor("linf_box", "x", x, (torch.float32, torch.float64), remedy="Pass float images")
    check_real("linf_box", "eps", eps, low=0, remedy="For images in [0, 1] it is usually 8/255")
    check_bounds("linf_box", bounds)
    radius = _rounded_down(eps, x)
    low, high = inward_bounds(bounds, x)
    return _edge(x, -radius).clamp_(low, high), _edge(x, radius).clamp_(low, high)


def per_sample(values: Tensor, like: Tensor) -> Tensor:
    """Reshape one value for each sample, or a single one, to ``[N, 1, ...]``, which broadcasts with ``like``."""
    return values.view(-1, *[1] * (like.dim() - 1))


def sample_norm(x: Tensor, *, dtype: torch.dtype | None = None) -> Tensor:
    """Return the Euclidean norm of each sample of ``x``, ``[N, 1, ...]``, computed in ``dtype``."""
    norm: Tensor = torch.linalg.vector_norm(x.reshape(len(x), math.prod(x.shape[1:])), dim=1, dtype=dtype)
    return per_sample(norm, x)


def rounded_radius(x: Tensor, eps: float) -> Tensor:
    """Return, for each sample, the radius of a ball whose points, rounded to the dtype of ``x``, stay within ``eps``.

    For a float32 image of 3 x 32 x 32 values and an ``eps`` of 0.5 the radius is smaller by about 1e-5 of ``eps``.
    """
    size = math.prod(x.shape[1:])
    reach = per_sample(x.reshape(len(x), size).abs().amax(1), x) + eps
    # Half of the margin is for rounding the result, the other half for the arithmetic of the projection.
    rounding = torch.finfo(x.dtype).eps * (math.sqrt(size) + 4) * reach
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
    """Return the outermost numbers of the dtype of ``x`` between ``x`` and the exact sum of ``x`` and ``way``."""
    total = x + way
    # The part that rounding the sum has lost, exactly (Knuth's two-sum): (x - (total - back)) + (way - back).
    back = total - x
    lost = (back - total).add_(x).sub_(back.sub_(way)).sign_()
    # Where rounding went too far, the next number inwards. Selecting it takes longer than arithmetic on signs.
    inwards = lost.clamp_(max=0) if way > 0 else lost.clamp_(min=0)
    return total.nextafter_(inwards.mul_(torch.finfo(x.dtype).max).add_(total))
