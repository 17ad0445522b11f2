"""The code on the pages runs, block after block, as a reader would run it."""

import re
import textwrap
import warnings
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

DOCS = Path(__file__).parents[1] / "docs"
SHOWN, HIDDEN = "code-block:: python", "testsetup::"  # the reader does not see what a page sets up
PAGES = sorted(page for page in DOCS.rglob("*.rst") if not {"_build", "_gallery"} & set(page.parts))
OPTIONAL = (
    "accelerate",
    "foolbox",
    "kornia",
    "lightly",
    "lightning",
    "pytorch_metric_learning",
    "timm",
    "torchattacks",
)


def blocks(text):
    """Return the Python of a page, with the line that each block begins in."""
    pattern = rf"\.\. (?:{SHOWN}|{HIDDEN})\n(?:   :.*\n)*\n((?:   .*\n|\n)+)"
    return [(text[: found.start(1)].count("\n") + 1, textwrap.dedent(found[1])) for found in re.finditer(pattern, text)]


@pytest.fixture
def bench(tmp_path, monkeypatch):
    """An empty folder to work in, one process that torchrun may have started, and nothing left behind."""
    monkeypatch.chdir(tmp_path)
    for name, value in {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MASTER_PORT", "0")
    random = torch.get_rng_state()
    torch.manual_seed(0)
    yield
    if dist.is_initialized():
        dist.destroy_process_group()
    torch.set_rng_state(random)


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page.read_text())], ids=lambda page: page.stem)
def test_the_code_of_a_page_runs(page, bench):
    text = page.read_text()
    others = [package for package in OPTIONAL if re.search(rf"^   (?:import|from) {package}\b", text, re.M)]
    for package in others:
        pytest.importorskip(package)
    names = {"__name__": page.stem}
    with warnings.catch_warnings():
        if others:  # which may warn about themselves
            warnings.simplefilter("ignore")
        for line, code in blocks(text):
            exec(compile("\n" * (line - 1) + code, page.name, "exec"), names)


def test_a_page_whose_code_does_not_run_is_noticed():
    page = f".. {HIDDEN}\n\n   x = 1\n\nText.\n\n.. {SHOWN}\n   :emphasize-lines: 1\n\n   y = x + z\n\nText.\n"
    (_, setup), (line, code) = blocks(page)
    names = {}
    exec(setup, names)
    assert (line, code.strip()) == (10, "y = x + z")
    with pytest.raises(NameError, match="'z'"):
        exec(code, names)


def test_every_guide_has_code_that_runs():
    without = {page.stem for page in (DOCS / "guides").glob("*.rst") if not blocks(page.read_text())}
    assert without == {"pipeline"}  # whose commands the tests of the examples run
