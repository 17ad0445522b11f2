"""Turn the committed tables of results into pages."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path


def write_tables(sources: Sequence[Path], target: Path, *, prose: bool = False) -> None:
    """Write the Markdown tables of some files, each below its heading, as reStructuredText; perhaps with the text."""
    # The command and the versions stand above the first heading of a file, and below it on the page.
    texts = [re.sub(r"\A(# .*\n+)((?:[^#|\n].*\n+)+)(## .*\n+)", r"\1\3\2", source.read_text()) for source in sources]
    lines = [line for text in texts for line in text.splitlines()]
    pages: list[str] = []
    heading: list[str] = []
    for i, line in enumerate(lines):
        if line.startswith("## "):
            heading = ["", line[3:], "~" * len(line[3:]), ""]
        elif line.startswith("| ") and lines[i + 1 : i + 2] and lines[i + 1].startswith("| ---"):
            pages += [*heading, ".. list-table::", "   :header-rows: 1", ""]
            pages += _row(line)
        elif line.startswith("| ") and not line.startswith("| ---"):
            pages += _row(line)
        elif line.startswith("`python") and line in lines[:i]:
            continue  # files of one run
        elif prose and line and line[0] not in "#|":
            pages += [*heading, re.sub(r"(?<!`)`(?!`)", "``", line), *([] if _goes_on(lines[i + 1 : i + 2]) else [""])]
            heading = []
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text("\n".join(pages) + "\n")


def _goes_on(following: Sequence[str]) -> bool:
    """Return whether a paragraph has another line."""
    return bool(following and following[0] and following[0][0] not in "#|")


def _row(line: str) -> list[str]:
    # A number stays on one line with its unit, its spread or the end of its range.
    text = re.sub(r"(?<=\d) (%|± |to (?=\d))", lambda match: match[0].replace(" ", "\u00a0"), line)
    cells = [cell.strip() for cell in text.strip("|").split("|")]
    return [f"   {'* -' if i == 0 else '  -'} {cell}".rstrip() for i, cell in enumerate(cells)] + [""]
