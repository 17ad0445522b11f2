"""Fixtures and hypothesis profiles for all tests."""

import random
from collections.abc import Iterator

import pytest
from hypothesis import settings

from tests.ranks import Ranks

settings.register_profile("sample", derandomize=True, deadline=None, max_examples=25, database=None, print_blob=True)
settings.register_profile("nightly", deadline=None, max_examples=1000)


def is_nightly(config: pytest.Config) -> bool:
    """Tell whether ``pytest -m nightly`` runs."""
    return config.option.markexpr == "nightly"


def pytest_configure(config: pytest.Config) -> None:
    settings.load_profile("nightly" if is_nightly(config) else "sample")


@pytest.hookimpl(tryfirst=True)  # before pytest selects by marker
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave all but a sample of each large sweep to the nightly run, which repeats what draws or samples its cases."""
    nightly = is_nightly(config)
    sweeps: dict[str, list[pytest.Item]] = {}
    for item in items:
        draws = "whole" in getattr(item, "fixturenames", ()) or hasattr(getattr(item, "obj", None), "hypothesis")
        if nightly and draws:
            item.add_marker("nightly")
        if item.get_closest_marker("sample"):
            sweeps.setdefault(item.nodeid.partition("[")[0], []).append(item)
    for name, cases in sweeps.items():
        (size,) = cases[0].get_closest_marker("sample").args
        for case in cases if nightly else random.Random(name).sample(cases, max(len(cases) - size, 0)):
            case.add_marker("nightly")


@pytest.fixture(scope="session")
def whole(pytestconfig: pytest.Config) -> bool:
    """Tell a test whether to try every case of its sweep (``pytest -m nightly``) or a sample."""
    return is_nightly(pytestconfig)


@pytest.fixture(scope="session")
def ranks() -> Iterator[Ranks]:
    """Two gloo processes; ``ranks.run(function, *args)`` runs a module-level function on both."""
    pool = Ranks()
    yield pool
    pool.close()
