"""Reproducible builds, the guarantees of SECURITY.md, and the dependencies of the README."""

import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def wheel(tmp_path, name, when):
    """Build the wheel in a copy of the source, at another place, with files of another time."""
    copy = tmp_path / name / ("a" * (1 + len(name)))
    copy.mkdir(parents=True)
    for file in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copyfile(ROOT / file, copy / file)
    shutil.copytree(ROOT / "src", copy / "src", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    for i, path in enumerate(sorted(copy.rglob("*"), reverse=name == "second")):
        os.utime(path, (when + i, when + i))
    code = "import sys, hatchling.build; print(hatchling.build.build_wheel(sys.argv[1]))"
    environment = {**os.environ, "SOURCE_DATE_EPOCH": "1700000000", "PYTHONHASHSEED": str(when % 1000)}
    command = [sys.executable, "-c", code, str(tmp_path / name)]
    done = subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return tmp_path / name / done.stdout.split()[-1]


def test_two_wheels_of_one_source_are_equal_to_the_byte(tmp_path):
    pytest.importorskip("hatchling")
    first, second = wheel(tmp_path, "first", 10**9), wheel(tmp_path, "second", 10**9 + 12345)
    assert first.read_bytes() == second.read_bytes()
    with zipfile.ZipFile(first) as archive:
        names = archive.namelist()
        assert {entry.date_time for entry in archive.infolist()} == {(2023, 11, 14, 22, 13, 20)}
    assert {name.split("/")[0].split("-")[0] for name in names} == {"advcontrast"}


def promises():
    """Return the tests that SECURITY.md names."""
    return re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", (ROOT / "SECURITY.md").read_text())


def test_every_promise_names_a_test_that_is_there():
    assert len(promises()) >= 10
    for path, test in promises():
        assert (ROOT / path).is_file(), path
        assert f"def {test}(" in (ROOT / path).read_text() if test else True, test


def test_the_version_that_is_supported_is_the_one_that_is_made():
    version = re.search(r'__version__ = "(\d+\.\d+)', (ROOT / "src/advcontrast/__init__.py").read_text()).group(1)
    assert f"| {version}" in (ROOT / "SECURITY.md").read_text()


def test_nothing_is_installed_beside_what_the_readme_says():
    dependencies = re.search(r"^dependencies = \[(.*)\]", (ROOT / "pyproject.toml").read_text(), re.M).group(1)
    assert {re.split(r"[>=<]", name.strip('" '))[0] for name in dependencies.split(",")} == {
        "torch",
        "torchvision",
        "typing-extensions",
    }
