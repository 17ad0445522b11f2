"""Learning-rate schedules: the factor of the peak rate as a function of the step alone.

A schedule has no state to save. Steps count from 0, and may be updates or epochs. Every schedule can be used as
``lr_lambda`` of :class:`torch.optim.lr_scheduler.LambdaLR`.
"""

import math
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass

from .._checks import check_int, check_real, check_type, complaint


@dataclass(frozen=True)
class WarmupCosine:
    r"""Linear warm-up to the peak, then half a cosine down to the floor.

    Step :math:`s` below ``warmup`` has the factor :math:`(s + 1) / \mathrm{warmup}`: the first step has a positive
    rate, and the last step of the warm-up the peak. From there the cosine falls to the floor, which it reaches at the
    last step; without a warm-up the first step has the peak. Later steps stay at the floor. Reference: Loshchilov and
    Hutter, "SGDR: Stochastic Gradient Descent with Warm Restarts", ICLR 2017.

    Args:
        steps: length of the training, at least 1.
        warmup: steps of the rise, at least 0, at most ``steps``.
        floor: last factor, in [0, 1].

    Raises:
        ValueError: a number is out of range.
        TypeError: an argument has the wrong type.

    Example:
        >>> schedule = WarmupCosine(7, warmup=3)
        >>> [round(schedule(step), 4) for step in range(7)]
        [0.3333, 0.6667, 1.0, 0.8536, 0.5, 0.1464, 0.0]
    """

    steps: int
    _: KW_ONLY
    warmup: int = 0
    floor: float = 0.0

    def __post_init__(self) -> None:
        owner = "WarmupCosine"
        check_int(owner, "steps", self.steps, low=1, remedy="Pass the length of the training")
        check_int(owner, "warmup", self.warmup, low=0, remedy="0 starts at the peak")
        check_real(owner, "floor", self.floor, low=0, high=1, remedy="Pass the fraction of the peak to end with")
        if self.warmup > self.steps:
            got = f"{self.warmup} of {self.steps} steps"
            raise ValueError(complaint(owner, "warmup <= steps", got, "Give both in the same unit"))

    def __call__(self, step: int) -> float:
        """Return the factor of the peak, in [0, 1], at a step, an int from 0."""
        check_int("WarmupCosine", "step", step, low=0, remedy="Steps count from 0")
        if step < self.warmup:
            return (step + 1) / self.warmup
        peak = max(self.warmup - 1, 0)
        progress = min((step - peak) / max(self.steps - 1 - peak, 1), 1.0)
        height = (1 + math.cos(math.pi * progress)) / 2
        return height + (1 - height) * self.floor


@dataclass(frozen=True)
class MultiStep:
    """Reduction by the same factor at every milestone.

    Args:
        milestones: first step of each lower factor, at least 1, in ascending order.
        gamma: factor of a drop, in (0, 1].

    Raises:
        ValueError: a number is out of range, or milestones that do not ascend.
        TypeError: an argument has the wrong type.

    Example:
        >>> schedule = MultiStep((15, 20), gamma=0.5)
        >>> [schedule(step) for step in (0, 14, 15, 19, 20)]
        [1.0, 1.0, 0.5, 0.5, 0.25]
    """

    milestones: Sequence[int]
    _: KW_ONLY
    gamma: float = 0.1

    def __post_init__(self) -> None:
        owner = "MultiStep"
        remedy = "Pass the first step of each lower rate, as in (15, 20)"
        check_type(owner, "milestones", self.milestones, (tuple, list), remedy=remedy)
        object.__setattr__(self, "milestones", tuple(self.milestones))
        for milestone in self.milestones:
            check_int(owner, "each of milestones", milestone, low=1, remedy=remedy)
        if list(self.milestones) != sorted(set(self.milestones)):
            raise ValueError(complaint(owner, "milestones in ascending order", repr(self.milestones), remedy))
        check_real(owner, "gamma", self.gamma, low=0, high=1, above=True, remedy="0.1 is usual")

    def __call__(self, step: int) -> float:
        """Return the factor of the peak, in (0, 1], at a step, an int from 0."""
        check_int("MultiStep", "step", step, low=0, remedy="Steps count from 0")
        return float(self.gamma ** sum(milestone <= step for milestone in self.milestones))
