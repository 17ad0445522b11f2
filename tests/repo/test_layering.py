"""Imports run downwards, never in circles, and private modules stay inside their package."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import advcontrast

PACKAGE = Path(advcontrast.__file__).parent
FLOORS = [
    {
        "_atomic_io",
        "_checks",
        "_deprecated",
        "_digest",
        "_memory_format",
        "_modes",
        "_progress",
        "_random",
        "_transfer",
        "_types",
    },
    {"distributed"},
    {"functional", "data", "models"},
    {"attacks", "augment", "losses", "norm", "optim"},
    {"surgery"},
    {"strategies", "engine"},
    {"evaluation"},
    {"adapters"},
    {"__main__"},
]


def module_of(path: Path) -> str:
    """Return the dotted name of a file below the package, without ``advcontrast.``."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(path): path.read_text() for path in PACKAGE.rglob("*.py")}


def imported(source: str, package: str) -> list[tuple[str, bool]]:
    """Return the modules of this library that a file of ``package`` imports, and whether at its import."""
    tree = ast.parse(source)
    late = [part for part in ast.walk(tree) if isinstance(part, ast.FunctionDef) or _for_types_only(part)]
    inner = {id(node) for part in late for node in ast.walk(part)}
    found = []
    for node in ast.walk(tree):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = ["advcontrast", *package.split(".")] if package else ["advcontrast"]
            base = base[: len(base) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            names = [f"{module}.{alias.name}" for alias in node.names]
        for name in names:
            head, _, rest = name.partition(".")
            if head == "advcontrast" and rest:
                found.append((rest if rest in MODULES else rest.rpartition(".")[0], id(node) not in inner))
    return found


def _for_types_only(part: ast.AST) -> bool:
    return isinstance(part, ast.If) and ast.unparse(part.test) == "TYPE_CHECKING"


def faults(module: str, source: str, *, is_package: bool) -> list[str]:
    """Return the imports of a module that a room may not have."""
    package = module if is_package else module.rpartition(".")[0]
    floors = {room: number for number, floor in enumerate(FLOORS) for room in floor}
    found = []
    for other, _ in imported(source, package):
        room, target = module.split(".")[0], other.split(".")[0]
        if target and room and room != target and floors[target] >= floors[room] > 0:
            found.append(f"{module} imports {other} upwards")
        private = [number for number, part in enumerate(other.split(".")) if part.startswith("_")]
        owner = other.split(".")[: private[0]] if private else []
        if package.split(".")[: len(owner)] != owner:
            found.append(f"{module} imports {other}, which is private to {'.'.join(owner)}")
    return found


def test_imports_run_downwards_and_private_modules_stay_at_home():
    assert [fault for path in PACKAGE.rglob("*.py") for fault in faults_of(path)] == []


def faults_of(path: Path) -> list[str]:
    return faults(module_of(path), path.read_text(), is_package=path.name == "__init__.py")


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("losses.trades", "from ..strategies import ACLTrainer"),
        ("norm.branch", "from .. import surgery"),
        ("attacks.pgd", "from ..norm.branch import bn_branch"),
        ("functional.margin", "import advcontrast.losses"),
        ("augment.pair", "from advcontrast import attacks"),
        ("distributed", "def f():\n    from .losses import NTXentLoss"),
        ("adapters.timm", "from ..evaluation.plots._canvas import canvas"),
        ("evaluation.cards.card", "from ..plots._canvas import canvas"),
        ("engine.fit", "from ..evaluation.accuracy.measure import accuracy"),
    ],
)
def test_planted_faults_are_caught(module, source):
    assert len(faults(module, source, is_package=False)) == 1


def test_no_module_imports_itself_through_others():
    graph = {}
    for path in PACKAGE.rglob("*.py"):
        module = module_of(path)
        package = module if path.name == "__init__.py" else module.rpartition(".")[0]
        graph[module] = {other for other, early in imported(path.read_text(), package) if early and other != module}
    assert len(list(TopologicalSorter(graph).static_order())) >= len(graph)  # raises CycleError


def test_every_room_has_one_floor():
    rooms = {module.split(".")[0] for module in MODULES} - {""}
    assert sorted(room for floor in FLOORS for room in floor) == sorted(rooms)
