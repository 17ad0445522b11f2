"""The Frank-Wolfe method on the L1 ball."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..._checks import check_bool, check_bounds, check_int, check_real, complaint
from ..._types import Objective
from ...attacks.pgd import ascent, check_call, explains_calls, value_of
from ...functional.projection import inward_bounds, per_sample

_OWNER = "FrankWolfeAttack"


@explains_calls
@dataclass(frozen=True, kw_only=True)
class FrankWolfeAttack:
    r"""Perturb a few pixels of each image so that an objective grows as much as possible: the L1 attack of UAR.

    The perturbation is a point of the L1 ball that keeps the image within the bounds. From a start, ``steps`` times

    .. math:: \delta_{k+1} = \delta_k + \frac{1}{k + 1} (s_k - \delta_k)

    for k from 0 on, with :math:`s_k` the point of this set that maximises the objective's linear approximation: the
    pixels with the largest gradient are pushed to the bounds, one after the other, until the budget is used up. The
    result is the mean of the :math:`s_k`. The budget of a sample is reduced by the largest rounding error of its
    pixels, 4e-4 for float32 CIFAR images, so that the L1 norm of the rounded perturbation does not exceed ``eps``.
    Models, modes and random states are treated as by ``PGDAttack``. Reference: Frank and Wolfe, "An algorithm for
    quadratic programming", Naval Research Logistics Quarterly 1956.

    Args:
        eps: radius of the ball, at least 0: the sum of the absolute changes of all values of an image in the units of
            the images. The paper, see :func:`~advcontrast.evaluation.uar`, counts in 0 to 255, and its program
            takes the mean over the pixels: 195 is 195/255 here and 0.0635 there, on CIFAR.
        steps: number of steps, at least 0; each costs one forward and one backward pass.
        random_start: whether to take the first gradient at a point drawn uniformly from the ball and clamped to the
            bounds, instead of at the image.
        bounds: smallest and largest pixel value, finite.
        minimize: whether to shrink the objective instead, for example the loss of a target class.

    Raises:
        ValueError: a number is out of range, or bounds that are infinite or not in order.
        TypeError: an argument has the wrong type.

    Example:
        Of a budget of 0.75, 0.5 turns the pixel of the largest weight white, and 0.25 darkens the next one.

        >>> attack = FrankWolfeAttack(eps=0.75, steps=1, random_start=False)
        >>> x = attack(lambda x: (x * torch.tensor([3.0, -2.0, 1.0])).sum(1), torch.tensor([[0.5, 0.5, 0.5]]))
        >>> [round(value, 4) for value in x[0].tolist()]
        [1.0, 0.25, 0.5]
    """

    eps: float = 1560 / 255
    steps: int = 10
    random_start: bool = True
    bounds: tuple[float, float] = (0.0, 1.0)
    minimize: bool = False

    def __post_init__(self) -> None:
        check_settings(_OWNER, self, remedy="For images in [0, 1] it is the sum of the absolute changes")
        check_bounds(_OWNER, self.bounds)
        if math.isinf(self.bounds[1] - self.bounds[0]):
            raise ValueError(complaint(_OWNER, "finite bounds", repr(self.bounds), "Images have (0.0, 1.0)"))

    def __call__(self, objective: Objective, x: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """Return adversarial versions of the images ``x``, ``[N, ...]`` inside the bounds.

        Arguments, result and errors are those of :class:`~advcontrast.PGDAttack`, without ``start``.
        """
        check_call(_OWNER, objective, x, generator, self.bounds)
        with torch.inference_mode(False), torch.enable_grad():
            x = x.detach().clone()
            if x.numel() == 0:
                return x
            low, high = inward_bounds(self.bounds, x)
            centre = (x if x.device.type == "mps" else x.double()).clamp(low, high)
            # Half of it is for rounding the result, the other half for the arithmetic.
            rounding = torch.finfo(x.dtype).eps * x[0].numel() * max(abs(low), abs(high))
            budget = max(self.eps - rounding, 0.0)
            point = (centre + budget * _l1_noise(centre, generator)).clamp(low, high) if self.random_start else centre

            def gain(image: Tensor) -> Tensor:
                value = value_of(_OWNER, objective, image, scalar=True)
                return -value if self.minimize else value

            for step in range(self.steps):
                _, slope = ascent(_OWNER, gain, point.to(x.dtype))
                room = torch.where(slope > 0, high - centre, centre - low)
                point = point + (centre + _steepest(slope, room, budget) - point) / (step + 1)
            return x.copy_(point.clamp(low, high))


def check_settings(owner: str, attack: Any, *, remedy: str) -> None:
    """Require valid values of the settings that the attacks of this package share; ``remedy`` is that of ``eps``."""
    check_real(owner, "eps", attack.eps, low=0, remedy=remedy)
    check_int(owner, "steps", attack.steps, low=0, remedy="Pass the number of gradient steps")
    check_bool(owner, "random_start", attack.random_start, remedy="False starts at the image itself")
    check_bool(owner, "minimize", attack.minimize, remedy="True makes the attack targeted")
    if getattr(attack, "step_size", None) is not None:
        check_real(owner, "step_size", attack.step_size, low=0, above=True, remedy="None stands for eps / sqrt(steps)")


def shared_settings(attack: Any) -> dict[str, Any]:
    """Return the settings to pass on to the attack that searches for the perturbation."""
    return {name: getattr(attack, name) for name in ("eps", "steps", "random_start", "minimize")}


def step_size(attack: Any) -> float:
    """Return the step size of an attack, by default that of Kang et al."""
    # A ball of radius zero needs a positive step too.
    return float(attack.step_size or attack.eps / math.sqrt(max(attack.steps, 1)) or 1.0)


def _steepest(slope: Tensor, room: Tensor, budget: float) -> Tensor:
    """Return the step of steepest ascent of L1 length ``budget``, and of at most ``room`` in every pixel."""
    order = slope.abs().reshape(len(slope), -1).argsort(dim=1, descending=True, stable=True)
    wanted = room.reshape(len(room), -1).gather(1, order)
    spent_before = wanted.cumsum(1) - wanted
    taken = torch.minimum(wanted, (budget - spent_before).clamp_min(0))
    return torch.zeros_like(taken).scatter(1, order, taken).reshape(slope.shape) * slope.sign()


def _l1_noise(like: Tensor, generator: torch.Generator | None) -> Tensor:
    """Draw a point for each sample, uniform in the L1 ball of radius 1 (Barthe et al., Annals of Probability 2005)."""
    size = torch.empty_like(like).exponential_(generator=generator)
    beyond = like.new_empty(len(like)).exponential_(generator=generator)
    side = torch.rand(like.shape, generator=generator, dtype=like.dtype, device=like.device) < 0.5
    total = size.reshape(len(like), -1).sum(1) + beyond
    return torch.where(side, size, -size) / per_sample(total, like)
