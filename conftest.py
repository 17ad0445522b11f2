"""What every test and every docstring example may count on."""

import math
import os
import sys
from collections.abc import Iterator

import pytest
import torch

import advcontrast
from advcontrast import augment, norm

pytest_plugins = ["tests.scoreboard"]

# Sums are reproducible, and the tensors of tests are small: more threads only wait for each other, and for those of the
# processes that tests start.
if "OMP_NUM_THREADS" not in os.environ:
    os.environ["OMP_NUM_THREADS"] = "1"  # inherited by these processes
    torch.set_num_threads(1)


def pytest_report_header() -> str:
    """Name the versions that are tested."""
    import torchvision

    return f"torch {torch.__version__}, torchvision {torchvision.__version__}"


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
