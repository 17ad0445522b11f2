"""Figures of accuracies, 800 pixels wide, in colours that most colour-blind readers can distinguish."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from ..._checks import check_choice, check_real, complaint, type_name
from ..accuracy import RobustCurve
from ..cards import CurveRecord
from ._canvas import COLOURS, canvas, finish

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MARKERS = "os^DvP*X<>"
_LABELS = {"eps": "radius of the attack", "steps": "steps of the attack", "restarts": "restarts of the attack"}


def plot_curves(curves: Mapping[str, RobustCurve | CurveRecord]) -> Figure:
    """Draw accuracy against the radius, in 1/255 if all fit, or on a logarithmic axis against the steps or restarts.

    Args:
        curves: by label, all along the same parameter. With eps, the point at 0 is the clean accuracy.

    Raises:
        ValueError: no curve, different parameters, or accuracies outside [0, 1].
        TypeError: an argument has the wrong type.
        ImportError: matplotlib is not installed.
    """
    owner = "plot_curves"
    _check_labels(owner, "curves", curves, most=len(COLOURS))
    for label, curve in curves.items():
        if not all(hasattr(curve, name) for name in ("parameter", "values", "accuracies")):
            expected = f"curves[{label!r}] with parameter, values and accuracies"
            raise TypeError(complaint(owner, expected, type_name(curve), "Pass what robust_curve returned"))
        _check_fractions(owner, f"curves[{label!r}].accuracies", curve.accuracies)
        if not 1 <= len(curve.values) == len(curve.accuracies):
            got = f"{len(curve.accuracies)} for {len(curve.values)} values"
            raise ValueError(complaint(owner, f"curves[{label!r}] with an accuracy for each value", got, "Pass both"))
    parameters = sorted({curve.parameter for curve in curves.values()})
    if len(parameters) > 1:
        got = ", ".join(parameters)
        raise ValueError(complaint(owner, "curves along one parameter", got, "Draw a figure for each"))
    check_choice(owner, "parameter", parameters[0], tuple(_LABELS))

    points = sorted({float(value) for curve in curves.values() for value in curve.values})
    unit = 255 if parameters[0] == "eps" and all(abs(255 * p - round(255 * p)) < 1e-6 for p in points) else 1
    figure = canvas(owner, 4.5)
    axes = figure.add_subplot()
    for index, (label, curve) in enumerate(curves.items()):
        x, y = [unit * value for value in curve.values], [100 * value for value in curve.accuracies]
        axes.plot(x, y, color=COLOURS[index], marker=_MARKERS[index], markersize=5, label=label, clip_on=False)
    ticks = [unit * point for point in points]
    if parameters[0] != "eps":
        axes.set_xscale("symlog", linthresh=1)
        axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axes.set_xticks([], minor=True)
    elif all(right - left > (ticks[-1] - ticks[0]) / 40 for left, right in pairwise(ticks)):
        axes.set_xticks(ticks, [f"{tick:.4g}" for tick in ticks])
    axes.set(xlabel=_LABELS[parameters[0]] + (", in 1/255" if unit > 1 else ""), ylabel="accuracy (%)", ylim=(0, 100))
    return finish(figure, axes)


def plot_corruptions(accuracies: Mapping[str, Mapping[str, float]]) -> Figure:
    """Draw a group of bars for each corruption, from the easiest to the hardest, with the mean in the legend.

    Args:
        accuracies: for each label the accuracy under each corruption, in [0, 1].

    Raises:
        ValueError: there is nothing to draw, or an accuracy is outside [0, 1].
        TypeError: an argument has the wrong type.
        ImportError: matplotlib is not installed.
    """
    owner = "plot_corruptions"
    _check_labels(owner, "accuracies", accuracies, most=len(COLOURS))
    for label, found in accuracies.items():
        _check_labels(owner, f"accuracies[{label!r}]", found, most=40)
        _check_fractions(owner, f"accuracies[{label!r}]", list(found.values()))

    values: dict[str, list[float]] = {}
    for found in accuracies.values():
        for name, value in found.items():
            values.setdefault(name, []).append(value)
    names = sorted(values, key=lambda name: (-sum(values[name]) / len(values[name]), name))
    width = 0.8 / len(accuracies)
    figure = canvas(owner, 4.5)
    axes = figure.add_subplot()
    for index, (label, found) in enumerate(accuracies.items()):
        shown = [place for place, name in enumerate(names) if name in found]
        heights = [100 * found[names[place]] for place in shown]
        centres = [place + (index + 0.5) * width - 0.4 for place in shown]
        mean = sum(heights) / len(heights)
        axes.bar(centres, heights, 0.92 * width, color=COLOURS[index], label=f"{label} (mean {mean:.1f})")
    axes.set_xticks(range(len(names)), [name.replace("_", " ") for name in names], rotation=45, ha="right")
    axes.set_xticks([], minor=True)
    axes.tick_params(axis="x", length=0)
    axes.set(ylabel="accuracy (%)", ylim=(0, 100), xlim=(-0.6, len(names) - 0.4))
    axes.set_axisbelow(True)
    return finish(figure, axes)


def _check_labels(owner: str, name: str, value: Any, *, most: int) -> None:
    if not isinstance(value, Mapping) or not all(isinstance(label, str) for label in value):
        raise TypeError(complaint(owner, f"{name} to be a mapping of labels", type_name(value), "Pass a dict"))
    if not 1 <= len(value) <= most:
        raise ValueError(complaint(owner, f"{name} to hold 1 to {most} labels", f"{len(value)}", "Choose a few"))


def _check_fractions(owner: str, name: str, values: Sequence[float]) -> None:
    for value in values:
        check_real(owner, f"each of {name}", value, low=0, high=1, remedy="Pass fractions, not percent")
