"""Makes ``docs/reliability.md`` of what ``tests/scoreboard.py`` counted, and holds it against its floors.

    python -m tests.reliability                       # run everything under coverage, one room after the other
    python -m tests.reliability tests/engine src      # run some rooms again; all other figures stay
    python -m tests.reliability --page                # only write the page anew

Ends with an error where a test fails or a figure is below its floor.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from tests.scoreboard import write

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "reliability.md"
RECORD = ROOT / "docs" / "reliability.json"
MUTATION = ROOT / "benchmarks" / "results" / "mutation"
COVERAGE = ROOT / "docs" / "_build" / "coverage"
BEGIN, END = "<!-- figures: begin -->", "<!-- figures: end -->"
SETTINGS = """
[run]
branch = True
source = advcontrast
data_file = ${SCOREBOARD_COVERAGE}
parallel = True
patch = subprocess
disable_warnings = no-data-collected, module-not-imported
[report]
exclude_also =
    if TYPE_CHECKING:
"""


class Figure(NamedTuple):
    """A row of the table: ``good`` of what was ``tried`` must be all of it, and ``tried`` at least ``floor``."""

    name: str
    tried: str
    good: str
    outcome: str
    floor: int


FIGURES = [
    Figure("Bad inputs given to the library", "bad inputs", "clear errors", "answered by a clear error", 1_000),
    Figure(
        "Calls with arguments from the fuzzer's pool",
        "fuzz calls",
        "fuzz calls with a clear outcome",
        "worked or gave a clear error",
        20_000,
    ),
    Figure(
        "Failed fuzz calls", "failed fuzz calls", "failed fuzz calls that changed nothing", "changed nothing", 15_000
    ),
    Figure("Kills inside of a save", "kill points", "exact resumes", "left a checkpoint that loads to the bit", 120),
    Figure(
        "Interrupted training runs", "resume points", "exact continuations", "ended like the whole run, to the bit", 70
    ),
    Figure(
        "Calls of a save that fail: no space, I/O error",
        "disk faults",
        "harmless disk faults",
        "were reported and cost no earlier checkpoint",
        60,
    ),
    Figure("Flipped bits of a checkpoint", "bit flips", "bit flips detected", "were detected", 1_000),
    Figure("Truncations of a checkpoint", "truncations", "truncations detected", "were detected", 200),
    Figure(
        "Edits of a manifest", "manifest edits", "harmless manifest edits", "were refused or made no difference", 300
    ),
    Figure("Malicious files", "malicious files", "malicious files passed", "were refused", 12),
    Figure("Planted defects", "defects", "defects passed", "broke an invariant of the property tests", 150),
    Figure("Values of attacked images", "ball values", "ball values inside", "lay in the ball, exactly", 1_000_000),
    Figure(
        "Tests in a group of two processes", "process-group cases", "process-group cases passed", "ran and passed", 8
    ),
]
EXAMPLES, LINES, BRANCHES, KILLED = 100, 98.0, 95.0, 90.0


class Row(NamedTuple):
    """What the page shows of a figure."""

    name: str
    measured: str
    floor: str
    held: bool


def rows(record: dict) -> list[Row]:
    """Return every figure of a record."""
    totals: Counter[str] = Counter()
    for file in record["files"].values():
        totals.update(file["figures"])
    found = [
        Row(
            figure.name,
            f"{totals[figure.tried]:,}, of which {totals[figure.good]:,} {figure.outcome}",
            f"{figure.floor:,}, all",
            totals[figure.good] == totals[figure.tried] >= figure.floor,
        )
        for figure in FIGURES
    ]
    outcomes = {name: totals[name] for name in ("passed", "failed", "skipped", "xfailed")}
    found.append(
        Row("Tests", ", ".join(f"{n:,} {name}" for name, n in outcomes.items()), "0 failed", not totals["failed"])
    )
    examples = [n for file in record["files"].values() for n in file["examples"].values()]
    measured = f"{sum(examples):,} for {len(examples)} properties, {min(examples, default=0)} for the least tried"
    found.append(Row("Examples drawn by hypothesis", measured, "100 properties", len(examples) >= EXAMPLES))
    return [*found, *_coverage(record.get("coverage", Counter())), *_mutation()]


def _coverage(totals: dict[str, int]) -> list[Row]:
    found = []
    for name, tried, good, floor in (
        ("Lines", "num_statements", "covered_lines", LINES),
        ("Branches", "num_branches", "covered_branches", BRANCHES),
    ):
        share = 100 * totals[good] / max(totals[tried], 1)
        measured = f"{totals[good]:,} of {totals[tried]:,} ({share:.1f} %)"
        found.append(Row(f"{name} run by the tests", measured, f"{floor:g} %", share >= floor))
    return found


def _mutation() -> list[Row]:
    record, equivalent = (json.loads((MUTATION / f"{name}.json").read_text()) for name in ("results", "equivalent"))
    found = []
    for room in dict.fromkeys(name.split("/")[0] for name in record):
        files = {name: file for name, file in record.items() if name.split("/")[0] == room}
        verdicts = Counter(
            "equivalent" if key in equivalent.get(name, {}) else verdict.split()[0]
            for name, file in files.items()
            for key, verdict in file["verdicts"].items()
        )
        tried, there = sum(verdicts.values()), sum(file["changes"] for file in files.values())
        share = 100 * verdicts["killed"] / max(tried - verdicts["equivalent"], 1)
        measured = f"{share:.1f} % of {tried} drawn from {there:,}, less {verdicts['equivalent']} without effect"
        found.append(Row(f"Changes to `{room}` that the tests notice", measured, f"{KILLED:g} %", share >= KILLED))
    return found


def page(text: str, record: dict) -> str:
    """Return the text of the page with the figures of a record between its marks."""
    before, rest = text.split(BEGIN)
    after = rest.split(END)[1]
    table = ["| figure | measured | floor |", "| --- | --- | --- |"]
    table += [
        f"| {row.name} | {row.measured} | {row.floor}{'' if row.held else ' **(missed)**'} |" for row in rows(record)
    ]
    reasons: Counter[str] = Counter()
    for file in record["files"].values():
        reasons.update(file["skipped"])
    skipped = [
        "| tests skipped | because |",
        "| --- | --- |",
        *(f"| {n} | {why} |" for why, n in reasons.most_common()),
    ]
    run = f"Counted with Python {record['python']} and PyTorch {record['torch']} in {len(record['files'])} test files."
    return "\n".join([before + BEGIN, "", run, "", *table, "", *skipped, "", END + after])


def main() -> int:
    """Run what was asked for, write the page, and return the number of figures below their floor."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rooms", nargs="*", help="folders or files of tests; by default all, and the docstrings")
    parser.add_argument("--page", action="store_true", help="run nothing")
    given = parser.parse_args()
    inside = [path for path in sorted((ROOT / "tests").iterdir()) if path.is_dir() or path.name.startswith("test_")]
    every = ["src", *(f"tests/{path.name}" for path in inside if path.name != "__pycache__")]
    failed = [] if given.page else [room for room in given.rooms or every if _run(room)]
    record = json.loads(RECORD.read_text())
    if not given.page:
        record["coverage"] = _combine()
        write(RECORD, record)
    PAGE.write_text(page(PAGE.read_text(), record))
    missed = [row for row in rows(record) if not row.held]
    for row in missed:
        print(f"below its floor of {row.floor}: {row.name}: {row.measured}")
    for room in failed:
        print(f"failed: {room}")
    return len(missed) + len(failed)


