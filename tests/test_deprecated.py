"""Old paths work for one release, warn, and lead to the same objects."""

import importlib
import inspect

import pytest

from advcontrast import _deprecated
from advcontrast.attacks import FreeAttack
from advcontrast.optim import LARS


def test_old_modules_hold_the_names_of_the_new_ones():
    for old, new in _deprecated.MODULES.items():
        alias, found = importlib.import_module(old), importlib.import_module(new)
        public = [name for name in vars(found) if not name.startswith("_")]
        assert public
        for name in public:
            with pytest.warns(DeprecationWarning, match=f"{old} has moved .* Use {new}") as caught:
                assert getattr(alias, name) is getattr(found, name)
            assert caught[0].filename == __file__


@pytest.mark.filterwarnings("ignore:advcontrast:DeprecationWarning")
def test_an_old_path_can_be_imported_in_every_way():
    import advcontrast.engine.lars
    from advcontrast.engine.lars import LARS as by_name

    from advcontrast.attacks import carried

    assert advcontrast.engine.lars.LARS is by_name is LARS
    assert carried.FreeAttack is FreeAttack


def test_an_old_module_does_not_replace_a_function_of_its_name():
    importlib.import_module("advcontrast.evaluation.autoattack")
    from advcontrast.evaluation import autoattack

    assert inspect.isfunction(autoattack)


def test_old_names_are_the_new_objects():
    for old, new in _deprecated.NAMES.items():
        package, _, name = old.rpartition(".")
        target, _, attribute = new.rpartition(".")
        with pytest.warns(DeprecationWarning, match=f"{old} has moved .* Use {new}") as caught:
            found = getattr(importlib.import_module(package), name)
        assert caught[0].filename == __file__
        assert found is getattr(importlib.import_module(target), attribute)


@pytest.mark.parametrize("module", ["advcontrast.engine", "advcontrast.engine.schedules"])
def test_a_constant_schedule_works_and_names_its_successor(module):
    with pytest.warns(DeprecationWarning, match=rf"{module}\.Constant .* Use schedule=1\.0 in fit"):
        constant = importlib.import_module(module).Constant
    assert constant()(1000) == 1.0


def test_unknown_names_are_attribute_errors():
    for package in ("", ".engine", ".evaluation", ".evaluation.masking", ".attacks", ".functional"):
        module = importlib.import_module(f"advcontrast{package}")
        with pytest.raises(AttributeError, match=f"module 'advcontrast{package}' has no attribute 'nothing'"):
            _ = module.nothing
