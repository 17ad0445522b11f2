"""The code on the pages runs, block after block, as a reader would run it."""

import re
import textwrap
from pathlib import Path

import pytest
import torch

DOCS = Path(__file__).parents[1] / "docs"


def blocks(page):
    """Return the Python of a page, with the line that each block begins in."""
    text = (DOCS / f"{page}.rst").read_text()
    for match in re.finditer(r"\.\. code-block:: python\n\n((?:   .*\n|\n)+)", text):
        yield text[: match.start(1)].count("\n") + 1, textwrap.dedent(match[1])


@pytest.mark.parametrize("page", ["backbones"])
def test_the_code_of_a_page_runs(page):
    names = {"torch": torch}
    for line, code in blocks(page):
        exec(compile("\n" * (line - 1) + code, f"{page}.rst", "exec"), names)
    assert len(names) > 2
