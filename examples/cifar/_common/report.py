"""Tables of result cards in Markdown, and the figure of the methods of pre-training at equal cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from statistics import fmean, stdev

from matplotlib.figure import Figure

from advcontrast.evaluation import ResultCard, markdown_table

from .paper_tables import METHODS, TAUGHT, TEACHER, Table

# The runs of a method, and the metrics of each: standard linear classifier, adversarial one, fine-tuning.
COLUMNS = {"": ("TA", "RA", "APGD"), "-linear": ("TA", "RA", "APGD"), "-few": ("TA", "RA", "APGD")}
TITLE = "Methods at equal cost: frozen with a standard and with an adversarial linear classifier, and fine-tuned"


def mean_of(runs: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Return the mean over the runs of each entry."""
    return {name: fmean(run[name] for run in runs) for name in runs[0]}


def paper_table(one: Table, cards: Mapping[str, Sequence[ResultCard]]) -> str:
    """Return a table in Markdown, with the paper's numbers beside those of the runs if the paper has any."""
    rows = [row for row in one.rows if row.run in cards]
    measured = markdown_table([joined(row.label, cards[row.run]) for row in rows]).splitlines()
    added = [["seeds", "paper TA", "paper RA"], ["---:"] * 3]
    for row in rows:
        numbers = ("" if number is None else f"{number:.2f}" for number in (row.ta, row.ra))
        added.append([str(len(cards[row.run])), *numbers])
    if all(row.ta is None for row in one.rows):
        added = [cells[:1] for cells in added]
    lines = [f"{line} {' | '.join(cells)} |" for line, cells in zip(measured, added, strict=True)]
    missing = "; ".join(row.label for row in one.rows if row not in rows)
    return "\n".join([f"## {one.title}", "", *lines, *(["", f"Not run: {missing}."] if missing else [])])


def joined(label: str, cards: Sequence[ResultCard]) -> ResultCard:
    """Return one card of the cards of several seeds."""
    right = [card.settings["training"].get("pseudo_label_accuracy") for card in cards]
    if None not in right:
        label += f" (pseudo-labels {100 * fmean(right):.1f})"
    verdicts = {metric: [card.verdicts[metric][0] for card in cards] for metric in cards[0].verdicts}
    return replace(cards[0], name=label, verdicts=verdicts, seeds=[card.seeds[0] for card in cards])


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


def draw_cost(cards: Mapping[str, Sequence[ResultCard]]) -> Figure:
    """Draw the robust accuracy of nearest neighbours against the cost; lines of methods with a teacher are dashed.

    S2S, DS and the three methods with the largest accuracy at the end have colours, the others are grey.
    """
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.add_subplot()
    found = {name: [card.settings for card in cards.get(f"methods-{name}", [])] for name in METHODS}
    found = {name: runs for name, runs in found.items() if runs}
    last = {name: fmean(run["training"]["knn_ra"][-1] for run in runs) for name, runs in found.items()}
    ascending = sorted(last, key=last.__getitem__)
    coloured = [*dict.fromkeys(["S2S", "DS", *ascending[-3:]])]
    height = 0.0
    for name in ascending:
        runs, flags = found[name], METHODS[name]
        passes, cost = runs[0]["flags"]["passes"], runs[0]["training"]["cost"]
        taught = flags.get("method") in TAUGHT
        spent = passes / (1 - TEACHER) * TEACHER if taught else 0.0
        mean = [100 * fmean(values) for values in zip(*(run["training"]["knn_ra"] for run in runs), strict=True)]
        costs = [spent + cost * epoch for epoch in range(1, len(mean) + 1)]
        style, label = "--" if taught else "-", str(flags.get("method", name))
        if name in coloured:
            axes.plot(costs, mean, f"C{coloured.index(name)}{style}", linewidth=2.2, label=label, zorder=3)
        else:
            axes.plot(costs, mean, f"k{style}", linewidth=1, alpha=0.35)
            height = max(mean[-1], height + 0.75)  # names must not overlap
            axes.annotate(label, (costs[-1], height), (4, 0), textcoords="offset points", fontsize=6, va="center")
    axes.set(xlabel="forward passes per image, teacher included", ylabel="nearest neighbours under PGD-10 (%)")
    axes.grid(alpha=0.3)
    axes.legend(loc=(0.4, 0.17), ncols=2)
    return figure
