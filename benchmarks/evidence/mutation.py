"""Change the library in small ways and count how many of the changes the tests detect.

    python -m benchmarks.evidence.mutation                                # 40 changes per file, of five subpackages
    python -m benchmarks.evidence.mutation norm surgery --sample 100      # some subpackages
    python -m benchmarks.evidence.mutation functional/margin              # a file
    python -m benchmarks.evidence.mutation --sample 10000                 # every change: hours
    python -m benchmarks.evidence.mutation --again                        # those that survived, against all tests

The changes are those of mutmut, one at a time in a copy of the repository. They are drawn with a fixed seed for each
file: the same source gives the same sample, and a larger sample contains the smaller one. For each change, the doctests
and tests of its file run, then those of its subpackage, up to the first failure; with ``--again`` also those that start
processes and the property tests. They run in a process forked from one that has imported PyTorch. (``mutmut run``
itself keeps all variants in one file behind a switch, which works with neither ``torch.compile``, pickle nor doctests.)
The results of a file count only if the unchanged file passes the same tests before and after.

A run continues where the last one stopped. In a file that was modified, it repeats all changes drawn before whose lines
still exist. The result of a change when it was first drawn is stored too: no test was written because of it, so it
estimates the result for changes that were not drawn. ``equivalent.json`` of ``benchmarks/results/mutation`` lists
survivors that change nothing observable, by their key in ``results.json``, with a reason; ``survivors.json`` has the
reasons why others survive; ``table.md`` has the figures and every survivor.
"""

from __future__ import annotations

import argparse
import compileall
import difflib
import functools
import hashlib
import importlib
import importlib.metadata
import json
import os
import platform
import random
import re
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "mutation"
PROPERTIES = {
    "functional": "nt_xent",
    "losses": "nt_xent",
    "attacks": "pgd",
    "norm": "dual_bn",
    "surgery": "dual_bn",
}
WARM = ("hypothesis", "numpy", "pytest", "torch", "torch._dynamo", "torchvision", "timm")
SECONDS = 60  # on top of five times what the tests of the unchanged file take


