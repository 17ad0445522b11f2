"""Attacks and losses that :func:`gradient_masking` compares with the attack of the user."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..._types import Norm, Objective
from ...attacks import ClassificationObjective
from ...attacks.balls import BALLS
from ...functional.projection import per_sample

_RANGE = 30.0  # of logits, from the smallest to the largest; usual for classifiers trained to convergence


def margin(logits: Tensor, y: Tensor) -> Tensor:
    """Return the largest logit of another class minus that of the true one, ``[N]``."""
    own = logits.gather(1, y[:, None])
    return (logits.scatter(1, y[:, None], -torch.inf).amax(1) - own[:, 0]).float()


def sign_search(
    objective: ClassificationObjective,
    x: Tensor,
    *,
    propose: Callable[[Tensor, float, torch.Generator | None], Tensor],
    queries: int,
    eps: float,
    norm: Norm,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Search for the signs of the strongest perturbation without gradients, with one forward pass per query.

    Every pixel moves as far as the ball reaches: by ``eps`` (``"linf"``), or all equally far (``"l2"``). ``propose``
    gets the best signs so far, those with the largest margin, the fraction of queries made and the generator.
    """
    ball = BALLS[norm](x, eps, (0.0, 1.0))
    signs, best = torch.zeros_like(x), torch.full_like(objective.y, -torch.inf, dtype=torch.float32)
    for query in range(queries):
        proposal = propose(signs, query / queries, generator)
        gain = margin(objective.logits(ball.step(ball.centre, proposal, eps).to(x.dtype)), objective.y)
        better = gain > best
        best = torch.where(better, gain, best)
        signs = torch.where(per_sample(better, x), proposal, signs)
    return ball.step(ball.centre, signs, eps).to(x.dtype)


def independent_signs(best: Tensor, done: float, generator: torch.Generator | None) -> Tensor:  # noqa: ARG001
    """Return independent random signs."""
    return _random_signs(best, best.shape, generator)


def window_signs(best: Tensor, done: float, generator: torch.Generator | None) -> Tensor:
    """Return the best signs with one random sign per channel in a random window, which shrinks; stripes at the start.

    A square attack without its tuning: networks react to patches far more than to pixel noise.

    References:
        Andriushchenko et al., "Square Attack: a query-efficient black-box adversarial attack via random search",
        ECCV 2020.
    """
    grid = best if best.dim() == 4 else best.flatten(1)[:, None, None]
    n, channels, height, width = grid.shape
    if done == 0:
        return _random_signs(grid, (n, channels, 1, width), generator).expand_as(grid).reshape(best.shape)
    share = 0.5 * 0.04**done
    window_height = max(round(height * share**0.5), 1)
    window_width = min(max(round(share * height * width / window_height), 1), width)
    inside = _interval(grid, height, window_height, generator)[:, None, :, None]
    inside = inside & _interval(grid, width, window_width, generator)[:, None, None, :]
    return torch.where(inside, _random_signs(grid, (n, channels, 1, 1), generator), grid).reshape(best.shape)


def _random_signs(like: Tensor, shape: tuple[int, ...], generator: torch.Generator | None) -> Tensor:
    return 2 * torch.randint(2, shape, generator=generator, device=like.device).to(like.dtype) - 1


def _interval(like: Tensor, size: int, length: int, generator: torch.Generator | None) -> Tensor:
    """Return for each sample a random interval of ``length`` among ``size`` positions, bool ``[N, size]``."""
    start = torch.randint(size - length + 1, (len(like), 1), generator=generator, device=like.device)
    position = torch.arange(size, device=like.device)
    return (position >= start) & (position < start + length)


def cross_entropy(objective: ClassificationObjective) -> Objective:
    """Return the objective itself."""
    return objective


def rescaled_cross_entropy(objective: ClassificationObjective) -> Objective:
    """Return the cross-entropy of logits that are scaled to the range ``_RANGE`` for each image."""

    def value(x: Tensor) -> Tensor:
        logits = objective.logits(x)
        spread = logits.amax(1, keepdim=True) - logits.amin(1, keepdim=True)
        scaled = _RANGE * logits / spread.masked_fill(spread == 0, 1)
        return F.cross_entropy(scaled, objective.y, reduction="none")

    return value


def normalised_margin(objective: ClassificationObjective) -> Objective:
    """Return the margin as an objective whose gradient is invariant to increasing functions of the logits.

    The gradients of the logit of the true class and of the strongest other one are scaled to length one. Their
    difference never has a negative inner product with the gradient of the margin.
    """

    def value(x: Tensor) -> Tensor:
        logits, y = objective.logits(x), objective.y
        difference = margin(logits, y)
        if not x.requires_grad:
            return difference
        rivals = logits.scatter(1, y[:, None], -torch.inf).argmax(1)
        # A second forward pass, as compiled networks free what the first backward pass used.
        gradient = _unit_gradient(logits, rivals, x) - _unit_gradient(objective.logits(x), y, x)
        linear = (gradient * x).flatten(1).sum(1)
        return difference.detach() + (linear - linear.detach())

    return value


def _unit_gradient(logits: Tensor, classes: Tensor, x: Tensor) -> Tensor:
    """Return the gradient of one logit of each image, scaled to length one; zero stays zero."""
    # Scale the backward pass to a spread of one, so that logits of any size give a gradient.
    spread = logits.detach().amax(1) - logits.detach().amin(1)
    scale = (1 / spread).clamp(max=torch.finfo(spread.dtype).max ** 0.5)
    with torch.autocast(x.device.type, enabled=False):
        (slope,) = torch.autograd.grad(logits.gather(1, classes[:, None])[:, 0], x, scale)
    # Two divisions, as the square of a tiny gradient is zero.
    slope = slope / per_sample(slope.flatten(1).abs().amax(1).clamp(min=torch.finfo(slope.dtype).tiny), slope)
    return slope / per_sample(slope.flatten(1).norm(dim=1).clamp(min=1), slope)


def with_finite_gradient(model: nn.Module) -> Callable[[Tensor], Tensor]:
    """Return a model whose gradient is zero where it has none or one that is not finite."""

    def logits(x: Tensor) -> Tensor:
        x = x.clone()
        if x.requires_grad:
            x.register_hook(lambda gradient: gradient.nan_to_num(0.0, 0.0, 0.0))  # type: ignore[no-untyped-call]
        output: Tensor = model(x)
        return output + (0 * x.flatten(1).sum(1, keepdim=True)).to(output.dtype)

    return logits
