"""What every test and every docstring example may count on."""

import math
import os
import sys
from collections.abc import Iterator

# Property tests want reproducible sums, and DDP tests start processes of their own on the same cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch

import advcontrast
from advcontrast import augment, norm

pytest_plugins = ["tests.scoreboard"]


def pytest_report_header() -> str:
    """Name the versions that are tested."""
    import torchvision

    return f"torch {torch.__version__}, torchvision {torchvision.__version__}"


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _tracing() -> Iterator[None]:
    """Give the tracer of coverage back what other libraries take from it: AutoAttack's own checks end all tracing."""
    before = sys.gettrace()
    yield
    if sys.gettrace() is not before:
        sys.settrace(before)


@pytest.fixture(autouse=True)
def _seed() -> None:
    """Make examples that draw random numbers print the same ones."""
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _doctest_names(doctest_namespace: dict[str, object]) -> None:
    public = {name: getattr(advcontrast, name) for name in advcontrast.__all__}
    functional = {name: getattr(advcontrast.functional, name) for name in advcontrast.functional.__all__}
    shown = {name: getattr(augment, name) for name in augment.__all__} | {"DualNorm": norm.DualNorm}
    doctest_namespace.update(public | functional | shown | {"torch": torch, "math": math})