def _run(room: str) -> int:
    COVERAGE.mkdir(parents=True, exist_ok=True)
    (COVERAGE / "settings").write_text(SETTINGS)
    name = room.replace("/", "-")
    for old in COVERAGE.glob(f"{name}.*"):
        old.unlink()
    print(room, flush=True)
    tests = [sys.executable, "-m", "coverage", "run", f"--rcfile={COVERAGE / 'settings'}", "-m", "pytest", "-q", room]
    options = ["--scoreboard", str(RECORD), "-p", "no:cacheprovider"]
    return subprocess.run([*tests, *options], check=False, cwd=ROOT, env=_environment(name)).returncode


def _combine() -> dict[str, int]:
    coverage = [sys.executable, "-m", "coverage"]
    settings, environment = f"--rcfile={COVERAGE / 'settings'}", _environment("combined")
    parts = sorted(str(path) for path in COVERAGE.iterdir() if path.name not in ("settings", "combined", "report.json"))
    subprocess.run([*coverage, "combine", "-q", "--keep", settings, *parts], cwd=ROOT, env=environment, check=True)
    report = ["json", "-q", settings, "-o", str(COVERAGE / "report.json")]
    subprocess.run([*coverage, *report], cwd=ROOT, env=environment, check=True)
    totals = json.loads((COVERAGE / "report.json").read_text())["totals"]
    return {name: totals[name] for name in ("num_statements", "covered_lines", "num_branches", "covered_branches")}


def _environment(name: str) -> dict[str, str]:
    return os.environ | {"SCOREBOARD_COVERAGE": str(COVERAGE / name)}


if __name__ == "__main__":
    sys.exit(main())
