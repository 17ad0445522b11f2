"""Draw the modes, for a light and for a dark background."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Circle, FancyArrowPatch, FancyBboxPatch, Polygon, Rectangle

WIDTH = 360  # units of a figure; the text stays readable where a phone shows them as pixels
SIDE = 44  # of an image
ROW = 60  # from one view to the next
INKS = {
    "light": {"ink": "#22262b", "idle": "#9aa1a9", "clean": "#1a66b0", "adv": "#c2331c", "sky": "#dcecf8"},
    "dark": {"ink": "#e3e6ea", "idle": "#747c86", "clean": "#74b9ff", "adv": "#ff8b6e", "sky": "#27394a"},
}
# For each mode its views from top to bottom: what is written beside the view, which view it is, and its branch.
MODES = {
    "S2S": (("$x_1$", 1, "clean"), ("$x_2$", 2, "clean")),
    "A2A": ((r"$x_1 + \delta_1$", 1, "adv"), (r"$x_2 + \delta_2$", 2, "adv")),
    "A2S": (("$x_2$", 2, "clean"), (r"$x_1 + \delta_1$", 1, "adv")),
    "DS": (
        ("$x_1$", 1, "clean"),
        ("$x_2$", 2, "clean"),
        (r"$x_1 + \delta_1$", 1, "adv"),
        (r"$x_2 + \delta_2$", 2, "adv"),
    ),
}
VIEWS, NETWORK, EMBEDDINGS, LOSS = 74, (178, 262), 286, 338  # where the columns stand


def picture(axes: Axes, left: float, middle: float, inks: dict[str, str], view: int = 0, noisy: bool = False) -> None:
    """Draw a sun over a hill: the image itself (view 0), or one of the two cut-outs of it."""
    low = middle - SIDE / 2
    frame = Rectangle((left, low), SIDE, SIDE, facecolor=inks["sky"], edgecolor="none")
    axes.add_patch(frame)
    zoom, shift, mirror = {0: (1.0, 0.0, 1), 1: (1.5, -0.15, 1), 2: (1.3, -0.25, -1)}[view]

    def place(x: float, y: float) -> tuple[float, float]:
        return left + SIDE * (0.5 + mirror * ((x - 0.5) * zoom - shift / 2)), low + SIDE * ((y - 0.3) * zoom + 0.3)

    hill = Polygon([place(x, y) for x, y in ((-1, -1), (0.05, 0.1), (0.42, 0.55), (0.75, 0.25), (2, -1))])
    sun = Circle(place(0.72, 0.72), 0.13 * zoom * SIDE)
    for patch, colour in ((sun, "#e8b02c"), (hill, "#5c9a5b" if view < 2 else "#7d8f7c")):
        patch.set(facecolor=colour, edgecolor="none")
        axes.add_patch(patch)
        patch.set_clip_path(frame)
    if noisy:
        draw, cells = random.Random(view), 9
        for i in range(cells * cells):
            corner = left + SIDE * (i % cells) / cells, low + SIDE * (i // cells) / cells
            dot = Rectangle(corner, SIDE / cells, SIDE / cells, alpha=draw.choice((0, 0.15, 0.35)))
            dot.set(facecolor=draw.choice((inks["adv"], "white", "black")), edgecolor="none")
            axes.add_patch(dot)
    edge = inks["ink"] if view == 0 else inks["adv" if noisy else "clean"]
    axes.add_patch(Rectangle((left, low), SIDE, SIDE, fill=False, edgecolor=edge, linewidth=2.4 if noisy else 1.4))


def arrow(axes: Axes, start: tuple[float, float], end: tuple[float, float], colour: str) -> None:
    """Draw a straight arrow."""
    axes.add_patch(
        FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=9, shrinkA=0, shrinkB=0, color=colour, lw=1.3)
    )


def pill(axes: Axes, left: float, right: float, middle: float, height: float, **style: object) -> None:
    """Draw a rectangle with round corners."""
    axes.add_patch(
        FancyBboxPatch(
            (left, middle - height / 2), right - left, height, boxstyle="round,pad=0,rounding_size=7", **style
        )
    )


def draw_mode(mode: str, inks: dict[str, str]) -> Figure:
    """Draw image, views, branches of the shared network, embeddings and losses of a mode."""
    views = MODES[mode]
    used = {branch for _, _, branch in views}
    rows = [-ROW * i for i in range(len(views))]
    centre = sum(rows) / len(rows)
    high, low = rows[0] + 44, rows[-1] - (54 if "adv" in used else 30)
    figure = Figure(figsize=(WIDTH / 72, (high - low) / 72))
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, WIDTH), ylim=(low, high))
    axes.axis("off")

    picture(axes, 2, centre, inks)
    extent = rows[0] - rows[-1]
    pill(axes, *NETWORK, centre, extent + SIDE + 8, facecolor="none", edgecolor=inks["ink"], linewidth=1.4)
    axes.text(sum(NETWORK) / 2, rows[0] + 29, "shared network", color=inks["ink"], ha="center", fontsize=11.5)
    between = extent / 2 if mode == "A2S" else max(extent / 3, 18)
    heights = {"clean": centre + between, "adv": centre - between}
    for branch, height in heights.items():
        colour = inks[branch if branch in used else "idle"]
        style = {"linestyle": "-" if branch in used else (0, (3, 3)), "facecolor": "none", "linewidth": 1.6}
        pill(axes, NETWORK[0] + 9, NETWORK[1] - 9, height, 26, edgecolor=colour, **style)
        axes.text(sum(NETWORK) / 2, height, branch, color=colour, ha="center", va="center_baseline", fontsize=12)

    for (name, view, branch), row in zip(views, rows, strict=True):
        colour = inks[branch]
        picture(axes, VIEWS, row, inks, view, noisy=branch == "adv")
        arrow(axes, (2 + SIDE + 4, centre + (row - centre) * 0.2), (VIEWS - 4, row), inks["ink"])
        sharing = [other for (_, _, b), other in zip(views, rows, strict=True) if b == branch]
        spread = (row - sum(sharing) / len(sharing)) * 0.2
        beside = {"va": "top", "y": row - 7} if spread < 0 else {"va": "bottom", "y": row + 7}
        axes.text(VIEWS + SIDE + 5, s=name, color=colour, fontsize=12.5, **beside)
        arrow(axes, (VIEWS + SIDE + 5, row), (NETWORK[0] + 8, heights[branch] + spread), colour)
        axes.plot([NETWORK[1] - 9, EMBEDDINGS], [heights[branch] + spread, row], color=colour, lw=1.3)
        axes.add_patch(Circle((EMBEDDINGS, row), 4.5, facecolor=colour, edgecolor="none"))
        axes.text(EMBEDDINGS, row + 9, f"$z_{view}$", color=colour, fontsize=12.5, ha="center", va="bottom")

    streams = [used] if len(views) == 2 else [{"clean"}, {"adv"}]
    for stream in streams:
        ends = [row for (_, _, branch), row in zip(views, rows, strict=True) if branch in stream]
        height, name = sum(ends) / 2, "adv" if "adv" in stream else "clean"
        for end in ends:
            way = [EMBEDDINGS + 8, 310, 310, 316], [end, end, height, height]
            axes.plot(*way, color=inks[name], lw=1.3)
        axes.text(319, height, rf"$L_\mathrm{{{name}}}$", color=inks[name], fontsize=14, ha="left", va="center")
        if name == "adv":
            turn, edge, line = VIEWS + SIDE / 2, rows[-1] - SIDE / 2, rows[-1] - 48
            way = [LOSS, LOSS, turn, turn], [height - 11, line, line, edge - 8]
            axes.plot(*way, color=inks["adv"], lw=1.3, linestyle=(0, (4, 3)))
            arrow(axes, (turn, edge - 9), (turn, edge - 2), inks["adv"])
            text = r"attack: $\delta$ makes $L_\mathrm{adv}$ larger"
            axes.text((turn + LOSS) / 2, line + 2, text, color=inks["adv"], fontsize=11.5, ha="center", va="bottom")
    return figure


@contextmanager
def reproducible() -> Iterator[None]:
    """Let the same drawing give the same file."""
    with mpl.rc_context({"svg.hashsalt": "advcontrast", "mathtext.fontset": "dejavusans"}):
        yield


def draw_all(folder: Path, drawings: Mapping[str, Callable[[dict[str, str]], Figure]]) -> None:
    """Write figures into ``folder``, each by its name."""
    folder.mkdir(parents=True, exist_ok=True)
    with reproducible():
        for name, draw in drawings.items():
            for background, inks in INKS.items():
                path = folder / f"{name}-{background}.svg"
                draw(inks).savefig(path, transparent=True, metadata={"Date": None})


DRAWINGS = {mode.lower(): partial(draw_mode, mode) for mode in MODES}
