"""``python -m advcontrast``: what is installed here, and what is missing for what; made to be pasted into an issue.

Nothing is typed twice. Extras are read from the metadata of the installed package, and what an example or an adapter
needs from its own imports.
"""

from __future__ import annotations

import ast
import importlib
import os
import platform
import re
import sys
import textwrap
import warnings
from collections.abc import Collection, Iterable, Iterator
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

import torch

import advcontrast

_PACKAGE = Path(__file__).parent
_EXAMPLES = _PACKAGE.parents[1] / "examples"  # beside the source, in a clone
_DISTRIBUTIONS = {"PIL": "pillow"}  # under another name than the module
_GUESTS = ("robustbench", "torchattacks")  # there are adapters for them that import nothing
_WIDTH = 80

Rows = dict[str, str]


def version(distribution: str) -> str:
    """Return the version of a distribution, or ``"missing"``."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return "missing"


def importable(module: str) -> bool:
    """Tell whether there is a module; only torchvision, which breaks where torch has another version, is imported."""
    if module == "torchvision":
        return _torchvision() == version("torchvision") != "missing"
    try:
        spec = find_spec(module)
    except ValueError:
        return False
    return spec is not None and spec.origin is not None  # a folder in the current directory has none


def needs(files: Iterable[Path], own: Collection[str] = ()) -> list[list[str]]:
    """Return the modules that files cannot be imported without: of each list one, from outside the standard library."""
    known = {*own, *sys.stdlib_module_names, "advcontrast", "torch"}
    found = {group for file in files for group in _imports(ast.parse(file.read_text(encoding="utf-8")).body)}
    return sorted(list(group) for group in found if not known & {*group})


def _imports(statements: Iterable[ast.stmt]) -> set[tuple[str, ...]]:
    """Return what statements import: one name in a group, and in one group what takes the place of each other."""
    found: set[tuple[str, ...]] = set()
    for statement in statements:
        if isinstance(statement, ast.Import):
            found |= {(alias.name.partition(".")[0],) for alias in statement.names}
        elif isinstance(statement, ast.ImportFrom) and statement.level == 0:
            found.add(((statement.module or "").partition(".")[0],))
        elif isinstance(statement, (ast.With, ast.If)):
            found |= _imports(statement.body)
        elif isinstance(statement, ast.Try):
            lines = [line for handler in statement.handlers for line in handler.body]
            spare = [name for group in sorted(_imports(lines)) for name in group]
            found |= {tuple(dict.fromkeys([*group, *spare])) for group in _imports(statement.body)}
    return found


def extras() -> dict[str, list[str]]:
    """Return the distributions of each extra of the installed package; none where it is not installed."""
    try:
        requirements = metadata.requires("advcontrast") or []
    except metadata.PackageNotFoundError:
        return {}
    found: dict[str, list[str]] = {}
    for requirement in requirements:
        if match := re.match(r"([\w.-]+)(?:\[([\w.-]+)\])?.*\bextra\s*==\s*['\"]([\w.-]+)['\"]", requirement):
            name, part, extra = match.groups()
            found.setdefault(extra, []).append(part if name == "advcontrast" and part else f"={name}")
    # An extra may hold another one: what has no "=" is the name of one.
    return {extra: _flat(found, names) for extra, names in found.items()}


def _flat(extras: dict[str, list[str]], names: list[str]) -> list[str]:
    parts = [[name[1:]] if name[0] == "=" else _flat(extras, extras.get(name, [])) for name in names]
    return list(dict.fromkeys(name for part in parts for name in part))


def devices() -> Rows:
    """Return what torch can compute on."""
    capability = torch.backends.cpu.get_cpu_capability()
    rows = {"CPU": f"{platform.machine()}, {capability}, {torch.get_num_threads()} of {os.cpu_count()} threads"}
    for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        card = torch.cuda.get_device_properties(index)
        bf16 = "bf16" if torch.cuda.is_bf16_supported() else "no bf16"
        rows[f"CUDA {index}"] = f"{card.name}, {card.total_memory / 2**30:.0f} GiB, {bf16}"
    if torch.backends.mps.is_available():
        rows["MPS"] = "available"
    return rows if len(rows) > 1 else {**rows, "accelerator": "none"}


def report() -> Iterator[str]:
    """Yield the lines."""
    torches = {"torch": torch.__version__, "torchvision": _torchvision()}
    system = {"Python": platform.python_version(), "platform": platform.platform()}
    yield from _section("", {"advcontrast": advcontrast.__version__, **system, **torches, **devices()})
    scripts = {f"adapters.{file.stem}": needs([file]) for file in sorted((_PACKAGE / "adapters").glob("[!_]*.py"))}
    for path in sorted(_EXAMPLES.iterdir()) if _EXAMPLES.is_dir() else []:
        if files := [path] if path.suffix == ".py" else sorted(path.glob("*.py")):
            scripts[f"examples/{path.name}"] = needs(files, [file.stem for file in files[0].parent.glob("*.py")])
    found = extras()
    optional = {_distribution(name) for groups in scripts.values() for group in groups for name in group}
    optional |= {*_GUESTS, *(name for names in found.values() for name in names)}
    yield from _section("Optional packages", {name: version(name) for name in sorted(optional - {"torchvision"})})
    unknown = {"unknown": "advcontrast is not installed: pip install -e . in its folder"}
    gaps = {extra: [name for name in names if version(name) == "missing"] for extra, names in sorted(found.items())}
    yield from _section("Extras", {extra: _verdict("complete", names) for extra, names in gaps.items()} or unknown)
    rows = {name: _verdict("can run", _missing(groups)) for name, groups in scripts.items()}
    absent = {} if _EXAMPLES.is_dir() else {"examples": "not here: they come with a clone of the repository"}
    yield from _section("Adapters and examples", {**rows, **absent})


def _missing(groups: list[list[str]]) -> list[str]:
    names = [_distribution(group[0]) for group in groups if not any(map(importable, group))]
    broken = "torchvision" in names and version("torchvision") != "missing"
    return ["--upgrade torch torchvision" if broken and name == "torchvision" else name for name in names]


def _verdict(fine: str, missing: list[str]) -> str:
    return f"missing: pip install {' '.join(sorted(missing))}" if missing else fine


def _distribution(module: str) -> str:
    return _DISTRIBUTIONS.get(module, module.replace("_", "-"))


def _torchvision() -> str:
    """Return the version of torchvision, and what happens where it does not fit to torch."""
    if version("torchvision") == "missing":
        return "missing"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            importlib.import_module("torchvision")
    except Exception as error:  # whatever a mismatch of compiled libraries leads to
        return f"{version('torchvision')}, broken: {type(error).__name__} on import"
    return version("torchvision")


def _section(title: str, rows: Rows) -> Iterator[str]:
    """Yield a heading, and rows whose second column is aligned and wrapped."""
    yield from ["", title] if title else []
    width = max(map(len, rows)) + 2
    for name, text in rows.items():
        line, indent = f"{name:<{width}}{text}", " " * width
        yield from textwrap.wrap(line, _WIDTH, subsequent_indent=indent, break_on_hyphens=False)


if __name__ == "__main__":
    print("```text", *report(), "```", sep="\n")
