"""Figures of ``quickstart.py``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import nn

from advcontrast.attacks import ClassificationObjective, under_attack
from advcontrast.evaluation.plots import plot_images
from tasks import Task

COLOURS = ("#7f7f7f", "#1f77b4", "#d62728")
SHOWN = 5  # images


def draw_results(results: Mapping[str, Any], encoders: Mapping[str, str], protocols: Mapping[str, str]) -> Figure:
    """Draw robust against standard accuracy: a small mark for each seed, a large one for their mean."""
    figure = Figure(figsize=(6, 4.5), layout="constrained")
    axes = figure.add_subplot()
    for (name, encoder), colour in zip(encoders.items(), COLOURS, strict=True):
        for (key, protocol), marker in zip(protocols.items(), "os", strict=True):
            ta, ra = (100 * torch.tensor(results[name][key][metric]) for metric in ("ta", "ra"))
            axes.scatter(ta, ra, s=14, marker=marker, color=colour, alpha=0.5, linewidths=0)
            axes.scatter(ta.mean(), ra.mean(), s=80, marker=marker, color=colour, label=f"{encoder}, {protocol}")
    axes.set(xlabel="accuracy on clean images, TA (%)", ylabel="accuracy under PGD-20, RA (%)", ylim=(0, None))
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    return figure


def draw_images(task: Task, models: Mapping[str, nn.Module]) -> Figure:
    """Draw test images, what the attack makes of them for each of two models, and the perturbations."""
    classes = task.test.y.unique()[:SHOWN]
    x, y = next(task.test.subset(torch.stack([(task.test.y == c).nonzero()[0, 0] for c in classes])).batches(SHOWN))
    adv, predicted = [], []
    for model in models.values():
        with under_attack(model), torch.no_grad():
            generator = torch.Generator(x.device).manual_seed(0)
            adv.append(task.attack(20)(ClassificationObjective(model, y), x, generator=generator))
            predicted.append(model(adv[-1]).argmax(1))
    rows = {"y": y.repeat(len(models)), "adv_predictions": torch.cat(predicted), "classes": task.test.classes}
    figure = plot_images(x.repeat(len(models), 1, 1, 1), torch.cat(adv), amplification=0.5 / task.eps, **rows)
    names = ", then ".join(models)
    figure.suptitle(f"predictions of fine-tuned classifiers under attack, eps = {task.eps:.3g}: {names}", fontsize=10)
    return figure
