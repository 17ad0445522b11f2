"""An attack that grows stronger as training goes on."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn

from .._checks import check_int, complaint, type_name
from .._types import Objective
from .ascent import explains_calls

_OWNER = "ProgressiveAttack"


@explains_calls
class ProgressiveAttack(nn.Module):
    """Several attacks, each for so many calls, and the last one for ever.

    A network that has learned little is fooled by an attack of one step; more steps pay off later. Every call counts,
    of which training makes one a step. The count is kept in the state dict, so that a resumed training goes on with the
    right attack.

    Args:
        stages: pairs (calls, attack): an attack, and how many calls it serves, at least 1; of the last one ``None``.

    Raises:
        ValueError: there are no stages, or a number of calls is missing or out of its range.
        TypeError: an argument of the wrong kind.

    Example:
        >>> from advcontrast.attacks import ProgressiveAttack
        >>> few, more = (PGDAttack(eps=1, step_size=0.25, steps=steps, random_start=False) for steps in (1, 2))
        >>> attack, x = ProgressiveAttack([(2, few), (None, more)]), torch.zeros(1, 1)
        >>> [round(attack(lambda x: x.sum(1), x).item(), 4) for _ in range(4)]
        [0.25, 0.25, 0.5, 0.5]
    """

    def __init__(self, stages: Sequence[tuple[int | None, Callable[..., Tensor]]]) -> None:
        remedy = "Pass pairs such as [(1000, PGDAttack(steps=1)), (None, PGDAttack(steps=5))]"
        if not isinstance(stages, (list, tuple)):
            raise TypeError(complaint(_OWNER, "stages to be a list of pairs", type_name(stages), remedy))
        if not stages:
            raise ValueError(complaint(_OWNER, "at least one stage", "none", remedy))
        for stage in stages:
            if not isinstance(stage, tuple) or len(stage) != 2 or not callable(stage[1]):
                raise TypeError(complaint(_OWNER, "each stage to be a pair (calls, attack)", repr(stage), remedy))
        for calls, _ in stages[:-1]:
            check_int(_OWNER, "calls of every stage but the last", calls, low=1, remedy=remedy)
        if stages[-1][0] is not None:
            raise ValueError(complaint(_OWNER, "None calls of the last stage", repr(stages[-1][0]), remedy))
        super().__init__()
        self.stages: tuple[tuple[int | None, Callable[..., Tensor]], ...] = tuple(stages)
        self._parts = nn.ModuleList(attack for _, attack in stages if isinstance(attack, nn.Module))
        self._ends = list(accumulate(calls for calls, _ in stages if calls is not None))
        self._calls = 0

    @property
    def current(self) -> Callable[..., Tensor]:
        """The attack that the next call makes."""
        _, attack = self.stages[bisect_right(self._ends, self._calls)]
        return attack

    def forward(self, objective: Objective, x: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """Return what the current attack makes of the images ``x``; arguments and errors are its own."""
        adv = self.current(objective, x, **({} if generator is None else {"generator": generator}))
        self._calls += 1
        return adv

    def get_extra_state(self) -> dict[str, int]:
        """Return the number of calls for the state dict."""
        return {"calls": self._calls}

    def set_extra_state(self, state: dict[str, int]) -> None:
        """Take the number of calls of a state dict."""
        calls: Any = state.get("calls") if isinstance(state, dict) else None
        check_int("ProgressiveAttack", "calls of the state", calls, low=0, remedy="Pass what get_extra_state returned")
        self._calls = calls

    def extra_repr(self) -> str:
        """Show the stages as they were passed."""
        return repr(list(self.stages))
