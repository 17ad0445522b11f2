"""The figures of the reliability page are those that were counted, and hold."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests import reliability
from tests.scoreboard import TEMPLATE, raised_by_the_library

ROOT = Path(__file__).parents[1]
INNER = """
import pytest
from hypothesis import given, strategies as st
from advcontrast import PGDAttack
from tests.scoreboard import count

def test_one():
    count("kill points", 3)
    for eps in (-1, -2, "a"):
        with pytest.raises((ValueError, TypeError)):
            PGDAttack(eps=eps)
    with pytest.raises(ZeroDivisionError):
        1 / 0

@given(st.integers(0, 1000))
def test_two(n):
    assert n >= 0

@pytest.mark.skip(reason="no way")
def test_three():
    pass
"""


@pytest.fixture
def counted(tmp_path):
    """Return a function that runs a small test file with some options and returns what was counted for it."""
    for name in ("conftest.py", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / "tests").mkdir()
    for name in ("__init__.py", "conftest.py", "scoreboard.py", "ranks.py"):
        shutil.copy(ROOT / "tests" / name, tmp_path / "tests")
    (tmp_path / "tests" / "test_inner.py").write_text(INNER)

    def run(*options):
        command = [sys.executable, "-m", "pytest", "-q", "--scoreboard", "figures.json", *options]
        subprocess.run(command, cwd=tmp_path, capture_output=True, check=False)
        return json.loads((tmp_path / "figures.json").read_text())["files"].get("tests/test_inner.py")

    return run


def test_a_run_counts_what_tests_did(counted):
    found = counted("tests")
    assert found["figures"] == {"bad inputs": 2, "clear errors": 2, "kill points": 3, "passed": 2, "skipped": 1}
    assert found["examples"] == {"test_two": 100}
    assert found["skipped"] == {"no way": 1}


@pytest.mark.parametrize("options", [["tests", "-k", "two"], ["tests/test_inner.py::test_two"], ["tests", "-x"]])
def test_a_file_that_ran_in_part_keeps_its_figures(counted, tmp_path, options):
    whole = counted("tests")
    if "-x" in options:
        (tmp_path / "tests" / "test_inner.py").write_text(INNER.replace("1 / 0", "pass"))
    assert counted(*options) == whole


def test_a_file_that_is_gone_is_forgotten(counted, tmp_path):
    counted("tests")
    (tmp_path / "tests" / "test_inner.py").rename(tmp_path / "tests" / "test_other.py")
    assert counted("tests") is None


@pytest.mark.parametrize(
    ("text", "clear"),
    [
        ("nt_xent: expected z1 to be finite, got nan. The network has diverged.", True),
        ("expected z1 to be finite, got nan.", False),
        ("nt_xent: expected z1 to be finite, got nan", False),
        ("mat1 and mat2 shapes cannot be multiplied", False),
    ],
)
def test_clear_is_what_follows_the_template(text, clear):
    assert (TEMPLATE.fullmatch(text) is not None) == clear


def test_an_error_of_a_test_is_none_of_the_library():
    with pytest.raises(ZeroDivisionError) as caught:
        _ = 1 / 0
    assert not raised_by_the_library(caught.value)


def test_the_page_shows_the_figures_that_were_counted():
    text = reliability.PAGE.read_text()
    assert reliability.page(text, json.loads(reliability.RECORD.read_text())) == text


def test_every_figure_that_was_counted_holds():
    missed = [row.name for row in reliability.rows(json.loads(reliability.RECORD.read_text())) if not row.held]
    assert missed == []


def test_a_figure_below_its_floor_is_marked():
    text = reliability.page(reliability.PAGE.read_text(), {"files": {}, "python": "3", "torch": "2"})
    assert len(re.findall(r"\*\*\(missed\)\*\*", text)) >= len(reliability.FIGURES)
