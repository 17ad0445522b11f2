"""Counts what the tests do: ``pytest --scoreboard docs/reliability.json``, for all tests or for some of the files.

The figures are kept by test file, and a file's figures replace the earlier ones only where all of it ran: what ``-k``,
``-x`` or ``file.py::test`` leave out would otherwise be lost. ``tests/reliability.py`` makes a page of them.
"""

from __future__ import annotations

import json
import platform
import re
import traceback
from collections import Counter, defaultdict
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

import advcontrast

PACKAGE = str(Path(advcontrast.__file__).parent)
TEMPLATE = re.compile(r".+: expected .+, (got|found) .+\. .+\.", re.DOTALL)
WORDED_BY_CALLERS = ("_atomic_io.py", "published.py")  # what these raise, the library itself catches and puts in words
MALICE = re.compile(
    r"(checkpoint_abuse|test_cache|security/test_datasets).*::test_.*(not_run|not_unpacked|not_allocated|are_refused|is_refused)"
)
DEFECT = re.compile(r"_zoo\.py::test_.*defect")
_counted: Counter[str] = Counter()


def count(what: str, number: int = 1) -> None:
    """Add to a figure of the test that is running."""
    _counted[what] += number


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--scoreboard", type=Path, metavar="FILE", help="count what the tests do into this JSON file")


def pytest_configure(config: pytest.Config) -> None:
    if config.option.scoreboard:
        config.pluginmanager.register(Scoreboard(config), "scoreboard of this run")


class Scoreboard:
    """Collects the figures of a run and merges them into a file at its end."""

    def __init__(self, config: pytest.Config) -> None:
        self.path = config.invocation_params.dir / config.option.scoreboard
        self.root = config.rootpath
        self.partial = {_file(arg) for arg in config.args if "::" in arg}
        self.unfinished: Counter[str] = Counter()
        self.figures: dict[str, Counter[str]] = defaultdict(Counter)
        self.examples: dict[str, dict[str, int]] = defaultdict(dict)
        self.skipped: dict[str, Counter[str]] = defaultdict(Counter)

    def pytest_deselected(self, items: list[pytest.Item]) -> None:
        self.partial.update(_file(item.nodeid) for item in items)

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        self.unfinished.update(_file(item.nodeid) for item in session.items)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Generator[None, object, object]:
        _counted.clear()
        with _errors_judged():
            result = yield
        # What a planted defect does is no figure of the library.
        if not DEFECT.search(item.nodeid):
            self.figures[_file(item.nodeid)].update(_counted)
        self.unfinished[_file(item.nodeid)] -= 1
        return result

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item, call: pytest.CallInfo[None]
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        report = yield
        file = _file(item.nodeid)
        outcome = "xfailed" if hasattr(report, "wasxfail") else report.outcome
        if outcome == "passed" and report.when != "call":
            return report
        self.figures[file][outcome] += 1
        if outcome == "skipped":
            reason = str(report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr)
            self.skipped[file][reason.removeprefix("Skipped: ")] += 1
        for kind, belongs in {
            "defects": DEFECT.search(item.nodeid),
            "process-group cases": "ranks" in getattr(item, "fixturenames", ()),
            "malicious files": MALICE.search(item.nodeid),
        }.items():
            if belongs:
                self.figures[file].update({kind: 1, f"{kind} {outcome}": 1})
        statistics = re.findall(r"(\d+) passing", getattr(item, "hypothesis_statistics", ""))
        if statistics:
            self.examples[file][item.nodeid.partition("::")[2]] = sum(map(int, statistics))
        return report

    def pytest_sessionfinish(self) -> None:
        record = json.loads(self.path.read_text()) if self.path.exists() else {"files": {}}
        whole = {file for file, left in self.unfinished.items() if left == 0} - self.partial
        files = record["files"] | {
            file: {
                "figures": dict(sorted(self.figures[file].items())),
                "examples": dict(sorted(self.examples[file].items())),
                "skipped": dict(sorted(self.skipped[file].items())),
            }
            for file in whole
        }
        there = {file: kept for file, kept in sorted(files.items()) if (self.root / file).exists()}
        versions = {"python": platform.python_version(), "torch": torch.__version__}
        write(self.path, record | versions | {"files": there})


def write(path: Path, record: dict[str, Any]) -> None:
    """Write the figures, one file a line."""
    files = ",\n".join(f"  {json.dumps(file)}: {json.dumps(kept)}" for file, kept in record["files"].items())
    rest = "".join(f" {json.dumps(key)}: {json.dumps(record[key])},\n" for key in sorted(record) if key != "files")
    path.write_text(f'{{\n{rest} "files": {{\n{files}\n }}\n}}\n')


def _file(nodeid: str) -> str:
    return nodeid.partition("::")[0]


@contextmanager
def _errors_judged() -> Iterator[None]:
    """Look at each error of the library that ``pytest.raises`` catches inside the block, once at each text."""
    leave = pytest.RaisesExc.__exit__
    seen = set()

    def judge(raises: Any, kind: Any, error: BaseException | None, trace: Any) -> bool:
        caught = leave(raises, kind, error, trace)
        text = re.sub(r"\d+", "0", str(error))
        if caught and text not in seen and isinstance(error, Exception) and raised_by_the_library(error):
            if any(frame.f_code.co_filename.endswith(WORDED_BY_CALLERS) for frame, _ in traceback.walk_tb(trace)):
                return caught
            seen.add(text)
            count("bad inputs")
            count("clear errors" if TEMPLATE.fullmatch(str(error)) else f"unclear: {type(error).__name__}: {error}")
        return caught

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pytest.RaisesExc, "__exit__", judge)
        yield


def raised_by_the_library(error: BaseException) -> bool:
    """Tell whether the innermost Python line that raised an error is one of the library."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    return bool(frames) and frames[-1].f_code.co_filename.startswith(PACKAGE)
