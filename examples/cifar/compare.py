"""Compare results of evaluate.py: a table, figures, and significance tests for each pair.

    python examples/cifar/compare.py runs/RI-evaluation runs/DS-evaluation --out runs/comparison

The arguments are folders or cards of evaluate.py or other scripts of this folder. Writes ``results.md``, the figures
``eps.png``, ``steps.png`` and ``corruptions.png`` if the cards have curves and corruptions, and copies of the cards in
``cards/``.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path

from advcontrast.evaluation import ResultCard, compare_cards, markdown_table
from advcontrast.evaluation.plots import plot_corruptions, plot_curves
from advcontrast.evaluation.uar import CALIBRATIONS


def main() -> None:
    """Read the cards that the command names, and write the comparison."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", nargs="+", type=Path, help="folders of runs, or cards")
    parser.add_argument("--out", required=True, type=Path, help="folder for table and figures")
    flags = parser.parse_args()
    try:
        cards = [ResultCard.read(card_in(path) if path.is_dir() else path) for path in flags.results]
        pairs = [str(compare_cards(*pair)) for pair in combinations(cards, 2)]
    except (OSError, ValueError) as error:
        sys.exit(f"compare.py: {error}")
    (flags.out / "cards").mkdir(parents=True, exist_ok=True)
    for card in cards:
        card.write(flags.out / "cards" / f"{card.name}.json")
    for parameter in ("eps", "steps"):
        curves = {card.name: card.curves[parameter] for card in cards if parameter in card.curves}
        if curves:
            plot_curves(curves).savefig(flags.out / f"{parameter}.png", dpi=150)
    corruptions = {card.name: card.corruptions for card in cards if card.corruptions}
    if corruptions:
        plot_corruptions(corruptions).savefig(flags.out / "corruptions.png", dpi=150)
    parts = ["# Results", markdown_table(cards), unforeseen(cards), features(cards), alarms(cards)]
    parts += [f"```\n{pair}\n```" for pair in pairs]
    (flags.out / "results.md").write_text("\n\n".join(part for part in parts if part) + "\n")
    print(parts[1])


def card_in(folder: Path) -> Path:
    """Return the card in the folder of a run: ``result.json`` of evaluate.py, ``card.json`` of the others."""
    return folder / ("result.json" if (folder / "result.json").exists() else "card.json")


def unforeseen(cards: Sequence[ResultCard]) -> str:
    """Return UAR, the accuracy under unforeseen attacks relative to that of training against them."""
    found = {
        card.name: {
            name: 100 * sum(card.curves[name].accuracies) / sum(calibration.ata)
            for name, calibration in CALIBRATIONS.items()
            if name in card.curves
        }
        for card in cards
    }
    return _table("## UAR (%)", found, ".1f")


def features(cards: Sequence[ResultCard]) -> str:
    """Return how far attacks move the features."""
    return _table("## Representations", {card.name: card.label_free for card in cards}, ".3g")


def alarms(cards: Sequence[ResultCard]) -> str:
    """Return the alarms for masked gradients that were raised."""
    lines = ["## Masked gradients", ""]
    for card in cards:
        loud = [alarm for alarm in card.alarms if alarm.raised]
        lines.append(f"- {card.name}: {len(loud)} of {len(card.alarms)} alarms")
        lines += [f"  - {alarm.name}: {alarm.reason}" for alarm in loud]
    return "\n".join(lines)


def _table(title: str, found: Mapping[str, Mapping[str, float]], spec: str) -> str:
    """Return rows of names and columns of labels, empty where nothing was found."""
    rows = [name for entries in found.values() for name in entries]
    if not rows:
        return ""
    lines = [title, "", f"| | {' | '.join(found)} |", "| --- |" + " --- |" * len(found)]
    for name in dict.fromkeys(rows):
        cells = [format(entries[name], spec) if name in entries else "" for entries in found.values()]
        lines.append(f"| {name.replace('_', ' ')} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
