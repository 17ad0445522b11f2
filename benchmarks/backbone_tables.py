"""The results of the sweep over backbones as Markdown."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

KINDS = {"batch": "batch norm", "other": "layer, group or RMS norm and no batch norm"}
NOTES = {
    "failed": "Failed: something does not hold after conversion",
    "unfit": "Left out: the network itself cannot be examined",
    "skipped": "Skipped: more than the limits allow",
    "converted": "Converted, with a warning",
}


def write_tables(
    counted: list[dict[str, Any]], rows: list[dict[str, Any]], norms: str, made: str, out: Path | None
) -> str:
    """Return the counts by collection, and write them and what is to be said of single networks to ``out``."""
    head = ["collection", "architectures", f"with {KINDS[norms]}", "tried", "all checks hold", "failed", "left out"]
    counts = []
    for source in dict.fromkeys(row["source"] for row in counted):
        known = [row for row in counted if row["source"] == source]
        tried = [row for row in rows if row["source"] == source]
        status = [row["status"] for row in tried]
        counts.append(
            [
                source,
                len(known),
                sum(row.get("norms") == norms for row in known),
                len(tried) - status.count("skipped") - status.count("unfit"),
                status.count("converted"),
                status.count("failed"),
                status.count("skipped") + status.count("unfit"),
            ]
        )
    counts.append(["**all**", *(sum(column) for column in list(zip(*counts, strict=True))[1:])])
    summary = f"## Networks with {KINDS[norms]}\n\n{made}\n\n{_table(head, counts)}\n"
    if out is not None:
        (out / f"{norms}.md").write_text(f"# Backbones: {KINDS[norms]}\n\n{summary}")
        (out / f"{norms}-notes.md").write_text(f"# Backbones: {KINDS[norms]}, notes\n\n{made}\n\n{_notes(rows)}")
    return summary + "\n" + _notes(rows)


def _notes(rows: list[dict[str, Any]]) -> str:
    parts = []
    for status, title in NOTES.items():
        lines = [
            [row["source"], row["name"], "<br>".join(row["problems"] or row["remarks"])]
            for row in rows
            if row["status"] == status and (row["problems"] or row.get("remarks"))
        ]
        if lines:
            parts.append(f"## {title}\n\n{_table(['collection', 'network', 'reason'], lines)}\n")
    return "\n".join(parts) or "Nothing to note.\n"


def _table(head: list[str], rows: Iterable[list[object]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(str(cell).replace('|', '/') for cell in line)} |" for line in lines)