def main() -> None:
    """Try the selected changes and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", help=f"of {', '.join(PROPERTIES)}, or files in them; by default all")
    parser.add_argument("--sample", type=int, default=40, help="changes a file")
    parser.add_argument("--again", action="store_true", help="try those that survived again, against all tests")
    given = parser.parse_args()
    unknown = [subpackage for subpackage in given.parts if subpackage.split("/")[0] not in PROPERTIES]
    if unknown or given.sample < 1:
        parser.error(f"expected parts of {', '.join(PROPERTIES)} and a sample of at least 1")
    os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
    sys.dont_write_bytecode = True  # a changed file of the same size and second would be read from the cache
    for name in WARM:
        importlib.import_module(name)
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder)
        for part in ("docs", "src", "tests"):
            shutil.copytree(ROOT / part, copy / part, ignore=shutil.ignore_patterns("__pycache__", "_build"))
        for part in ("conftest.py", "pyproject.toml"):
            shutil.copy(ROOT / part, copy)
        compileall.compile_dir(copy / "src", quiet=2)
        os.chdir(copy)
        for chosen in given.parts or PROPERTIES:
            subpackage, _, file = chosen.partition("/")
            for source in sorted(Path("src", "advcontrast", subpackage).glob(f"{file or '[!_]*'}.py")):
                _try_file(subpackage, source, given.sample, given.again)
                (RESULTS / "table.md").write_text(_table())


def _try_file(subpackage: str, source: Path, sample: int, again: bool) -> None:
    """Run the tests over a sample of the changes of one file."""
    name = f"{subpackage}/{source.stem}"
    original = source.read_text()
    variants = dict(_variants(source, original))
    keys = sorted(variants)
    random.Random(name).shuffle(keys)
    record = _read("results")
    digest = hashlib.sha256(original.encode()).hexdigest()
    last = {"verdicts": {}, "first": {}, **record.get(name, {})}
    known = last["verdicts"] if last.get("source") == digest else {}
    verdicts = {key: known[key] for key in keys if key in known}
    first = {key: last["first"][key] for key in keys if key in last["first"]}
    equivalent = _read("equivalent").get(name, {})
    missing = [key for key in keys if key not in known and (key in last["verdicts"] or key in keys[:sample])]
    survived = [key for key, verdict in verdicts.items() if verdict == "survived" and key not in equivalent]
    suites = _suites(subpackage, source, again)
    left = survived if again else missing
    for cached in source.parent.glob(f"__pycache__/{source.stem}.*"):
        cached.unlink()
    for key in left:
        started = time.monotonic()
        killer = _killer(source, variants[key], suites)
        verdicts[key] = f"killed by {killer}" if killer else "survived"
        if key not in last["verdicts"]:
            first[key] = verdicts[key].split()[0]
        print(f"{time.monotonic() - started:3.0f} s {name} {verdicts[key]}: {key}", flush=True)
    if left and (failure := _first_failure(suites[0], 600)):
        raise SystemExit(f"the tests of {name} fail without a change: {failure}")
    entry = {"changes": len(variants), "source": digest, "verdicts": verdicts, "first": first}
    _write(record | {name: entry})
    print(name, len(variants), dict(Counter(verdict.split()[0] for verdict in verdicts.values())), flush=True)


def _killer(source: Path, changed: str, suites: list[list[str]]) -> str | None:
    """Return the test that detects a change of a file, or ``None``."""
    original = source.read_text()
    for suite in suites:
        limit = SECONDS + 5 * _time_unchanged(tuple(suite))
        source.write_text(changed)
        failure = _first_failure(suite, limit)
        source.write_text(original)
        if failure:
            return failure
    return None


def _variants(source: Path, original: str) -> Iterator[tuple[str, str]]:
    """Yield each changed text of a file, under the lines that it replaces."""
    from mutmut.mutation.file_mutation import create_mutations, deep_replace

    module, changes, *_ = create_mutations(str(source), original)
    seen: Counter[str] = Counter()
    for change in changes:
        function = change.contained_by_top_level_function
        if function is None:
            continue
        text = deep_replace(module, change.original_node, change.mutated_node).code
        lines = difflib.unified_diff(original.splitlines(), text.splitlines(), n=0, lineterm="")
        lines = [" ".join([line[0], line[1:].strip()]) for line in list(lines)[2:] if line[0] in "+-"]
        name = getattr(function, "name", None)  # a statement in the body of a class has none
        key = f"{name.value if name else 'class'}: {'  '.join(lines)}"
        seen[key] += 1
        yield (key if seen[key] == 1 else f"{key}  ({seen[key]})"), text


def _suites(subpackage: str, source: Path, thorough: bool) -> list[list[str]]:
    """Return the arguments of pytest for the tests of a file, of its subpackage and, if requested, all others."""
    quick = ["-m", "not slow and not distributed and not nightly"]
    defined = re.findall(r"^(?:class|def) ([a-zA-Z]\w+)", source.read_text(), re.MULTILINE)
    files = sorted(Path("tests", subpackage).glob("test_*.py"), key=lambda file: file.stat().st_size)
    files.sort(key=lambda file: not any(name in file.read_text() for name in defined))
    own = [str(file) for file in files if file.stem.startswith((f"test_{source.stem}", "test_owners", "test_errors"))]
    suites = [[*quick, str(source), *own], [*quick, *map(str, files)]]
    if thorough:
        related = {"norm": ["tests/surgery"], "surgery": ["tests/norm"], "functional": ["tests/losses"]}
        suites.append([*related.get(subpackage, []), f"tests/properties/test_{PROPERTIES[subpackage]}.py"])
        suites.append(["-m", "(slow or distributed) and not nightly", f"tests/{subpackage}"])
    return suites


@functools.cache
def _time_unchanged(suite: tuple[str, ...]) -> float:
    started = time.monotonic()
    failure = _first_failure(suite, 600)
    if failure:
        raise SystemExit(f"the tests fail before any change: {failure}")
    return time.monotonic() - started


def _first_failure(suite: Sequence[str], seconds: float) -> str | None:
    """Run tests in a fork and return the first that fails, "time" if they take too long, ``None`` if all pass."""
    report = Path("first_failure.txt")
    report.unlink(missing_ok=True)
    child = os.fork()
    if child == 0:
        os.setsid()
        _run_tests(suite, report.resolve())
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            code = os.waitstatus_to_exitcode(status)
            if code == -signal.SIGKILL:
                raise SystemExit("The tests were killed from outside, perhaps for lack of memory.")
            failure = report.read_text() if report.exists() else f"exit status {code}"
            return None if code in (0, 5) else failure  # 5: nothing to run
        time.sleep(0.02)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return "time"


def _run_tests(suite: Sequence[str], report: Path) -> None:
    import pytest

    leave = os._exit  # tests replace it, and a change may keep them from restoring it

    class FirstFailure:
        def pytest_runtest_logreport(self, report: Any) -> None:
            self.note(report)

        def pytest_collectreport(self, report: Any) -> None:
            self.note(report)

        def note(self, result: Any) -> None:
            if result.failed and not report.exists():
                report.write_text(result.nodeid)

    quiet = os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, 1)
    os.dup2(quiet, 2)
    sys.path[:0] = [str(Path("src").resolve()), str(Path.cwd())]
    os.environ["PYTHONPATH"] = str(Path("src").resolve())
    code = 1
    try:
        options = ["-x", "-q", "-n", "0", "-p", "no:cacheprovider", "--hypothesis-seed=0", "-k", "not compile"]
        options += ["-W", "ignore::pytest.PytestAssertRewriteWarning"]
        code = pytest.main([*options, *suite], plugins=[FirstFailure()])
        package = sys.modules["advcontrast"].__file__ or ""
        assert Path(package).is_relative_to(Path.cwd()), package
    finally:
        leave(int(code))


def _table() -> str:
    """Return the figures of every subpackage and file, and all survivors, in Markdown."""
    record, equivalent, survivors = _read("results"), _read("equivalent"), _read("survivors")
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("mutmut", "torch", "pytest"))
    text = [
        "# Changes that the tests detect\n",
        f"Last run: `python {' '.join(['-m', 'benchmarks.evidence.mutation', *sys.argv[1:]])}`, "
        f"{datetime.now(timezone.utc):%Y-%m-%d}, Python {platform.python_version()}, {versions}; drawn for each file "
        "by `random.Random(file)`.\n",
        "The score is killed / (drawn - equivalent). It is optimistic, since some tests were written because of these "
        'changes. "At first" estimates the score for changes that were not drawn: the share that the tests detected at '
        "the time of the draw, including tests that start processes, without equivalent changes. Changes that were "
        "drawn before this was recorded do not count there. mutmut does not change decorated functions.\n",
        "| | changes | drawn | killed | equivalent | survived | score | at first |\n" + "| --- " * 8 + "|",
    ]
    verdicts = {
        name: {
            key: "equivalent" if verdict == "survived" and key in equivalent.get(name, {}) else verdict.split()[0]
            for key, verdict in file["verdicts"].items()
        }
        for name, file in record.items()
    }
    for subpackage in PROPERTIES:
        files = [name for name in record if name.startswith(f"{subpackage}/")]
        for title, names in [(f"**{subpackage}**", files), *((name, [name]) for name in files)]:
            count = Counter(verdict for name in names for verdict in verdicts[name].values())
            real = count["killed"] + count["survived"]
            score = f"{100 * count['killed'] / real:.1f} %" if real else "-"
            there = sum(record[name]["changes"] for name in names)
            first = Counter(
                verdict
                for name in names
                for key, verdict in record[name].get("first", {}).items()
                if verdicts[name].get(key) != "equivalent"
            )
            share = f"{100 * first['killed'] / first.total():.1f} %" if first else "-"
            at_first = f"{share} of {first.total()}"
            figures = [there, count.total(), count["killed"], count["equivalent"], count["survived"], score, at_first]
            text.append("| " + " | ".join([title, *map(str, figures)]) + " |")
    for title, verdict, reasons in (("Survived", "survived", survivors), ("Without effect", "equivalent", equivalent)):
        text += [f"\n## {title}\n"]
        for name, file in verdicts.items():
            for key in (key for key in file if file[key] == verdict):
                text.append(f"- `{name}`, `{key}`: {reasons.get(name, {}).get(key, 'not looked at yet')}")
    return "\n".join(text) + "\n"


def _read(name: str) -> dict[str, Any]:
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text()) if path.exists() else {}


def _write(record: dict[str, Any]) -> None:
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / "results.json").write_text(json.dumps(dict(sorted(record.items())), indent=1) + "\n")


if __name__ == "__main__":
    main()
