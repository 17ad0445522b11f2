"""Draw what single components do: where a dual norm sits, what NT-Xent compares, how PGD stays in its ball."""

from __future__ import annotations

from figures import WIDTH, arrow, pill
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Circle, Rectangle


def canvas(height: float, width: float = WIDTH) -> tuple[Figure, Axes]:
    """Return a figure whose units are points, without axes."""
    figure = Figure(figsize=(width / 72, height / 72))
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, width), ylim=(0, height))
    axes.set_aspect("equal")
    axes.axis("off")
    return figure, axes


def box(axes: Axes, left: float, width: float, middle: float, text: str, colour: str, height: float = 34) -> None:
    """Draw a layer with its name."""
    pill(axes, left, left + width, middle, height, facecolor="none", edgecolor=colour, linewidth=1.5)
    axes.text(left + width / 2, middle, text, color=colour, ha="center", va="center", fontsize=11.5)


def dual_norm(inks: dict[str, str]) -> Figure:
    """Draw the layers around a dual norm, and the switch."""
    figure, axes = canvas(142)
    ink, middle = inks["ink"], 62
    box(axes, 4, 66, middle, "conv", ink)
    box(axes, 148, 92, middle + 26, "clean", inks["clean"])
    box(axes, 148, 92, middle - 26, "adv", inks["adv"])
    box(axes, 292, 64, middle, "ReLU", ink)
    pill(axes, 98, 266, middle, 112, facecolor="none", edgecolor=inks["idle"], linewidth=1.2, linestyle=(0, (3, 3)))
    axes.text(182, middle + 61, "DualBatchNorm2d", color=ink, ha="center", va="bottom", fontsize=11)
    arrow(axes, (72, middle), (112, middle), ink)
    axes.add_patch(Circle((116, middle), 4, facecolor=ink, edgecolor="none"))
    axes.plot([116, 144], [middle, middle - 22], color=inks["adv"], lw=2)
    axes.plot([144, 148], [middle - 22, middle - 26], color=inks["adv"], lw=2)
    axes.plot([240, 258, 258], [middle - 26, middle - 26, middle], color=inks["adv"], lw=1.4)
    axes.plot([240, 258, 258], [middle + 26, middle + 26, middle], color=inks["idle"], lw=1.2, linestyle=(0, (3, 3)))
    arrow(axes, (258, middle), (290, middle), ink)
    axes.text(37, middle - 26, "shared", color=inks["idle"], ha="center", va="top", fontsize=10.5)
    axes.text(324, middle - 26, "shared", color=inks["idle"], ha="center", va="top", fontsize=10.5)
    return figure


def nt_xent(inks: dict[str, str]) -> Figure:
    """Draw the similarities of 2N views: partners, the diagonal that is left out, and a tile of rows."""
    n, cell, left, low = 4, 21, 44, 12
    side = 2 * n * cell
    figure, axes = canvas(side + 44)
    for row in range(2 * n):
        for column in range(2 * n):
            corner = left + column * cell, low + side - (row + 1) * cell
            axes.add_patch(Rectangle(corner, cell, cell, facecolor=inks["sky"], edgecolor=inks["idle"], linewidth=0.6))
            if abs(row - column) == n:
                axes.add_patch(Rectangle(corner, cell, cell, facecolor=inks["clean"], edgecolor="none"))
            if row == column:
                ends = [corner[0] + 4, corner[0] + cell - 4], [corner[1] + 4, corner[1] + cell - 4]
                axes.plot(ends[0], ends[1], color=inks["idle"], lw=1.4)
                axes.plot(ends[0], ends[1][::-1], color=inks["idle"], lw=1.4)
    for name, first in (("$z_1$", 0), ("$z_2$", n)):
        middle = (first + n / 2) * cell
        axes.text(left - 8, low + side - middle, name, color=inks["ink"], ha="right", va="center", fontsize=13)
        axes.text(left + middle, low + side + 6, name, color=inks["ink"], ha="center", va="bottom", fontsize=13)
    tile = (left - 3, low + side - 3 * cell), side + 6, 2 * cell
    axes.add_patch(Rectangle(*tile, fill=False, edgecolor=inks["adv"], linewidth=2.2))
    right = left + side + 14
    notes = (("tile=2: two rows\nat a time", "adv", 2), ("partners", "clean", 4.4), ("left out", "idle", 5.9))
    for text, colour, row in notes:
        axes.text(right, low + side - row * cell, text, color=inks[colour], ha="left", va="center", fontsize=11.5)
    axes.text(right, low + side - 7.2 * cell, "all others:\nnegatives", color=inks["ink"], va="center", fontsize=11.5)
    return figure


def pgd(inks: dict[str, str]) -> Figure:
    """Draw sign steps from a random start, in the box around an image and inside the bounds."""
    figure, axes = canvas(208)
    x, y, radius, step, zero = 168, 106, 80, 34, 118
    axes.add_patch(Rectangle((zero, 2), WIDTH - zero, 202, facecolor=inks["sky"], edgecolor="none", alpha=0.6))
    axes.text(WIDTH - 6, 10, "valid images", color=inks["idle"], ha="right", va="bottom", fontsize=11)
    axes.text(zero - 4, 204, "0", color=inks["idle"], ha="right", va="top", fontsize=11)
    axes.plot([zero, zero], [2, 204], color=inks["idle"], lw=1.2)
    box = Rectangle((x - radius, y - radius), 2 * radius, 2 * radius, fill=False, lw=1.4, edgecolor=inks["ink"])
    axes.add_patch(box)
    axes.text(x - radius + 4, y - radius - 4, r"$2\,\varepsilon$ wide", color=inks["ink"], va="top", fontsize=11)
    place = x + 26, y - 52
    dots = (
        (x, y, "image", "clean", -7),
        (*place, "random start", "adv", -7),
        (x + radius, y + radius, "attacked", "adv", 8),
    )
    for left, low, text, colour, beside in dots:
        axes.add_patch(Circle((left, low), 3.8, facecolor=inks[colour], edgecolor="none", zorder=3))
        style = {"color": inks[colour], "fontsize": 11.5, "ha": "right" if beside < 0 else "left", "va": "center"}
        axes.text(left + beside, low - 11, text, **style)
    for sign in (1, 1, -1, 1):
        wanted = place[0] + sign * step, place[1] + step
        inside = min(wanted[0], x + radius), min(wanted[1], y + radius)
        if inside != wanted:
            axes.plot([place[0], wanted[0], inside[0]], [place[1], wanted[1], inside[1]], color=inks["idle"], lw=1.1)
        arrow(axes, place, inside, inks["adv"])
        place = inside
    return figure


DIAGRAMS = {"dual-norm": dual_norm, "nt-xent": nt_xent, "pgd": pgd}
