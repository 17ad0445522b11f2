"""Convert every architecture of torchvision and timm that classifies, and list those that fail a check.

    python -m benchmarks.evidence.backbones --out benchmarks/results/backbones   # all with a batch norm: hours
    python -m benchmarks.evidence.backbones --family                             # the smallest of each family
    python -m benchmarks.evidence.backbones --only 'resnet*' --jobs 2
    python -m benchmarks.evidence.backbones --norms other --family               # networks without batch norm

A network is built without its weights and converted; ``checks.py`` has the checks. Each runs in its own
process, with limits on time and memory. With --out the rows are stored, and a sweep that is started again with the same
versions and sources continues. Needs timm, and Linux.
"""

from __future__ import annotations

import argparse
import fnmatch
import hashlib
import json
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import timm
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

import advcontrast
from benchmarks.common import conditions, markdown_table, versions
from benchmarks.evidence.backbones.checks import CONVERTED, UNCONVERTED, examine
from benchmarks.evidence.backbones.children import Died, Limits, each
from benchmarks.evidence.backbones.zoo import Architecture, architectures

#: Norms other than batch norm: those of PyTorch, from which some of timm's are derived, and timm's own.
OTHERS = (nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, timm.layers.RmsNorm)

PACKAGES = ("torchvision", "timm")
KINDS = {"batch": "batch norm", "other": "layer, group or RMS norm and no batch norm"}
NOTES = {
    "failed": "Failed: something does not hold after conversion",
    "unfit": "Left out: the network itself cannot be examined",
    "skipped": "Skipped: more than the limits allow",
    "converted": "Converted, with a warning",
}

#: Packages of the library that the checks go through: a change in another one leaves rows as they are.
USED = ("attacks", "functional", "losses", "norm", "strategies", "surgery")


def main() -> None:
    """Examine what was asked for, smallest networks first, and write rows and tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--norms", choices=("batch", "other"), default="batch", help="kind of norm to convert")
    parser.add_argument("--only", default="*", metavar="PATTERN", help="names, as in 'resnet*'")
    parser.add_argument("--family", action="store_true", help="only the smallest of each family, without test networks")
    parser.add_argument("--jobs", type=int, default=1, help="networks at a time")
    parser.add_argument("--seconds", type=float, default=120, help="of processor time that a network may take")
    parser.add_argument("--gigabytes", type=float, default=6, help="of memory that a network may take")
    parser.add_argument("--out", type=Path, help="folder for rows and tables; by default they are only printed")
    given = parser.parse_args()
    if given.jobs < 1 or given.seconds < 1 or given.gigabytes <= 0:
        parser.error("expected --jobs and --seconds of at least 1, and --gigabytes above 0")
    torch.set_num_threads(1)
    limits = Limits(given.seconds, given.gigabytes)
    known = list(architectures())
    counted = sweep(census, known, versions(*PACKAGES), out=given.out, name="census", jobs=given.jobs, limits=limits)
    chosen = select(known, counted, given.norms, only=given.only, family=given.family)
    rows = sweep(
        partial(examined, norms=given.norms),
        chosen,
        {**versions(*PACKAGES), **limits._asdict(), "sources": sources()},
        out=given.out,
        name=given.norms,
        jobs=given.jobs,
        limits=limits,
        show=partial(print, flush=True),
    )
    made = conditions(__spec__.name, PACKAGES)
    print(write_tables(counted, rows, given.norms, made, given.out))


def census(architecture: Architecture) -> dict[str, Any]:
    """Count the parameters of a network and list its norms, on the meta device if it can be built there."""
    try:
        with torch.device("meta"):
            model = architecture.build()
    except Exception:
        model = architecture.build()
    batch = any(isinstance(module, _BatchNorm) for module in model.modules())
    other = any(isinstance(module, OTHERS) for module in model.modules())
    kind = "batch" if batch else "other" if other else "none"
    return {"parameters": sum(parameter.numel() for parameter in model.parameters()), "norms": kind}


def examined(architecture: Architecture, norms: str) -> dict[str, Any]:
    """Make the checks for a kind of norm."""
    if norms == "batch":
        return examine(architecture, advcontrast.convert_to_dual_bn, CONVERTED, {})
    return examine(architecture, partial(advcontrast.convert_to_dual_bn, norms=OTHERS), CONVERTED, UNCONVERTED)


def select(
    known: Iterable[Architecture], counted: Iterable[dict[str, Any]], norms: str, *, only: str, family: bool
) -> list[Architecture]:
    """Return the architectures with a kind of norm, the smallest first."""
    sizes = {(row["source"], row["name"]): row["parameters"] for row in counted if row.get("norms") == norms}
    found = [a for a in known if (a.source, a.name) in sizes and fnmatch.fnmatch(a.name, only)]
    found.sort(key=lambda a: sizes[a.source, a.name])
    if not family:
        return found
    smallest: dict[tuple[str, str], Architecture] = {}
    for a in found:
        if not a.name.startswith("test_"):
            smallest.setdefault((a.source, a.family), a)
    return list(smallest.values())


def sweep(
    function: Callable[[Architecture], dict[str, Any]],
    items: Iterable[Architecture],
    made_with: dict[str, Any],
    *,
    out: Path | None,
    name: str,
    jobs: int,
    limits: Limits,
    show: Callable[[str], None] | None = None,
) -> list[dict[str, Any]]:
    """Return a row for each architecture, from ``out/<name>.jsonl`` if versions and sources are equal, or else new."""
    items, rows = list(items), {}
    path = None if out is None else out / f"{name}.jsonl"
    if path is not None and path.exists():
        kept = [json.loads(line) for line in path.read_text().splitlines()]
        rows = {(row["source"], row["name"]): row for row in kept if row["made_with"] == made_with}
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows.values()))
    missing = [a for a in items if (a.source, a.name) not in rows]
    for a, answer in each(function, missing, jobs=jobs, limits=limits):
        row = {"source": a.source, "family": a.family, "name": a.name, **_entries(answer), "made_with": made_with}
        rows[a.source, a.name] = row
        if path is not None:
            with path.open("a") as file:
                file.write(json.dumps(row) + "\n")
        if show is not None:
            show(f"{len(rows)} {a.source} {a.name}: {row.get('status')} {'; '.join(row.get('problems', []))}")
    return [rows[a.source, a.name] for a in items]


def _entries(answer: dict[str, Any] | Died) -> dict[str, Any]:
    if isinstance(answer, Died):
        return {"status": "skipped" if answer.too_big else "failed", "problems": [answer.reason], "remarks": []}
    return answer


def sources() -> str:
    """Return a digest of the sources of the checks, and of what they use of the library."""
    package = Path(advcontrast.__file__).parent
    files = [*Path(__file__).parent.glob("*.py"), *package.glob("*.py")]
    files += [path for room in USED for path in (package / room).glob("*.py")]
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in sorted(files)))
    return digest.hexdigest()[:12]


def write_tables(
    counted: list[dict[str, Any]], rows: list[dict[str, Any]], norms: str, made: str, out: Path | None
) -> str:
    """Return the counts by collection and the notes on single networks; write both to ``out``."""
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
    summary = f"## Networks with {KINDS[norms]}\n\n{made}\n\n{markdown_table(head, counts)}\n"
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
            parts.append(f"## {title}\n\n{markdown_table(['collection', 'network', 'reason'], lines)}\n")
    return "\n".join(parts) or "Nothing to note.\n"


if __name__ == "__main__":
    main()
