"""Figures of images and features: each function returns a ``matplotlib.figure.Figure``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..._checks import check_finite, check_real, check_shape, check_tensor, check_within, complaint, type_name
from ._canvas import COLOURS, canvas, tidy

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MOST_IMAGES, _MOST_CLASSES = 10, 20


def plot_images(
    clean: Tensor,
    adv: Tensor,
    *,
    y: Tensor | None = None,
    clean_predictions: Tensor | None = None,
    adv_predictions: Tensor | None = None,
    classes: Sequence[str] | None = None,
    amplification: float | None = None,
) -> Figure:
    """Draw images, the perturbed images, and their difference, amplified around gray.

    Args:
        clean: images ``[N, 1, H, W]`` or ``[N, 3, H, W]`` in [0, 1], at most 10.
        adv: the perturbed images, of the same shape.
        y: their classes, int64 ``[N]``; a prediction of another class is printed in bold orange.
        clean_predictions: predicted classes of the images, int64 ``[N]``.
        adv_predictions: predicted classes of the perturbed images.
        classes: names of the classes; by default their numbers are printed.
        amplification: positive factor for the difference; by default one that uses the whole range from black to white.

    Raises:
        ValueError: shapes do not fit, or values are out of range.
        TypeError: an argument has the wrong type.
        ImportError: matplotlib is not installed.
    """
    owner = "plot_images"
    for name, images in (("clean", clean), ("adv", adv)):
        check_tensor(owner, name, images, remedy="Convert 8-bit images with images.float() / 255")
        fits = images.dim() == 4 and images.shape[1] in (1, 3) and 1 <= len(images) <= _MOST_IMAGES
        check_shape(owner, name, images, f"[1 to {_MOST_IMAGES}, 1 or 3, H, W]", fits, remedy="Choose a few images")
        check_within(owner, name, images, (0.0, 1.0), remedy="Pass raw images, before normalisation")
    check_shape(owner, "adv", adv, f"{list(clean.shape)}", clean.shape == adv.shape, remedy="Pass matching images")
    truth, *guesses = (
        [""] * len(clean) if labels is None else _names(owner, name, labels, len(clean), classes)
        for name, labels in (("y", y), ("clean_predictions", clean_predictions), ("adv_predictions", adv_predictions))
    )
    difference = (adv - clean).detach().cpu().float()
    if amplification is None:
        largest = float(difference.abs().max())
        amplification = 0.5 / largest if largest else 1.0
    check_real(owner, "amplification", amplification, low=0, above=True, remedy="10 is a usual factor")

    count = len(clean)
    figure = canvas(owner, 3 * min(1.7, 7.6 / count) + 0.9)
    grid = figure.subplots(3, count, squeeze=False)
    rows = (
        ("clean", clean, truth if clean_predictions is None else guesses[0]),
        ("perturbed", adv, guesses[1]),
        (f"difference\n{amplification:.3g}-fold", (0.5 + amplification * difference).clamp(0, 1), [""] * count),
    )
    for cells, (title, images, texts) in zip(grid, rows, strict=True):
        cells[0].set_ylabel(title, fontsize=9)
        for axes, image, text, right in zip(cells, images.detach().cpu().float(), texts, truth, strict=True):
            axes.imshow(image.permute(1, 2, 0).numpy(), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
            wrong = "" not in (text, right) and text != right
            colour, weight = (COLOURS[1], "bold") if wrong else ("black", "normal")
            axes.set_title(text, fontsize=8, color=colour, weight=weight)
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set_visible(False)
    return figure


def plot_branches(
    clean_features: Tensor, adv_features: Tensor, y: Tensor, *, classes: Sequence[str] | None = None
) -> Figure:
    """Draw the features of both branches in the plane of their two common principal components, one panel each.

    Args:
        clean_features: features of images through the branch "clean", ``[N, D]`` with D >= 2.
        adv_features: features of the same images, or of their perturbed versions, through the branch "adv".
        y: classes of the images, int64 ``[N]``, at most 20 different ones.
        classes: names of the classes; by default their numbers.

    Raises:
        ValueError: shapes do not fit, or features are not finite.
        TypeError: an argument has the wrong type.
        ImportError: matplotlib is not installed.
    """
    owner = "plot_branches"
    remedy = "Pass the features of the same images through each branch"
    for name, features in (("clean_features", clean_features), ("adv_features", adv_features)):
        check_tensor(owner, name, features, remedy=remedy)
        fits = features.dim() == 2 and len(features) > 0 and features.shape[1] > 1
        check_shape(owner, name, features, "[N, D] with D >= 2", fits, remedy=remedy)
        check_finite(owner, name, features, remedy=remedy)
    same = clean_features.shape == adv_features.shape
    check_shape(owner, "adv_features", adv_features, f"{list(clean_features.shape)}", same, remedy=remedy)
    texts = _names(owner, "y", y, len(clean_features), classes)
    shown = list(dict.fromkeys(texts[i] for i in y.argsort(stable=True).tolist()))
    if len(shown) > _MOST_CLASSES:
        raise ValueError(complaint(owner, f"y with at most {_MOST_CLASSES} classes", f"{len(shown)}", "Choose a few"))

    features = torch.cat([clean_features, adv_features]).detach().cpu().double()
    centred = features - features.mean(0)
    _, deviations, directions = torch.linalg.svd(centred, full_matrices=False)
    # The sign of a direction is arbitrary: make its largest entry positive, so that figures are reproducible.
    largest = directions.gather(1, directions.abs().argmax(1, keepdim=True))
    points = centred @ (directions * largest.sign())[:2].T
    variances = deviations.square()
    shares = (variances[:2] / variances.sum().clamp(min=torch.finfo(torch.float64).tiny)).tolist()
    figure = canvas(owner, 4.2)
    panels = figure.subplots(1, 2, sharex=True, sharey=True)
    for axes, title, part in zip(panels, ("branch clean", "branch adv"), points.chunk(2), strict=True):
        for index, text in enumerate(shown):
            xs, ys = part[[found == text for found in texts]].T.tolist()
            marker = "o" if index < len(COLOURS) else "^"
            axes.scatter(xs, ys, s=9, color=COLOURS[index % 10], marker=marker, alpha=0.7, linewidths=0, label=text)
        axes.set_title(title, fontsize=10)
        axes.set_xlabel(f"component 1 ({shares[0]:.0%} of variance)")
        tidy(axes)
    panels[0].set_ylabel(f"component 2 ({shares[1]:.0%} of variance)")
    columns = 1 + (len(shown) > len(COLOURS))
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center", ncols=columns, frameon=False, markerscale=2)
    return figure


def _names(owner: str, name: str, labels: Tensor, count: int, classes: Sequence[str] | None) -> list[str]:
    """Return the name of the class of each image."""
    remedy = "Pass one class index per image"
    check_tensor(owner, name, labels, (torch.int64,), remedy=remedy)
    check_shape(owner, name, labels, f"[{count}]", labels.shape == (count,), remedy=remedy)
    if classes is None:
        return [str(label) for label in labels.tolist()]
    if not isinstance(classes, (tuple, list)) or not all(isinstance(each, str) for each in classes):
        raise TypeError(complaint(owner, "classes to be a list of names", type_name(classes), "Pass data.classes"))
    check_within(owner, name, labels.cpu(), (0, len(classes) - 1), remedy=f"There are {len(classes)} names of classes")
    return [classes[label] for label in labels.tolist()]
