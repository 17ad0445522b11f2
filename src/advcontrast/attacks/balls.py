"""Balls that attacks search: random points, steps and projections."""

from typing import TypeAlias

import torch
from torch import Tensor

from .._types import Norm
from ..functional.projection import inward_bounds, linf_box, per_sample, rounded_radius, sample_norm


class LinfBall:
    """All images within ``eps`` of the centres ``x``, ``[N, ...]``, in every pixel, and within the bounds."""

    def __init__(self, x: Tensor, eps: float, bounds: tuple[float, float]) -> None:
        self.centre, self.eps = x, eps
        self.lower, self.upper = linf_box(x, eps, bounds)

    def random_point(self, generator: torch.Generator | None) -> Tensor:
        """Draw one point per sample, uniform in the cube of side ``2 * eps``, then clamped to the bounds."""
        at = self.centre
        noise = torch.rand(at.shape, generator=generator, dtype=at.dtype, device=at.device).sub_(0.5)
        return torch.add(at, noise, alpha=2 * self.eps).clamp_(self.lower, self.upper)

    def lengths(self, size: float) -> Tensor:
        """Return a step of each pixel that is at least ``size`` after rounding, so that steps reach the edge."""
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
    """All images within Euclidean distance ``eps`` of ``x``, and within the bounds."""

    def __init__(self, x: Tensor, eps: float, bounds: tuple[float, float]) -> None:
        self.centre, self.eps = x, eps
        self.radius = rounded_radius(x, eps)  # inside which rounded points lie in exact arithmetic
        self.bounds = inward_bounds(bounds, x)
        self._wide = torch.empty(x.shape, dtype=widest(x), device=x.device)

    def random_point(self, generator: torch.Generator | None) -> Tensor:
        """Draw one point per sample, uniform in the ball, then clamped to the bounds."""
        at = self.centre
        direction = torch.randn(at.shape, generator=generator, dtype=at.dtype, device=at.device)
        fraction = torch.rand(len(at), generator=generator, dtype=widest(at), device=at.device)
        radius = self.eps * fraction ** (1 / at[0].numel())
        return self.step(at, direction, per_sample(radius, at))

    def lengths(self, size: float) -> float:
        """Return the step of each sample."""
        return size

    def step(self, point: Tensor, gradient: Tensor, size: float | Tensor) -> Tensor:
        """Step by ``size`` in the direction of steepest ascent of each sample, by 0 where the gradient is zero."""
        length = self._length(gradient)
        pace = (size / length.masked_fill(length == 0, 1)).clamp_(max=torch.finfo(point.dtype).max)
        return self._from_centre(torch.addcmul(point, gradient.to(point.dtype), pace.to(point.dtype)).sub_(self.centre))

    def project(self, point: Tensor) -> Tensor:
        """Return the nearest point of the ball, clamped to the bounds, which brings it closer to the centre."""
        return self._from_centre(point - self.centre)

    def _from_centre(self, delta: Tensor) -> Tensor:
        length = self._length(delta)
        share = (self.radius / length.clamp_(min=torch.finfo(length.dtype).tiny)).clamp_(max=1)
        return torch.addcmul(self.centre, delta, share.to(delta.dtype), out=delta).clamp_(*self.bounds)

    def _length(self, move: Tensor) -> Tensor:
        # Converting into the same memory each time is twice as fast as allocating new memory.
        return sample_norm(self._wide.copy_(move))


class L1Ball:
    """All images whose differences from ``x`` add up to at most ``eps``, and within the bounds."""

    def __init__(self, x: Tensor, eps: float, bounds: tuple[float, float]) -> None:
        self.centre, self.bounds = x, inward_bounds(bounds, x)
        # The radius is reduced by the largest rounding error of a sum.
        reach = x.reshape(len(x), -1).abs().amax(1).to(widest(x)) + eps
        self.radius = (eps - torch.finfo(x.dtype).eps * (x[0].numel() + 4) * reach).clamp_min(0)

    def random_point(self, generator: torch.Generator | None) -> Tensor:
        """Draw one point per sample, uniform in the ball, then clamped to the bounds."""
        at, dtype = self.centre, widest(self.centre)
        # A direction on the simplex has exponential coordinates; the last one is the distance from the surface.
        draws = torch.rand(len(at), at[0].numel() + 1, generator=generator, dtype=dtype, device=at.device)
        lengths = -torch.log1p(-draws)
        signs = torch.rand(len(at), at[0].numel(), generator=generator, dtype=dtype, device=at.device).sub_(0.5).sign_()
        move = self.radius[:, None] * signs * lengths[:, :-1] / lengths.sum(1, keepdim=True)
        return self.project(at + move.view_as(at).to(at.dtype))

    def step(self, point: Tensor, gradient: Tensor, size: Tensor, share: Tensor) -> Tensor:
        """Step by a total of ``size``, divided evenly among the ``share`` of coordinates with the largest gradients."""
        slopes = gradient.reshape(len(gradient), -1)
        count = (share * slopes.shape[1]).long().clamp(1, slopes.shape[1])
        least = slopes.abs().sort(1, descending=True).values.gather(1, count[:, None] - 1)
        direction = slopes.sign() * (slopes.abs() >= least)
        pace = size[:, None] / direction.abs().sum(1, keepdim=True).clamp_min(1)
        return self.project(point + (pace * direction).view_as(point).to(point.dtype))

    def project(self, point: Tensor) -> Tensor:
        """Return the nearest point of both ball and bounds."""
        low, high = self.bounds
        dtype, flat = widest(point), (len(point), -1)
        move = (point.to(dtype) - self.centre.to(dtype)).reshape(flat)
        centre = self.centre.to(dtype).reshape(flat)
        room = torch.where(move > 0, high - centre, centre - low)
        shrunk = (move.abs() - _threshold(move.abs(), room, self.radius)[:, None]).clamp_min(0)
        return (centre + move.sign() * shrunk).view_as(point).to(point.dtype).clamp_(low, high)


def _threshold(lengths: Tensor, room: Tensor, radius: Tensor) -> Tensor:
    """Return the smallest t >= 0 for which ``sum(clamp(lengths - t, 0, room))`` is at most the radius, by sample."""
    # The sum falls linearly in t between the edges at which a coordinate begins to shrink, or reaches zero.
    edges, order = torch.cat([lengths, lengths - room], 1).sort(1, descending=True)
    ones = torch.ones_like(lengths)
    slopes = torch.cat([ones, -ones], 1).gather(1, order).cumsum(1)
    rises = slopes[:, :-1] * (edges[:, :-1] - edges[:, 1:])
    sums = torch.cat([rises.new_zeros(len(rises), 1), rises.cumsum(1)], 1)
    last = ((sums <= radius[:, None]).sum(1, keepdim=True) - 1).clamp_min(0)
    edge, slope, spent = (each.gather(1, last)[:, 0] for each in (edges, slopes, sums))
    return (edge - (radius - spent) / slope.clamp_min(1)).clamp_min(0)


Ball: TypeAlias = LinfBall | L2Ball
BALLS: dict[Norm, type[Ball]] = {"linf": LinfBall, "l2": L2Ball}


def widest(x: Tensor) -> torch.dtype:
    """Return the widest floating dtype of the device of a tensor."""
    return x.dtype if x.device.type == "mps" else torch.float64
