"""The sets an attack may search: where it may start, how it steps, how it is kept inside."""

from __future__ import annotations

from typing import TypeAlias

import torch
from torch import Tensor

from .._types import Norm
from ..functional.projection import inward_bounds, linf_box, project_l2, sample_norm


class LinfBall:
    """All images within ``eps`` of ``x`` in every pixel, and within the bounds.

    Points are kept in the widest dtype of the device; rounded to the dtype of ``x`` they still lie inside.

    Args:
        x: the centres, ``[N, ...]``, float32 or float64.
        eps: radius, at least 0.
        bounds: smallest and largest pixel value.
    """

    def __init__(self, x: Tensor, eps: float, bounds: tuple[float, float]) -> None:
        self.centre = _widen(x)
        self.eps = eps
        lower, upper = linf_box(x, eps, bounds)
        self.lower, self.upper = _widen(lower), _widen(upper)

    def random_point(self, generator: torch.Generator | None) -> Tensor:
        """Draw one point per sample, uniform in the cube of side ``2 * eps``, then moved into the bounds."""
        noise = torch.rand(self.centre.shape, generator=generator, dtype=self.centre.dtype, device=self.centre.device)
        return self.project(self.centre + self.eps * (2 * noise - 1))

    def step(self, point: Tensor, gradient: Tensor, size: float) -> Tensor:
        """Go ``size`` in every pixel in the direction of steepest ascent."""
        return self.project(point + size * gradient.sign())

    def project(self, point: Tensor) -> Tensor:
        """Return the nearest point inside."""
        return point.clamp(self.lower, self.upper)


class L2Ball:
    """All images within Euclidean distance ``eps`` of ``x``, and within the bounds.

    Args:
        x: the centres, ``[N, ...]``, float32 or float64.
        eps: radius, at least 0.
        bounds: smallest and largest pixel value.
    """

    def __init__(self, x: Tensor, eps: float, bounds: tuple[float, float]) -> None:
        self.x = x
        self.centre = _widen(x)
        self.eps = eps
        self.bounds = inward_bounds(bounds, x)

    def random_point(self, generator: torch.Generator | None) -> Tensor:
        """Draw one point per sample, uniform in the ball, then moved into the bounds."""
        at = self.centre
        direction = torch.randn(at.shape, generator=generator, dtype=at.dtype, device=at.device)
        fraction = torch.rand(len(at), generator=generator, dtype=at.dtype, device=at.device)
        radius = self.eps * fraction ** (1 / at[0].numel())
        return self.step(at, direction, radius.view(-1, *[1] * (at.dim() - 1)))

    def step(self, point: Tensor, gradient: Tensor, size: float | Tensor) -> Tensor:
        """Go ``size`` in the direction of steepest ascent, sample by sample; stay where the gradient is zero."""
        gradient = gradient.to(point.dtype)
        length = sample_norm(gradient)
        return self.project(point + gradient * (size / length.masked_fill(length == 0, 1)))

    def project(self, point: Tensor) -> Tensor:
        """Return the nearest point of the ball, moved into the bounds; that can only bring it nearer to the centre."""
        return project_l2(point, self.x, self.eps).clamp(*self.bounds)


Ball: TypeAlias = LinfBall | L2Ball
BALLS: dict[Norm, type[Ball]] = {"linf": LinfBall, "l2": L2Ball}


def _widen(x: Tensor) -> Tensor:
    return x if x.device.type == "mps" else x.double()
