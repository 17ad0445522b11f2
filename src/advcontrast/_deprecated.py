"""Old module paths and names: they work for one release and warn.

A row here is all that a move needs: :data:`MODULES` for a module, :data:`NAMES` for a public name of a package.
"""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Callable
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

MODULES: dict[str, str] = {
    "advcontrast.engine.manifest": "advcontrast.engine.checkpoint.manifest",
    "advcontrast.engine.errors": "advcontrast.engine.checkpoint.errors",
    "advcontrast.engine.archive": "advcontrast.engine.checkpoint.archive",
    "advcontrast.engine.source": "advcontrast.engine.batches.source",
    "advcontrast.engine.sampling": "advcontrast.engine.batches.plan",
    "advcontrast.engine.reader": "advcontrast.engine.batches.reader",
    "advcontrast.engine.reading": "advcontrast.engine.batches.stream",
    "advcontrast.engine.shelf": "advcontrast.engine.batches.worker",
    "advcontrast.engine.records": "advcontrast.engine.run_folder",
    "advcontrast.engine.identity": "advcontrast.engine.run_settings",
    "advcontrast.engine.termination": "advcontrast.engine.signals",
    "advcontrast.engine.lars": "advcontrast.optim.lars",
    "advcontrast.engine.ema": "advcontrast.optim.ema",
    "advcontrast.engine.schedules": "advcontrast.optim.schedules",
    "advcontrast.attacks.carried": "advcontrast.attacks.stateful",
    "advcontrast.attacks.target": "advcontrast.attacks.context",
    "advcontrast.augment.formulas": "advcontrast.augment._corruption_ops",
}
NAMES: dict[str, str] = {}


def warn(old: str, new: str, *, stacklevel: int) -> None:
    """Warn that ``old`` is now ``new``, at the line of the caller's caller."""
    message = f"{old} has moved and will be removed in the next release. Use {new}"
    warnings.warn(message, DeprecationWarning, stacklevel=stacklevel + 1)


def names_of(package: str) -> Callable[[str], Any]:
    """Return the ``__getattr__`` of a package, which finds its old names."""

    def find(name: str) -> Any:
        old = f"{package}.{name}"
        if old not in NAMES:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        new = NAMES[old]
        warn(old, new, stacklevel=2)
        module, _, attribute = new.rpartition(".")
        return getattr(importlib.import_module(module), attribute)

    return find


class _MovedModule(MetaPathFinder, Loader):
    """Import a moved module under its old path: an alias that holds the names of the new one."""

    def find_spec(self, fullname: str, *_: object) -> ModuleSpec | None:
        return ModuleSpec(fullname, self) if fullname in MODULES else None

    def exec_module(self, module: ModuleType) -> None:
        new = MODULES[module.__name__]
        warn(module.__name__, new, stacklevel=2)
        found = importlib.import_module(new)
        module.__dict__.update({name: value for name, value in vars(found).items() if not name.startswith("__")})


sys.meta_path.append(_MovedModule())
