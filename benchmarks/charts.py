"""Draw the charts of ``docs/benchmarks.rst`` from the tables in ``benchmarks/results``.

    python -m benchmarks.charts

Writes two files to ``docs/_static``: ``benchmarks-speed.svg`` shows times that were measured on a CPU, as ratios;
``benchmarks-launches.svg`` shows counts from a stub of the CUDA runtime.
"""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
STYLES = {
    "eager": ("#9a9a9a", "o"),
    "channels last": ("#56b4e9", "s"),
    "compiled": ("#0072b2", "D"),
    "tiled": ("#d55e00", "^"),
}
STEP = {"eager": "ours, contiguous", "channels last": "ours, channels last"}
STEP["compiled"] = "ours, channels last, compiled"
PGD = {"eager": "advcontrast", "channels last": "advcontrast, channels_last", "compiled": "advcontrast, compiled"}
TRADES = PGD | {"compiled": "advcontrast, channels_last, compiled"}
NT_XENT = {"eager": "advcontrast, dense", "tiled": "advcontrast, tile=512"}
# Label, table, the beginnings of its heading and of the setting, and the candidate that each marker stands for.
SPEEDS = (
    ("dual-stream step\nagainst the authors' formulation", "step", "Dual-stream", "", STEP),
    ("TRADES step\nagainst the reference", "trades", "TRADES step", "", TRADES),
    ("PGD, linf, ResNet-18\nagainst torchattacks", "pgd", "PGD-10 in an L-infinity", "ResNet-18", PGD),
    ("PGD, l2, ResNet-18\nagainst torchattacks", "pgd", "PGD-10 in an L2", "ResNet-18", PGD),
    ("PGD, linf, small CNN\nagainst torchattacks", "pgd", "PGD-10 in an L-infinity", "small CNN", PGD),
    ("PGD, l2, small CNN\nagainst torchattacks", "pgd", "PGD-10 in an L2", "small CNN", PGD),
    ("NT-Xent, 4,096 pairs\nagainst lightly", "nt_xent", "NT-Xent", "N = 4096", NT_XENT),
    ("two SimCLR views\nagainst torchvision", "views", "Two SimCLR views", "", {"eager": "ours"}),
)
# The parts of launches.md, drawn together where they are small.
PARTS = {
    "convolutions": ("convolutions",),
    "batch norms": ("batch norm",),
    "ReLU, sums, pooling": ("relu, add, pool",),
    "augmentation": ("augmentation",),
    "loss and logged terms": ("loss (NT-Xent forward)", "alignment (logging)"),
    "LARS": ("LARS",),
    "casts, head and the rest": (
        "casts of autocast",
        "attack's own",
        "head and loss matmuls",
        "small rest (head, loss backward, sums)",
    ),
}
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#b0b0b0")


def rows(path: Path) -> list[dict[str, str]]:
    """Return the rows of all tables of a file by column, with the heading above them."""
    found: list[dict[str, str]] = []
    heading, head = "", []
    for line in path.read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("## "):
            heading, head = line[3:], []
        elif not line.startswith("| ---") and line.startswith("|"):
            found += [{"heading": heading, **dict(zip(head, cells, strict=True))}] if head else []
            head = head or cells
    return found


def draw_speed() -> Figure:
    """Draw the speed of each candidate relative to another implementation."""
    figure = Figure(figsize=(6, 4.6), layout="constrained")
    axes = figure.add_subplot()
    for place, (_, name, heading, setting, candidates) in enumerate(SPEEDS):
        table = [row for row in rows(RESULTS / "cpu" / f"{name}.md") if row["heading"].startswith(heading)]
        chosen = [row for row in table if row.get("setting", "").startswith(setting)]
        speeds = {row["candidate"]: float(row["speed"]) for row in chosen}
        for kind, candidate in candidates.items():
            colour, marker = STYLES[kind]
            axes.plot(speeds[candidate], place, marker, color=colour, markersize=8, label=kind, clip_on=False)
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_xscale("log", base=2)
    axes.set_xlim(0.7, 10)
    axes.set_xticks([0.75, 1, 1.5, 2, 3, 4, 6, 8], ["0.75", "1", "1.5", "2", "3", "4", "6", "8"])
    axes.set_yticks(range(len(SPEEDS)), [label for label, *_ in SPEEDS])
    axes.set_ylim(len(SPEEDS) - 0.5, -1)
    axes.text(0.96, -0.7, "slower", ha="right", va="center", fontsize=9)
    axes.text(1.04, -0.7, "faster", va="center", fontsize=9)
    axes.set_xlabel("relative speed, timed on a CPU")
    axes.grid(linewidth=0.5, alpha=0.4)
    axes.spines[["top", "right", "left"]].set_visible(False)
    markers = dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    figure.legend(markers.values(), markers, loc="outside upper right", ncols=len(markers), frameon=False)
    return figure


def draw_launches() -> Figure:
    """Draw the launches of a training step, by part."""
    counts = {row["part"]: row for row in rows(RESULTS / "launches.md")}
    steps = {"DS before": "DS, before", "DS after": "DS, now", "S2S before": "S2S, before", "S2S after": "S2S, now"}
    figure = Figure(figsize=(6, 3), layout="constrained")
    axes = figure.add_subplot()
    for place, column in enumerate(steps):
        left = 0
        for (label, parts), colour in zip(PARTS.items(), COLOURS, strict=True):
            width = sum(int(counts[part][column]) for part in parts)
            axes.barh(place, width, 0.7, left, color=colour, label=label if place == 0 else None)
            left += width
        assert left == int(counts["all"][column])
        axes.text(left + 30, place, f"{left:,}", va="center")
    axes.set_yticks(range(len(steps)), steps.values())
    axes.invert_yaxis()
    axes.set(xlabel="launches and copies on the device in a step, counted", xlim=(0, 3000))
    axes.grid(axis="x", linewidth=0.5, alpha=0.4)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=9)
    return figure


def main() -> None:
    """Write both charts; the same tables give the same files."""
    with mpl.rc_context({"svg.hashsalt": "advcontrast"}):
        for name, draw in (("speed", draw_speed), ("launches", draw_launches)):
            draw().savefig(ROOT / "docs" / "_static" / f"benchmarks-{name}.svg", metadata={"Date": None})


if __name__ == "__main__":
    main()
