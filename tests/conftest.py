"""Fixtures and hypothesis profiles for all tests."""

import os
from collections.abc import Iterator

import pytest
from hypothesis import settings

from tests.ranks import Ranks

settings.register_profile("ci", derandomize=True, deadline=None, max_examples=100, database=None, print_blob=True)
settings.register_profile("dev", deadline=None, max_examples=25)
settings.register_profile("nightly", deadline=None, max_examples=2000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))


@pytest.fixture(scope="session")
def ranks() -> Iterator[Ranks]:
    """Two gloo processes; ``ranks.run(function, *args)`` runs a module-level function on both."""
    pool = Ranks()
    yield pool
    pool.close()
