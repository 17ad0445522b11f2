"""Style of all figures, without the global state of pyplot."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..._checks import complaint

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# The palette of Okabe and Ito, ordered by contrast on white, and three more.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8C564B", "#7F7F7F", "#B5A900")


def canvas(owner: str, height: float) -> Figure:
    """Return an empty figure, 800 pixels wide; ``height`` is in inches."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        remedy = "Install it with pip install matplotlib"
        raise ImportError(complaint(owner, "matplotlib to be installed", "none", remedy)) from error
    return Figure(figsize=(8, height), dpi=100, layout="constrained")


def tidy(axes: Axes) -> None:
    """Draw thin axes on the left and at the bottom only, and a light grid behind the data."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[:].set_linewidth(0.6)
    axes.tick_params(width=0.6)
    axes.grid(axis="y", linewidth=0.5, alpha=0.4)


def finish(figure: Figure, axes: Axes) -> Figure:
    """Tidy the axes, draw the legend above them, and return the figure."""
    tidy(axes)
    handles, labels = axes.get_legend_handles_labels()
    columns = max(1, min(len(labels), 90 // (max(map(len, labels)) + 6)))
    figure.legend(handles, labels, loc="outside upper left", ncols=columns, frameon=False)
    return figure
