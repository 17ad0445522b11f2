"""Balls that attacks search: random points, steps and projections."""

from typing import TypeAlias

import torch
from torch import Tensor

from .._types import Norm
from ..functional.projection import inward_bounds, linf_box, per_sample, rounded_radius, sample_norm


class LinfBall:
    """All images within ``eps`` of the centres ``x``, ``[N, ...]``, in every pixel, and within the bounds.

    Points have the dtype of ``x``, and so do the corners, which are exact: clamping between them is a projection.
    """

    def __init__(self, x: Tensor, eps: float, bounds: tuple[float, float]) -> None:
        self.centre = x
        self.eps = eps
        self.lower, self.upper = linf_box(x, eps, bounds)

    def random_point(self, generator: torch.Generator | None) -> Tensor:
        """Draw one point per sample, uniform in the cube of side ``2 * eps``, then moved into the bounds."""
        at = self.centre
        noise = torch.rand(at.shape, generator=generator, dtype=widest(at), device=at.device)
        move = torch.empty_like(at).copy_(noise.sub_(0.5))
        return torch.add(at, move, alpha=2 * self.eps, out=move).clamp_(self.lower, self.upper)

    def lengths(self, size: float) -> Tensor:
        """Return a step for each pixel that rounding makes no shorter than ``size``, so that steps reach the edge."""
        farthest = torch.maximum(-self.lower, self.upper)
        return farthest.add_(3 * size).mul_(torch.finfo(farthest.dtype).eps / 2).add_(size)

    def step(self, point: Tensor, gradient: Tensor, size: float | Tensor) -> Tensor:
        """Step by ``size`` in every pixel, in the direction of steepest ascent."""
        move = torch.sign(gradient, out=torch.empty_like(point))
        if isinstance(size, Tensor):
            torch.addcmul(point, move, size, out=move)
        else:
            torch.add(point, move, alpha=size, out=move)
        return move.clamp_(self.lower, self.upper)

    def project(self, point: Tensor) -> Tensor:
        """Return the nearest point inside."""
        return point.clamp(self.lower, self.upper)


class L2Ball:
    """All images within Euclidean distance ``eps`` of ``x``, and within the bounds.

    Points have the dtype of ``x``. Their distances are computed in the widest dtype of the device, and the radius is
    reduced by the largest rounding error, so that they lie inside in exact arithmetic.
    """

    def __init__(self, x: Tensor, eps: float, bounds: tuple[float, float]) -> None:
        self.centre = x
        self.eps = eps
        self.radius = rounded_radius(x, eps)
        self.bounds = inward_bounds(bounds, x)

    def random_point(self, generator: torch.Generator | None) -> Tensor:
        """Draw one point per sample, uniform in the ball, then moved into the bounds."""
        at, dtype = self.centre, widest(self.centre)
        direction = torch.randn(at.shape, generator=generator, dtype=dtype, device=at.device)
        fraction = torch.rand(len(at), generator=generator, dtype=dtype, device=at.device)
        radius = self.eps * fraction ** (1 / at[0].numel())
        return self.step(at, direction, per_sample(radius, at))

    def lengths(self, size: float) -> float:
        """Return the step of each sample."""
        return size

    def step(self, point: Tensor, gradient: Tensor, size: float | Tensor) -> Tensor:
        """Step by ``size`` in the direction of steepest ascent of each sample, by 0 where the gradient is zero."""
        length = self._length(gradient)
        pace = (size / length.masked_fill(length == 0, 1)).clamp_(max=torch.finfo(point.dtype).max)
        return self.project(torch.addcmul(point, gradient.to(point.dtype), pace.to(point.dtype)))

    def project(self, point: Tensor) -> Tensor:
        """Return the nearest point of the ball, moved into the bounds; that can only bring it nearer to the centre."""
        delta = point - self.centre
        length = self._length(delta)
        share = (self.radius / length.clamp_(min=torch.finfo(length.dtype).tiny)).clamp_(max=1)
        return torch.addcmul(self.centre, delta, share.to(delta.dtype), out=delta).clamp_(*self.bounds)

    def _length(self, move: Tensor) -> Tensor:
        return sample_norm(move, dtype=widest(move))


Ball: TypeAlias = LinfBall | L2Ball
BALLS: dict[Norm, type[Ball]] = {"linf": LinfBall, "l2": L2Ball}


def widest(x: Tensor) -> torch.dtype:
    """Return the widest floating dtype of the device of a tensor."""
    return x.dtype if x.device.type == "mps" else torch.float64
