"""Change the library in small ways and count how many of the changes the tests notice.

    python benchmarks/mutation.py                                # 40 changes a file, of the five rooms below
    python benchmarks/mutation.py functional losses              # some rooms
    python benchmarks/mutation.py --sample 10000                 # every change there is: hours

The changes are those of mutmut, one at a time in a copy of the repository. They are drawn with a fixed seed for each
file, so that the same source gives the same sample, and a larger one holds the smaller. Each one runs the doctests and
the tests of its file, then those of its room and the property tests, up to the first failure, in a process forked from
one that has imported PyTorch. (``mutmut run`` itself keeps all variants in one file behind a switch, which neither
``torch.compile`` nor pickle nor a doctest sees through.) A run continues where the last one stopped; a change that
survived is tried again.

Survivors that change nothing observable are listed with a reason in ``results/mutation/equivalent.json``, by their key
in ``results/mutation/results.json``.
"""

from __future__ import annotations

import argparse
import difflib
import importlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results" / "mutation"
ROOMS = {
    "functional": ["tests/functional", "tests/properties/test_nt_xent.py"],
    "losses": ["tests/losses", "tests/properties/test_nt_xent.py"],
    "attacks": ["tests/attacks", "tests/properties/test_pgd.py"],
    "norm": ["tests/norm", "tests/surgery", "tests/properties/test_dual_bn.py"],
    "surgery": ["tests/surgery", "tests/norm", "tests/properties/test_dual_bn.py"],
}
WARM = ("hypothesis", "numpy", "pytest", "torch", "torch._dynamo", "torchvision")
SECONDS = 300


def main() -> None:
    """Try the changes that were asked for and write down what became of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rooms", nargs="*", metavar="ROOM", help=f"of {', '.join(ROOMS)}; by default all")
    parser.add_argument("--sample", type=int, default=40, help="changes a file")
    given = parser.parse_args()
    unknown = [room for room in given.rooms if room not in ROOMS]
    if unknown or given.sample < 1:
        parser.error(f"expected rooms of {', '.join(ROOMS)} and a sample of at least 1")
    sys.dont_write_bytecode = True  # a changed file of the same size and second would be read from the cache
    os.environ["HYPOTHESIS_PROFILE"] = "dev"
    for name in WARM:
        importlib.import_module(name)
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder)
        for part in ("src", "tests"):
            shutil.copytree(ROOT / part, copy / part, ignore=shutil.ignore_patterns("__pycache__"))
        for part in ("conftest.py", "pyproject.toml"):
            shutil.copy(ROOT / part, copy)
        os.chdir(copy)
        for room in given.rooms or ROOMS:
            for source in _sources(copy, room):
                _try_file(copy, room, source, given.sample)


def _sources(copy: Path, room: str) -> list[Path]:
    package = copy / "src" / "advcontrast" / room
    files = sorted(package.glob("*.py")) or [package.with_suffix(".py")]
    return [file for file in files if file.name != "__init__.py"]


def _try_file(copy: Path, room: str, source: Path, sample: int) -> None:
    """Run the tests over a sample of the changes of one file."""
    name = f"{room}/{source.stem}" if source.parent.name == room else source.stem
    original = source.read_text()
    variants = dict(_variants(source, original))
    keys = sorted(variants)
    random.Random(name).shuffle(keys)
    keys = keys[:sample]
    record = _read(RESULTS / "results.json")
    known = record.get(name, {}).get("verdicts", {})
    own = sorted(str(path) for path in Path("tests", room).glob(f"test_{source.stem}*.py"))
    tests = [str(source.relative_to(copy)), *own, *(path for path in ROOMS[room] if Path(path).exists())]
    assert _fails(tests) == 0, f"the tests of {name} fail before any change"
    verdicts = {}
    for key in keys:
        verdicts[key] = known.get(key, "survived")
        if verdicts[key] != "survived":
            continue
        source.write_text(variants[key])
        started = time.monotonic()
        verdicts[key] = {None: "killed by time", 0: "survived"}.get(_fails(tests), "killed")
        source.write_text(original)
        print(f"{name} {verdicts[key]} in {time.monotonic() - started:.0f} s: {key}", flush=True)
        partly = known | verdicts
        _write(
            record | {name: {"changes": len(variants), "verdicts": {key: partly[key] for key in keys if key in partly}}}
        )
    record = _read(RESULTS / "results.json")
    _write(record | {name: {"changes": len(variants), "verdicts": verdicts}})
    print(name, dict(Counter(verdicts.values())), flush=True)


def _variants(source: Path, original: str) -> Iterator[tuple[str, str]]:
    """Yield each changed text of a file, under the lines that it replaces."""
    from mutmut.mutation.file_mutation import create_mutations, deep_replace

    module, changes, *_ = create_mutations(str(source), original)
    seen: Counter[str] = Counter()
    for change in changes:
        if change.contained_by_top_level_function is None:
            continue
        text = deep_replace(module, change.original_node, change.mutated_node).code
        lines = difflib.unified_diff(original.splitlines(), text.splitlines(), n=0, lineterm="")
        lines = [" ".join([line[0], line[1:].strip()]) for line in list(lines)[2:] if line[0] in "+-"]
        key = f"{change.contained_by_top_level_function.name.value}: {'  '.join(lines)}"
        seen[key] += 1
        yield (key if seen[key] == 1 else f"{key}  ({seen[key]})"), text


def _fails(tests: list[str]) -> int | None:
    """Run tests in a fork; the exit status of pytest, or ``None`` where they took too long."""
    child = os.fork()
    if child == 0:
        os.setsid()
        _run_tests(tests)
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.02)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return None


def _run_tests(tests: list[str]) -> None:
    import pytest

    quiet = os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, 1)
    os.dup2(quiet, 2)
    sys.path[:0] = [str(Path("src").resolve()), str(Path.cwd())]
    os.environ["PYTHONPATH"] = str(Path("src").resolve())
    code = 1
    try:
        options = ["-x", "-q", "-p", "no:cacheprovider", "--hypothesis-seed=0", "-k", "not compile"]
        code = pytest.main([*options, "-W", "ignore::pytest.PytestAssertRewriteWarning", *tests])
        package = sys.modules["advcontrast"].__file__ or ""
        assert Path(package).is_relative_to(Path.cwd()), package
    finally:
        os._exit(int(code))


def _read(path: Path) -> dict[str, dict]:
    return json.loads(path.read_text()) if path.exists() else {}


def _write(record: dict[str, dict]) -> None:
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / "results.json").write_text(json.dumps(dict(sorted(record.items())), indent=1) + "\n")


if __name__ == "__main__":
    main()
