"""Turn the cards of finished runs into tables and figures."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import matplotlib as mpl
from experiment import FRACTIONS
from recipes import FIGURES, TABLES, Row, Table

mpl.use("Agg")
import matplotlib.pyplot as plt

COLOURS = ("#7f7f7f", "#1f77b4", "#d62728")
HEAD = "| | TA | RA | seeds | paper TA | paper RA |\n| --- | --- | --- | --- | --- | --- |"


def write_report(out: Path, title: str) -> None:
    """Write ``tables.md`` and the figures of what has been run, and gather the cards in ``cards/``."""
    cards = _cards(out)
    (out / "cards").mkdir(parents=True, exist_ok=True)
    for name, folders in cards.items():
        for folder in folders:
            shutil.copy(folder / "card.json", out / "cards" / f"{name}-{folder.parent.name}.json")
    shown = {name: table for name, table in TABLES.items() if any(row.run in cards for row in table.rows)}
    measured = "Accuracy in percent on the test images, clean (TA) and under PGD-20 (RA)"
    parts = [f"# Tables of ACL: {title}", f"{measured}; mean ± standard deviation over the seeds."]
    parts += [_table(table, cards) for table in shown.values()]
    for name, draw in (("figure2", _draw_corruptions), ("figure3", _draw_curves)):
        runs = {label: cards[run] for label, run in FIGURES[name].items() if run in cards}
        if runs:
            _figure(out / f"{name}.png", runs, draw)
            parts.append(f"![{name}]({name}.png)")
    (out / "tables.md").write_text("\n\n".join(parts) + "\n")


def _cards(out: Path) -> dict[str, list[Path]]:
    """Return the folders of all finished runs, by the name of the run."""
    found: dict[str, list[Path]] = {}
    for path in sorted(out.glob("seed*/*/card.json")):
        if finished(path.parent):
            found.setdefault(path.parent.name, []).append(path.parent)
    return found


def finished(folder: Path) -> bool:
    """Tell whether the run in a folder is complete."""
    try:
        return bool(json.loads((folder / "card.json").read_text())["finished"])
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _results(folders: Sequence[Path]) -> list[dict[str, Any]]:
    """Return the accuracies of runs in percent."""
    cards = [json.loads((folder / "card.json").read_text()) for folder in folders]
    return [
        {name: value if value is None else _unit(card) * value for name, value in card["results"].items()}
        for card in cards
    ]


def _unit(card: dict[str, Any]) -> int:
    """Return the factor from the accuracies of a card to percent; earlier versions wrote percent."""
    return 100 if card.get("accuracies") == FRACTIONS else 1


def _table(table: Table, cards: dict[str, list[Path]]) -> str:
    lines = [f"## {table.title}", "", HEAD]
    pseudo = [_line(row, cards) for row in table.rows]
    return "\n".join([*lines, *pseudo])


def _line(row: Row, cards: dict[str, list[Path]]) -> str:
    results = _results(cards.get(row.run, []))
    measured = [_spread([entry[metric] for entry in results]) for metric in ("ta", "ra")]
    paper = ["" if value is None else f"{value:.2f}" for value in (row.ta, row.ra)]
    label = row.label
    if results and results[0].get("pseudo_label_accuracy") is not None:
        label += f" (pseudo-labels {_spread([entry['pseudo_label_accuracy'] for entry in results])})"
    return f"| {label} | {' | '.join([*measured, str(len(results)), *paper])} |"


def _spread(values: Sequence[float]) -> str:
    """Return "mean ± standard deviation", the latter only of several values."""
    if not values:
        return "not run"
    return f"{fmean(values):.1f} ± {stdev(values):.1f}" if len(values) > 1 else f"{values[0]:.1f}"


def _figure(path: Path, runs: dict[str, list[Path]], draw: Callable[[Any, dict[str, list[Path]]], None]) -> None:
    figure, axes = plt.subplots(figsize=(8, 4.5), layout="constrained")
    draw(axes, runs)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, ncols=len(runs), loc="lower left", bbox_to_anchor=(0, 1))
    figure.savefig(path, dpi=150)
    plt.close(figure)


def _draw_corruptions(axes: Any, runs: dict[str, list[Path]]) -> None:
    """Figure 2: accuracy under corruptions that no attack of the training has made."""
    means = {
        label: {name: fmean(r[name] for r in _results(folders)) for name in _results(folders)[0]}
        for label, folders in runs.items()
    }
    names = list(next(iter(means.values())))
    for i, (label, values) in enumerate(means.items()):
        places = [place + (i - (len(means) - 1) / 2) * 0.8 / len(means) for place in range(len(names))]
        axes.bar(places, [values[name] for name in names], 0.8 / len(means), label=label, color=COLOURS[i])
    axes.set_xticks(range(len(names)), [name.replace("_", "\n") for name in names], fontsize=8)
    axes.set_ylabel("accuracy (%)")


def _draw_curves(axes: Any, runs: dict[str, list[Path]]) -> None:
    """Figure 3: robust accuracy on the validation images while fine-tuning."""
    for i, (label, folders) in enumerate(runs.items()):
        curves = [_curve(folder / "metrics.csv") for folder in folders]
        epochs = [epoch for epoch in curves[0] if all(epoch in curve for curve in curves)]
        mean = [fmean(curve[epoch] for curve in curves) for epoch in epochs]
        axes.plot(epochs, mean, "o-", label=label, color=COLOURS[i], markersize=4)
        if len(curves) > 1:
            low, high = ([pick(curve[epoch] for curve in curves) for epoch in epochs] for pick in (min, max))
            axes.fill_between(epochs, low, high, color=COLOURS[i], alpha=0.15, linewidth=0)
    axes.set_xlim(0.5, epochs[-1] + 0.5)
    axes.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
    axes.set_xlabel("epoch of fine-tuning")
    axes.set_ylabel("RA on the validation images (%)")


def _curve(path: Path) -> dict[int, float]:
    unit = _unit(json.loads(path.with_name("card.json").read_text()))
    with path.open(newline="") as file:
        return {int(row["epoch"]): unit * float(row["val_ra"]) for row in csv.DictReader(file) if row.get("val_ra")}
