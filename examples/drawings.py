"""Figures of ``quickstart.py``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor, nn

from advcontrast.attacks import ClassificationObjective, under_attack
from tasks import Task

COLOURS = ("#9a9a9a", "#56b4e9", "#d55e00", "#009e73")
SHOWN = 6  # images


def draw_results(results: Mapping[str, Any], encoders: Mapping[str, str], protocols: Mapping[str, str]) -> Figure:
    """Draw the mean accuracies of each encoder, clean and under attack, as bars, and a dot for each seed."""
    figure = Figure(figsize=(6, 3.2), layout="constrained")
    panels = figure.subplots(1, len(protocols), sharey=True)
    for axes, (protocol, title) in zip(panels, protocols.items(), strict=True):
        for i, ((name, encoder), colour) in enumerate(zip(encoders.items(), COLOURS, strict=True)):
            values = 100 * torch.tensor([results[name][protocol][metric] for metric in ("ta", "ra")])
            places = [i * 0.22 - 0.33, i * 0.22 + 0.67]
            axes.bar(places, values.mean(1), 0.2, color=colour, label=encoder)
            for place, seeds in zip(places, values, strict=True):
                axes.text(place, seeds.max() + 2, f"{seeds.mean():.0f}", ha="center", fontsize=8)
                if len(seeds) > 1:
                    axes.plot([place] * len(seeds), seeds, ".", color="black", markersize=4, alpha=0.6)
        axes.set_xticks([0, 1], ["clean (TA)", "PGD-20 (RA)"])
        axes.set_title(title, fontsize=10)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set(ylabel="test accuracy (%)", ylim=(0, 100))
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)
    return figure


def draw_images(task: Task, models: Mapping[str, nn.Module]) -> Figure:
    """Draw the first test images on which only the second of two linear classifiers is correct under attack.

    Both models classify them correctly without an attack. Below each image are the image attacked against either model,
    with the prediction of that model, and the perturbation.
    """
    x, y = (torch.cat(parts) for parts in zip(*task.test.batches(500), strict=True))
    attacked = {name: _attack(task, model) for name, model in models.items()}
    right = torch.stack([clean == y for clean, _, _ in attacked.values()]).all(0)
    first, second = (right & (predicted == y) for _, predicted, _ in attacked.values())
    chosen = (second & ~first).nonzero()[:SHOWN, 0].tolist()
    figure = Figure(figsize=(6, 5.6), layout="constrained")
    grid = figure.subplots(1 + 2 * len(models), SHOWN)
    for axes in grid.flat:
        axes.axis("off")
    classes, drawn = task.test.classes, None
    for column, i in zip(grid.T, chosen, strict=False):
        _show(column[0], x[i], classes[y[i]])
        for row, (_, predicted, adv) in enumerate(attacked.values()):
            _show(column[1 + 2 * row], adv[i], classes[predicted[i]], wrong=bool(predicted[i] != y[i]))
            change = ((adv[i] - x[i]).mean(0) / task.eps).cpu()  # the mean over the colours
            drawn = column[2 + 2 * row].imshow(change, cmap="RdBu_r", vmin=-1, vmax=1, interpolation="nearest")
    names = ["clean", *(text for name in models for text in (f"{name},\nattacked", f"{name},\nchange"))]
    for axes, text in zip(grid[:, 0], names, strict=True):
        axes.text(-0.15, 0.5, text, transform=axes.transAxes, ha="right", va="center", fontsize=9)
    if drawn is not None:
        bar = figure.colorbar(drawn, ax=grid[2::2], location="right", shrink=0.6, ticks=[-1, 0, 1])
        bar.ax.set_yticklabels([f"-{task.eps:.3g}", "0", f"+{task.eps:.3g}"])
    a, b = models
    figure.suptitle(
        f"PGD-20 with eps {task.eps:.3g} on the {int(right.sum())} test images that both linear classifiers classify "
        f"correctly:\nonly {b} is still correct on {int((second & ~first).sum())} (the first {len(chosen)} are shown), "
        f"only {a} on {int((first & ~second).sum())}.",
        fontsize=9,
    )
    return figure


def _attack(task: Task, model: nn.Module) -> tuple[Tensor, Tensor, Tensor]:
    """Return the predictions for the test images, those for the attacked images, and these images."""
    parts = []
    with under_attack(model), torch.no_grad():
        generator = torch.Generator(task.test.x.device).manual_seed(0)
        for x, y in task.test.batches(500):
            adv = task.attack(20)(ClassificationObjective(model, y), x, generator=generator)
            parts.append((model(x).argmax(1), model(adv).argmax(1), adv))
    clean, predicted, adv = (torch.cat(part) for part in zip(*parts, strict=True))
    return clean, predicted, adv


def _show(axes: Axes, image: Tensor, text: str, *, wrong: bool = False) -> None:
    axes.imshow(image.permute(1, 2, 0).cpu(), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    axes.set_title(text, fontsize=7, color="#c00000" if wrong else "black", weight="bold" if wrong else "normal")
