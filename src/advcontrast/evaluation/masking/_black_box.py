"""Attacks that look at the logits of a classifier only, to hold against those that follow its gradient."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from ..._types import Norm
from ...attacks import ClassificationObjective
from ...attacks.balls import BALLS


@dataclass(frozen=True, kw_only=True)
class BlackBox(ABC):
    """Random search for signs: in which direction each pixel goes, all of them as far as the ball reaches.

    The search climbs the margin by which another class wins, which tells more than the cross-entropy where a
    classifier is sure: there the latter is rounded to zero.

    Args:
        eps: radius of the ball.
        norm: ``"linf"``, where every pixel moves by ``eps``, or ``"l2"``, where all pixels move equally far.
        queries: number of directions tried, each one forward pass.
    """

    eps: float
    norm: Norm
    queries: int

    def __call__(
        self, objective: ClassificationObjective, x: Tensor, *, generator: torch.Generator | None = None
    ) -> Tensor:
        """Return for each image the best point that was found."""
        ball = BALLS[self.norm](x, self.eps, (0.0, 1.0))
        signs, best = torch.zeros_like(x), torch.full_like(objective.y, -torch.inf, dtype=torch.float32)
        for query in range(self.queries):
            proposal = self.propose(signs, query, generator)
            point = ball.step(ball.centre, proposal, self.eps).to(x.dtype)
            gain = margin(objective.logits(point), objective.y)
            better = gain > best
            best = torch.where(better, gain, best)
            signs = torch.where(better.view(-1, *[1] * (x.dim() - 1)), proposal, signs)
        return ball.step(ball.centre, signs, self.eps).to(x.dtype)

    @abstractmethod
    def propose(self, signs: Tensor, query: int, generator: torch.Generator | None) -> Tensor:
        """Return the signs to try next."""


@dataclass(frozen=True, kw_only=True)
class SignNoise(BlackBox):
    """Try signs that are all drawn anew."""

    queries: int = 50

    def propose(self, signs: Tensor, query: int, generator: torch.Generator | None) -> Tensor:  # noqa: ARG002
        """Return independent random signs."""
        return _random_signs(signs, signs.shape, generator)


@dataclass(frozen=True, kw_only=True)
class WindowSearch(BlackBox):
    """Give the pixels of a window one sign a channel and keep what helps, with windows that shrink.

    The idea is that of the square attack, without its tuning: networks react to patches far more than to pixel noise.

    References:
        Andriushchenko et al., "Square Attack: a query-efficient black-box adversarial attack via random search",
        ECCV 2020.
    """

    queries: int = 100

    def propose(self, signs: Tensor, query: int, generator: torch.Generator | None) -> Tensor:
        """Return the best signs so far, changed in one window; at first stripes."""
        grid = signs if signs.dim() == 4 else signs.flatten(1)[:, None, None]
        n, channels, height, width = grid.shape
        if query == 0:
            return _random_signs(grid, (n, channels, 1, width), generator).expand_as(grid).reshape(signs.shape)
        share = 0.5 * 0.04 ** (query / self.queries)
        rows = max(round(height * share**0.5), 1)
        columns = min(max(round(share * height * width / rows), 1), width)
        inside = _interval(grid, height, rows, generator)[:, None, :, None]
        inside = inside & _interval(grid, width, columns, generator)[:, None, None, :]
        return torch.where(inside, _random_signs(grid, (n, channels, 1, 1), generator), grid).reshape(signs.shape)


def margin(logits: Tensor, y: Tensor) -> Tensor:
    """Return how far the best other class is ahead of the true one, ``[N]``."""
    own = logits.gather(1, y[:, None])
    return (logits.scatter(1, y[:, None], -torch.inf).amax(1) - own[:, 0]).float()


def _random_signs(like: Tensor, shape: tuple[int, ...], generator: torch.Generator | None) -> Tensor:
    return 2 * torch.randint(2, shape, generator=generator, device=like.device).to(like.dtype) - 1


def _interval(like: Tensor, size: int, length: int, generator: torch.Generator | None) -> Tensor:
    """Return for each sample a random interval of ``length`` among ``size`` positions, bool ``[N, size]``."""
    start = torch.randint(size - length + 1, (len(like), 1), generator=generator, device=like.device)
    position = torch.arange(size, device=like.device)
    return (position >= start) & (position < start + length)
