"""Draw the accuracy of the quickstart's classifiers against the radius of the attack.

    python examples/quickstart.py --seeds 3
    python -m benchmarks.evidence.radius runs/quickstart --image radius.png --out radius.md

Reads the classifiers of all seeds from the folder. Each is attacked by PGD-20 on the 1,000 test images, with steps of
a quarter of the radius; they were trained for the radius 0.1. Prints a Markdown table, mean ± standard deviation
over the seeds, and draws the means.
"""

from __future__ import annotations

import argparse
from collections import OrderedDict
from pathlib import Path

import torch
from matplotlib.figure import Figure
from safetensors.torch import load_file
from torch import Tensor, nn

from advcontrast.evaluation import robust_curve
from benchmarks.common import conditions, markdown_table
from benchmarks.evidence import fashion

EPS = (0.0, 0.025, 0.05, 0.075, 0.1, 0.125, 0.15)
ENCODERS = {"RI": "random initialisation", "S2S": "SimCLR (S2S)", "DS": "ACL (DS)", "RoCL": "RoCL"}
PROTOCOLS = {"linear": "frozen, linear classifier", "finetune": "fine-tuned"}
STYLES = {"RI": ("#9a9a9a", "o"), "S2S": ("#56b4e9", "s"), "DS": ("#d55e00", "D"), "RoCL": ("#009e73", "^")}


def curves(folder: Path, encoder: str, protocol: str) -> Tensor:
    """Return the accuracies of the classifiers of all seeds, ``[seeds, radii]``."""
    found = []
    for path in sorted((folder / "models").glob(f"seed*-{encoder}-{protocol}.safetensors")):
        parts = OrderedDict(encoder=fashion.Encoder(), head=nn.Linear(fashion.Encoder.features, len(fashion.CLASSES)))
        model = nn.Sequential(parts).eval()
        model.load_state_dict(load_file(path))
        batches = fashion.images("test").batches(500)
        found.append(robust_curve(model, batches, fashion.attack(20), eps=EPS).accuracies)
    return torch.tensor(found)


def draw(found: dict[tuple[str, str], Tensor]) -> Figure:
    """Draw a panel for each protocol with the mean curve of each encoder, and the range of its seeds."""
    figure = Figure(figsize=(6, 3.3), layout="constrained")
    panels = figure.subplots(1, len(PROTOCOLS), sharey=True)
    for axes, (protocol, title) in zip(panels, PROTOCOLS.items(), strict=True):
        for name, encoder in ENCODERS.items():
            values, (colour, marker) = 100 * found[name, protocol], STYLES[name]
            axes.plot(EPS, values.mean(0), color=colour, marker=marker, markersize=5, label=encoder)
            axes.fill_between(EPS, values.amin(0), values.amax(0), color=colour, alpha=0.2, linewidth=0)
        axes.axvline(0.1, color="black", linewidth=0.6, linestyle=":")
        axes.set(xlabel="radius of the attack (eps)", xticks=EPS[::2])
        axes.set_title(title, fontsize=10)
        axes.grid(axis="y", linewidth=0.5, alpha=0.4)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set(ylabel="accuracy with 100 labels (%)", ylim=(0, 80))
    panels[0].annotate("trained for 0.1", (0.097, 75), ha="right", fontsize=9)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)
    return figure


def table(found: dict[tuple[str, str], Tensor]) -> str:
    """Return the accuracies as a Markdown table, in percent."""
    rows = []
    for (name, protocol), values in found.items():
        spreads = values.std(0) if len(values) > 1 else torch.zeros(len(EPS))
        cells = [f"{100 * mean:.1f} ± {100 * spread:.1f}" for mean, spread in zip(values.mean(0), spreads, strict=True)]
        rows.append([f"{ENCODERS[name]}, {PROTOCOLS[protocol]}", *cells])
    return markdown_table(["classifier", *(f"{eps:g}" for eps in EPS)], rows)


def main() -> None:
    """Evaluate all classifiers, print the table, and write the files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="of examples/quickstart.py")
    parser.add_argument("--image", type=Path, help="file of the figure")
    parser.add_argument("--out", type=Path, help="file of the table")
    flags = parser.parse_args()
    found = {(name, protocol): curves(flags.folder, name, protocol) for protocol in PROTOCOLS for name in ENCODERS}
    seeds = len(found["DS", "linear"])
    text = f"# Accuracy against the radius\n\n{conditions(__spec__.name)}\n\n{seeds} seeds.\n\n{table(found)}\n"
    print(text)
    if flags.out:
        flags.out.write_text(text)
    if flags.image:
        draw(found).savefig(flags.image, dpi=150)


if __name__ == "__main__":
    main()
