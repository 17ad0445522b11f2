"""Figures of the scripts."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean

import torch
from matplotlib.figure import Figure
from torch import nn

from advcontrast import PGDAttack, bn_branch
from advcontrast.attacks import ClassificationObjective, under_attack
from advcontrast.evaluation.plots import plot_branches, plot_images

from .load_models import BATCH, Classifier

COLOURS = ("#7f7f7f", "#1f77b4", "#d62728")


def draw_images(one: Classifier, attack: PGDAttack) -> Figure:
    """Draw an image of each class, the same image attacked, and the difference."""
    chosen = [int((one.images.y == label).nonzero()[0, 0]) for label in one.images.y.unique().tolist()[:8]]
    x, y = next(one.images.subset(torch.tensor(chosen)).batches(len(chosen)))
    with under_attack(one.model), torch.no_grad():
        adv = attack(ClassificationObjective(one.model, y), x, generator=torch.Generator(x.device).manual_seed(0))
        before, after = one.model(x).argmax(1), one.model(adv).argmax(1)
    return plot_images(x, adv, y=y, clean_predictions=before, adv_predictions=after, classes=one.images.classes)


def draw_branches(dual: nn.Module, one: Classifier, most: int) -> Figure:
    """Draw the features of images through both branches in one plane."""
    x, y = (torch.cat(parts) for parts in zip(*one.batches(most), strict=True))
    features = []
    for branch in ("clean", "adv"):
        with bn_branch(dual, branch), torch.no_grad():
            features.append(torch.cat([dual(part) for part in x.split(BATCH)]))
    return plot_branches(*features, y, classes=one.images.classes)


def draw_fine_tuning(runs: Mapping[str, Sequence[Path]]) -> Figure:
    """Draw the robust accuracy on the validation images while fine-tuning (Figure 3).

    Args:
        runs: by label, the folders of a run with several seeds; their mean is drawn, and the range between them.
    """
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.add_subplot()
    for (label, folders), colour in zip(runs.items(), COLOURS, strict=False):
        curves = [validation_curve(folder / "metrics.csv") for folder in folders]
        epochs = [epoch for epoch in curves[0] if all(epoch in curve for curve in curves)]
        values = [[100 * curve[epoch] for curve in curves] for epoch in epochs]
        axes.plot(epochs, list(map(fmean, values)), "o-", label=label, color=colour, markersize=4)
        axes.fill_between(epochs, list(map(min, values)), list(map(max, values)), color=colour, alpha=0.15, linewidth=0)
    axes.set(xlabel="epoch of fine-tuning", ylabel="RA on the validation images (%)")
    axes.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, ncols=len(runs), loc="lower left", bbox_to_anchor=(0, 1))
    return figure


def validation_curve(path: Path) -> dict[int, float]:
    """Return the robust accuracy on the validation images by epoch; the table has it for some epochs only."""
    with path.open(newline="") as file:
        return {int(row["epoch"]): float(row["val_ra"]) for row in csv.DictReader(file) if row.get("val_ra")}
