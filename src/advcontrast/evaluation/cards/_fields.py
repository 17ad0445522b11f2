"""What may stand in each field of a result card.

A rule takes the name of a field and its value, and returns the value as plain data, or complains with the name.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from numbers import Integral, Real
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from ..._checks import check_bool, check_choice, check_int, check_real, complaint, type_name

OWNER = "ResultCard"
PARAMETERS = ("eps", "steps", "restarts")
_DEEPEST = 16
_Value = TypeVar("_Value")


class CurveRecord(NamedTuple):
    """Accuracies along a parameter of an attack, "eps", "steps" or "restarts"."""

    parameter: str
    values: tuple[float, ...]
    accuracies: tuple[float, ...]


class AlarmRecord(NamedTuple):
    """What a check for masked gradients concluded, why, and from which figures."""

    name: str
    raised: bool
    reason: str
    figures: Mapping[str, float | None]


def each(rule: Callable[[str, Any], _Value]) -> Callable[[str, Any], tuple[_Value, ...]]:
    """Return the rule for a sequence of such values."""

    def rule_of_all(name: str, value: Any) -> tuple[_Value, ...]:
        if isinstance(value, str) or not isinstance(value, Sequence):
            raise TypeError(complaint(OWNER, f"{name} to be a list", type_name(value), "Pass a list or a tuple"))
        return tuple(rule(f"{name}[{index}]", entry) for index, entry in enumerate(value))

    return rule_of_all


def named(rule: Callable[[str, Any], _Value]) -> Callable[[str, Any], dict[str, _Value]]:
    """Return the rule for a mapping of names to such values; it is sorted, as it is in the file."""

    def rule_of_all(name: str, value: Any) -> dict[str, _Value]:
        if not isinstance(value, Mapping):
            raise TypeError(complaint(OWNER, f"{name} to be a mapping", type_name(value), "Pass a dict"))
        keys = sorted(text(f"each name in {name}", key) for key in value)
        return {key: rule(f"{name}[{key!r}]", value[key]) for key in keys}

    return rule_of_all


def text(name: str, value: Any) -> str:
    """Allow a string that is not empty."""
    if not isinstance(value, str):
        raise TypeError(complaint(OWNER, f"{name} to be a string", type_name(value), "Pass a str"))
    if not value.strip():
        raise ValueError(complaint(OWNER, f"{name} to be a string that is not empty", repr(value), "Pass a few words"))
    return value


def matching(pattern: str, kind: str, remedy: str) -> Callable[[str, Any], str]:
    """Return the rule for a string of a certain form."""

    def rule(name: str, value: Any) -> str:
        if re.fullmatch(pattern, text(name, value)) is None:
            raise ValueError(complaint(OWNER, f"{name} to be {kind}", repr(value), remedy))
        return str(value)

    return rule


def optional(rule: Callable[[str, Any], _Value]) -> Callable[[str, Any], _Value | None]:
    """Return the rule for a value that may also be None."""
    return lambda name, value: None if value is None else rule(name, value)


def choice(*choices: str) -> Callable[[str, Any], str]:
    """Return the rule for one of a few strings."""

    def rule(name: str, value: Any) -> str:
        check_choice(OWNER, name, value, choices)
        return str(value)

    return rule


def branch(name: str, value: Any) -> str:
    """Allow the name of a branch of dual norms, or several of them joined by " and "."""
    # "and" is a keyword of Python, which no branch is called.
    if not all(part.isidentifier() for part in text(name, value).split(" and ")):
        raise ValueError(complaint(OWNER, f"{name} to be the name of a branch", repr(value), "Pass result.branch"))
    return str(value)


def seed(name: str, value: Any) -> int:
    """Allow what a generator can be seeded with."""
    check_int(OWNER, name, value, low=0, remedy="Pass the seeds that the runs were given")
    return int(plain(name, value))


def number(name: str, value: Any) -> float:
    """Allow a finite number."""
    check_real(OWNER, name, value, remedy="Leave out what could not be computed")
    return float(value)


def fraction(name: str, value: Any) -> float:
    """Allow a number in [0, 1]."""
    check_real(OWNER, name, value, low=0, high=1, remedy="Pass accuracies as fractions, not in percent")
    return float(value)


def plain(name: str, value: Any, depth: int = 0) -> Any:
    """Allow what JSON can hold; a dataclass, as attacks are, becomes its type and its fields."""
    if depth > _DEEPEST:
        raise ValueError(complaint(OWNER, f"{name} to nest at most {_DEEPEST} deep", "more", "Leave the rest out"))
    if value is None or isinstance(value, (str, bool)):
        return value
    if isinstance(value, Integral):
        if not -(2**63) <= int(value) < 2**64:
            raise ValueError(complaint(OWNER, f"{name} to be an int of 64 bits", "a larger one", "Pass it as a string"))
        return int(value)
    if isinstance(value, Real):
        return number(name, value)
    if is_dataclass(value) and not isinstance(value, type):
        entries = {field.name: getattr(value, field.name) for field in fields(value) if field.init}
        return plain(name, {"type": type(value).__name__, **entries}, depth)
    if isinstance(value, Mapping):
        return named(lambda key, entry: plain(key, entry, depth + 1))(name, value)
    if isinstance(value, (list, tuple)):
        return [plain(f"{name}[{index}]", entry, depth + 1) for index, entry in enumerate(value)]
    remedy = "Pass numbers, strings, lists and dicts of them, or a dataclass"
    raise TypeError(complaint(OWNER, f"{name} to be plain data", type_name(value), remedy))


def verdicts(name: str, value: Any) -> Tensor:
    """Allow a verdict on each sample; the card keeps a copy."""
    remedy = "Pass the .correct of an Accuracy"
    if not isinstance(value, Tensor) or value.dtype != torch.bool:
        raise TypeError(complaint(OWNER, f"{name} to be a torch.bool tensor", type_name(value), remedy))
    if value.dim() != 1 or not len(value):
        raise ValueError(complaint(OWNER, f"{name} of shape [N] with N >= 1", f"{list(value.shape)}", remedy))
    return value.detach().cpu().clone()


def correct(name: str, value: Any) -> Tensor:
    """Allow the result of an evaluation, and keep its verdicts."""
    return verdicts(name, _attributes(name, value, "correct")[0])


def curve(name: str, value: Any) -> CurveRecord:
    """Allow an object with parameter, values and accuracies."""
    parameter, values, accuracies = _attributes(name, value, "parameter", "values", "accuracies")
    values = each(number)(f"{name}.values", values)
    accuracies = each(fraction)(f"{name}.accuracies", accuracies)
    if not values or len(values) != len(accuracies):
        expected = f"{name} to have an accuracy for each of its values"
        got = f"{len(accuracies)} accuracies for {len(values)} values"
        raise ValueError(complaint(OWNER, expected, got, "Leave out a curve without points"))
    return CurveRecord(choice(*PARAMETERS)(f"{name}.parameter", parameter), values, accuracies)


def alarm(name: str, value: Any) -> AlarmRecord:
    """Allow an object with name, raised, reason and figures; a figure that is no number is noted as None."""
    title, raised, reason, figures = _attributes(name, value, "name", "raised", "reason", "figures")
    check_bool(OWNER, f"{name}.raised", raised, remedy="True means that something is wrong")
    if not isinstance(reason, str):
        raise TypeError(complaint(OWNER, f"{name}.reason to be a string", type_name(reason), "Pass a sentence"))
    figures = named(_figure)(f"{name}.figures", figures)
    return AlarmRecord(text(f"{name}.name", title), raised, reason, figures)


def _figure(name: str, value: Any) -> float | None:
    # What alarms are raised for may well compute to NaN, and must not keep the card from being written.
    return None if value is None or (isinstance(value, float) and not math.isfinite(value)) else number(name, value)


def check_runs(verdicts: Mapping[str, Sequence[Tensor]], seeds: Sequence[int]) -> None:
    """Require a verdict of each metric on the same images for each seed."""
    if not verdicts:
        raise ValueError(complaint(OWNER, "verdicts of at least one metric", "none", "Evaluate first"))
    if not seeds or len(set(seeds)) != len(seeds):
        raise ValueError(complaint(OWNER, "seeds that differ", f"{list(seeds)}", "Pass one seed for each run"))
    shapes = {metric: [len(one) for one in runs] for metric, runs in verdicts.items()}
    images = max(max(shape, default=0) for shape in shapes.values())
    for metric, shape in shapes.items():
        if shape != [images] * len(seeds):
            expected = f"verdicts[{metric!r}] on {images} images for each of {len(seeds)} seeds"
            remedy = "Evaluate all metrics on the same images with the same seeds"
            raise ValueError(complaint(OWNER, expected, f"{shape} images", remedy))


def check_order(verdicts: Mapping[str, Sequence[Tensor]], attacks: Mapping[str, Any]) -> None:
    """Require an attack behind each robust accuracy, that no attack helps, and that AutoAttack is the stronger one."""
    for metric in ("RA", "AA"):
        if metric in verdicts and not attacks.get(metric):
            remedy = f"Pass attacks={{{metric!r}: ...}} with all settings of the attack"
            raise ValueError(complaint(OWNER, f"attacks to describe {metric}", "nothing", remedy))
        for run, robust, clean in _side_by_side(verdicts, metric, "TA"):
            extra = int((robust & ~clean).sum())
            if extra:
                expected = f"verdicts[{metric!r}][{run}] to count only images that are right without the attack"
                remedy = "Combine both verdicts with &, as robust_accuracy does"
                raise ValueError(complaint(OWNER, expected, f"{extra} others", remedy))
    for run, auto, pgd in _side_by_side(verdicts, "AA", "RA"):
        if auto.sum() > pgd.sum():
            expected = f"verdicts['AA'][{run}] to be right at most as often as RA"
            remedy = "Count an image that either attack turned as not robust, or name one of the metrics otherwise"
            raise ValueError(complaint(OWNER, expected, f"{int(auto.sum())} to {int(pgd.sum())}", remedy))


def _side_by_side(
    verdicts: Mapping[str, Sequence[Tensor]], one: str, other: str
) -> Iterator[tuple[int, Tensor, Tensor]]:
    if one in verdicts and other in verdicts:
        for run, pair in enumerate(zip(verdicts[one], verdicts[other], strict=True)):
            yield run, *pair


def _attributes(name: str, value: Any, *names: str) -> list[Any]:
    missing = [attribute for attribute in names if not hasattr(value, attribute)]
    if missing:
        expected = f"{name} to have {', '.join(names)}"
        got = f"{type_name(value)} without {', '.join(missing)}"
        raise TypeError(complaint(OWNER, expected, got, "Pass the whole result"))
    return [getattr(value, attribute) for attribute in names]
