"""Imports inside the package run downwards only, and siblings on a floor do not know each other."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import advcontrast

PACKAGE = Path(advcontrast.__file__).parent
FLOORS = {
    "_checks": 0,
    "_digest": 0,
    "_atomic_io": 0,
    "_deprecated": 0,
    "_memory_format": 0,
    "_modes": 0,
    "_progress": 0,
    "_random": 0,
    "_types": 0,
    "distributed": 1,
    "functional": 2,
    "attacks": 3,
    "augment": 3,
    "losses": 3,
    "norm": 3,
    "data": 3,
    "models": 3,
    "optim": 3,
    "surgery": 4,
    "engine": 5,
    "strategies": 5,
    "evaluation": 6,
    "adapters": 7,
    "__main__": 8,
}


def rooms_imported(source: str, room: str, depth: int) -> Iterator[str]:
    """Yield the rooms that a file of ``room`` imports; ``depth`` is how many folders deep it lies in the package."""
    for node in ast.walk(ast.parse(source)):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [
                alias.name.removeprefix("advcontrast.") for alias in node.names if alias.name.startswith("advcontrast.")
            ]
        elif (
            isinstance(node, ast.ImportFrom) and node.level == 0 and (node.module or "").split(".")[0] == "advcontrast"
        ):
            rest = (node.module or "").partition(".")[2]
            names = [rest] if rest else [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level > depth:
            names = [node.module] if node.module else [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level:
            names = [room]
        yield from (name.split(".")[0] for name in names)


def upward_imports(source: str, room: str, depth: int) -> list[str]:
    return [
        f"{room} (floor {FLOORS[room]}) imports {other} (floor {FLOORS[other]})"
        for other in rooms_imported(source, room, depth)
        if other != room and FLOORS[other] >= FLOORS[room] and FLOORS[room] != 0
    ]


FILES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_run_downwards(path):
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    assert upward_imports(path.read_text(), parts[0], len(parts) - 1) == []


@pytest.mark.parametrize(
    ("source", "room", "depth"),
    [
        ("from ..strategies import ACLTrainer", "losses", 1),
        ("from .. import surgery", "norm", 1),
        ("from ..norm.branch import bn_branch", "attacks", 1),
        ("import advcontrast.losses", "functional", 1),
        ("from advcontrast import attacks", "augment", 1),
        ("from .strategies import ACLTrainer", "surgery", 0),
        ("def f():\n    from ..losses import NTXentLoss", "distributed", 1),
    ],
)
def test_a_planted_upward_import_is_caught(source, room, depth):
    assert len(upward_imports(source, room, depth)) == 1


def test_every_room_has_a_floor():
    rooms = {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    assert rooms - {"__init__"} == set(FLOORS)
