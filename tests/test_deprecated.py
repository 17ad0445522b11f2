"""Old paths work for one release, warn, and lead to the same objects."""

import importlib
import sys

import pytest

from advcontrast import _deprecated


def test_old_modules_hold_the_names_of_the_new_ones():
    for old, new in _deprecated.MODULES.items():
        sys.modules.pop(old, None)
        with pytest.warns(DeprecationWarning, match=f"{old} has moved .* Use {new}") as caught:
            alias = importlib.import_module(old)
        assert caught[0].filename == __file__ or "importlib" in caught[0].filename
        found = importlib.import_module(new)
        public = [name for name in vars(found) if not name.startswith("_")]
        assert public
        assert all(getattr(alias, name) is getattr(found, name) for name in public)


def test_old_names_are_the_new_objects():
    for old, new in _deprecated.NAMES.items():
        package, _, name = old.rpartition(".")
        target, _, attribute = new.rpartition(".")
        with pytest.warns(DeprecationWarning, match=f"{old} has moved .* Use {new}") as caught:
            found = getattr(importlib.import_module(package), name)
        assert caught[0].filename == __file__
        assert found is getattr(importlib.import_module(target), attribute)


def test_unknown_names_are_attribute_errors():
    for package in ("", ".engine", ".evaluation", ".attacks", ".functional"):
        module = importlib.import_module(f"advcontrast{package}")
        with pytest.raises(AttributeError, match=f"module 'advcontrast{package}' has no attribute 'nothing'"):
            _ = module.nothing
