"""Table and figure of the methods of pre-training at equal cost."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev

from matplotlib.figure import Figure

from advcontrast.evaluation import ResultCard

from .paper_tables import METHODS, TAUGHT, TEACHER

# The runs of a method, and the metrics of each: standard linear classifier, adversarial one, fine-tuning.
COLUMNS = {"": ("TA", "RA"), "-linear": ("TA", "RA", "APGD"), "-few": ("TA", "RA", "APGD")}
TITLE = "Methods at equal cost: frozen with a standard and with an adversarial linear classifier, and fine-tuned"


def methods_table(cards: Mapping[str, Sequence[ResultCard]]) -> str:
    """Return the table in Markdown, in percent, mean and standard deviation over the seeds."""
    head = [
        "method",
        *(f"{run.lstrip('-') or 'linear, standard'} {m}" for run, metrics in COLUMNS.items() for m in metrics),
    ]
    lines = [f"| {' | '.join([*head, 'seeds'])} |", f"| --- |{' ---: |' * len(head)}"]
    for name in METHODS:
        runs = {run: cards.get(f"methods-{name}{run}", []) for run in COLUMNS}
        if any(runs.values()):
            cells = [percent(runs[run], metric) for run, metrics in COLUMNS.items() for metric in metrics]
            lines.append(f"| {name} | {' | '.join(cells)} | {len(runs[''])} |")
    return "\n".join([f"## {TITLE}", "", *lines])


def percent(cards: Sequence[ResultCard], metric: str) -> str:
    """Return mean and standard deviation of a metric over the cards of several seeds."""
    values = [100 * card.results[metric].accuracies[0] for card in cards if metric in card.results]
    if not values:
        return ""
    return f"{fmean(values):.1f}" + (f" ± {stdev(values):.1f}" if len(values) > 1 else "")


def draw_cost(out: Path, cards: Mapping[str, Sequence[ResultCard]]) -> Figure | None:
    """Draw the robust accuracy of nearest neighbours during training against the cost, teacher included."""
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.add_subplot()
    for name, flags in METHODS.items():
        curves = []
        for path in sorted(out.glob(f"seed*/methods-{name}/metrics.csv")):
            with path.open(newline="") as file:
                curves.append([float(row["knn_ra"]) for row in csv.DictReader(file) if row.get("knn_ra")])
        if not curves or f"methods-{name}" not in cards:
            continue
        settings = cards[f"methods-{name}"][0].settings
        taught = flags.get("method") in TAUGHT
        passes, cost = settings["flags"]["passes"], settings["training"]["cost"]
        spent = passes / (1 - TEACHER) * TEACHER if taught else 0.0
        mean = [100 * fmean(values) for values in zip(*curves, strict=False)]
        axes.plot([spent + cost * epoch for epoch in range(1, len(mean) + 1)], mean, label=name)
    if not axes.lines:
        return None
    axes.set(xlabel="forward passes per image, teacher included", ylabel="nearest neighbours under PGD-10 (%)")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, ncols=2)
    return figure
