"""Robust accuracy as a function of one setting of the attack."""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from ..._checks import check_int, check_real, complaint, type_name
from ...attacks import ClassificationObjective
from ..inputs import check_steps, model_output, perturbed
from .measure import verdict, verdicts_on

_OWNER = "robust_curve"


@dataclass(frozen=True, eq=False)
class RobustCurve:
    """Result of :func:`robust_curve`.

    Attributes:
        parameter: the setting that was varied, ``"eps"``, ``"steps"`` or ``"restarts"``.
        values: its values, ascending.
        correct: whether each sample was still classified correctly at each value, bool ``[K, N]`` on the CPU.

    Example:
        >>> RobustCurve("eps", (0.0, 0.1), torch.tensor([[True, True], [False, True]])).accuracies
        (1.0, 0.5)
    """

    parameter: str
    values: tuple[float, ...]
    correct: Tensor

    @property
    def accuracies(self) -> tuple[float, ...]:
        """The fraction of samples classified correctly at each value, which never increases."""
        return tuple(count / self.correct.shape[1] for count in self.correct.sum(1).tolist())

    def __repr__(self) -> str:
        pairs = zip(self.values, self.accuracies, strict=True)
        points = ", ".join(f"{value:.4g}: {share:.2%}" for value, share in pairs)
        return f"RobustCurve({self.parameter} {points} of {self.correct.shape[1]})"


def robust_curve(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    attack: Callable[..., Tensor],
    *,
    eps: Sequence[float] | None = None,
    steps: Sequence[int] | None = None,
    restarts: Sequence[int] | None = None,
    generator: torch.Generator | None = None,
) -> RobustCurve:
    """Return which images a classifier classifies correctly for increasing values of one setting of an attack.

    An image that is broken at one value counts as broken at all larger ones, since a larger ball holds the smaller one.
    The curve therefore never rises, and only images that are still correct are attacked again, which synchronises with
    an accelerator once for each value and batch. An image counts only if it is correct without attack too; radius 0 is
    the clean accuracy. Along ``eps`` the step size, if the attack has one, keeps its ratio to the radius; along
    ``steps`` it is constant. Along ``restarts`` each value adds the missing runs to the earlier ones. Reference:
    Carlini et al., "On Evaluating Adversarial Robustness", 2019.

    Args:
        model: as for :func:`robust_accuracy`, and restored as there.
        batches: as for :func:`robust_accuracy`; iterated once.
        attack: a dataclass such as ``PGDAttack(...)`` that has the setting as a field.
        eps: radii, each at least 0, ascending.
        steps: numbers of steps, each at least 0, ascending.
        restarts: numbers of runs, each at least 1, ascending. Pass exactly one of ``eps``, ``steps`` and ``restarts``.
        generator: as for :func:`robust_accuracy`.

    Raises:
        ValueError: as for :func:`robust_accuracy`; not exactly one setting, values not ascending, or an attack with a
            step size and ``eps`` 0, whose ratio is undefined.
        TypeError: an argument has the wrong type.

    Example:
        The two pixels of an image differ by 0.8, 0.2, 0.6 and 0.6; an attack closes a difference of twice its radius.

        >>> from advcontrast import PGDAttack
        >>> images = torch.tensor([[0.9, 0.1], [0.4, 0.6], [0.8, 0.2], [0.2, 0.8]])
        >>> attack = PGDAttack(eps=0.1, step_size=0.1, steps=3)
        >>> curve = robust_curve(torch.nn.Flatten(), [(images, torch.tensor([0, 1, 0, 1]))], attack, eps=[0, 0.25, 0.5])
        >>> curve.accuracies
        (1.0, 0.75, 0.0)
    """
    parameter, values, attacks = _attacks(attack, eps=eps, steps=steps, restarts=restarts)

    def judge(x: Tensor, y: Tensor, logits: Tensor, source: torch.Generator) -> Iterator[Tensor]:
        found, objective = verdict(logits, y), ClassificationObjective(model, y)
        for stronger in attacks:
            right = (found == 1).nonzero()[:, 0]
            if stronger is not None and len(right):
                adv = perturbed(_OWNER, stronger, objective[right], x[right], source)
                found = found.index_copy(0, right, verdict(model_output(_OWNER, model, adv), y[right]))
            yield found

    return RobustCurve(parameter, values, verdicts_on(_OWNER, model, batches, judge, generator))


def check_fields(owner: str, attack: Any, *names: str) -> None:
    """Require a callable dataclass with fields of some names, which ``dataclasses.replace`` can vary."""
    known = {field.name for field in dataclasses.fields(attack)} if dataclasses.is_dataclass(attack) else set()
    if isinstance(attack, type) or not callable(attack) or not known.issuperset(names):
        expected = f"attack to be a callable dataclass with {' and '.join(names)}"
        got = f"the class {attack.__name__}" if isinstance(attack, type) else type_name(attack)
        raise TypeError(complaint(owner, expected, got, "Pass PGDAttack(...)"))


def with_radius(owner: str, attack: Any, eps: float) -> Any:
    """Return an attack of positive radius ``eps`` whose steps, if it has a step size, are as long in proportion."""
    if getattr(attack, "step_size", None) is None:
        return dataclasses.replace(attack, eps=eps)
    if not attack.eps > 0:
        raise ValueError(complaint(owner, "an attack with eps > 0", repr(attack.eps), "Its step size grows with eps"))
    return dataclasses.replace(attack, eps=eps, step_size=attack.step_size * (eps / attack.eps))


def _attacks(attack: Any, **settings: Sequence[Any] | None) -> tuple[str, tuple[Any, ...], list[Any]]:
    """Return the setting that was passed, its values, and the attack that each value adds, ``None`` for radius 0."""
    passed = {name: values for name, values in settings.items() if values is not None}
    if len(passed) != 1:
        got = " and ".join(passed) or "none"
        raise ValueError(complaint(_OWNER, f"exactly one of {', '.join(settings)}", got, "A curve varies one setting"))
    ((name, values),) = passed.items()
    remedy = f"Pass {name}=[...], such as {'[0, 0.1, 0.2]' if name == 'eps' else '[1, 2, 5]'}"
    if isinstance(values, str) or not isinstance(values, Sequence):
        raise TypeError(complaint(_OWNER, f"{name} to be a sequence of numbers", type_name(values), remedy))
    for value in values:
        if name == "eps":
            check_real(_OWNER, "each of eps", value, low=0, remedy=remedy)
        else:
            check_int(_OWNER, f"each of {name}", value, low=int(name == "restarts"), remedy=remedy)
    if not values or any(first >= second for first, second in pairwise(values)):
        raise ValueError(complaint(_OWNER, f"{name} to hold ascending, distinct values", repr(values), remedy))
    check_fields(_OWNER, attack, name)
    if name != "steps":
        check_steps(_OWNER, attack)
    if name == "eps":
        attacks = [with_radius(_OWNER, attack, float(value)) if value else None for value in values]
    else:
        added = values if name == "steps" else [after - before for before, after in pairwise((0, *values))]
        attacks = [dataclasses.replace(attack, **{name: value}) for value in added]
    return name, tuple(values), attacks
