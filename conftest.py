"""Settings of every test and every docstring example."""

import gc
import math
import os
import signal
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import pytest

# Sums are reproducible, and the tensors of tests are small: more threads only wait for each other, and for those of the
# processes that run beside them. PyTorch reads this when it is imported, and child processes inherit it.
os.environ.setdefault("OMP_NUM_THREADS", "1")

gc.disable()  # while tests are collected, which takes an eighth less time then

# Shells ignore Ctrl-C in jobs that they start in the background, and child processes inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_report_header() -> str:
    """Name the versions that are tested."""
    return f"torch {version('torch')}, torchvision {version('torchvision')}"


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Use up to eight cores for folders of tests, and one process for files that are named; ``-n`` overrides it."""
    if all(Path(argument.partition("::")[0]).suffix == ".py" for argument in config.args):
        return 0
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, 8)


def pytest_collection_finish() -> None:
    """Exempt what is there before the first test from garbage collection: millions of objects of other libraries."""
    gc.collect()
    gc.freeze()
    gc.enable()


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
    import torch

    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _doctest_names(doctest_namespace: dict[str, object]) -> None:
    import torch

    import advcontrast
    from advcontrast import augment, norm

    public = {name: getattr(advcontrast, name) for name in advcontrast.__all__}
    functional = {name: getattr(advcontrast.functional, name) for name in advcontrast.functional.__all__}
    shown = {name: getattr(augment, name) for name in augment.__all__} | {"DualNorm": norm.DualNorm}
    doctest_namespace.update(public | functional | shown | {"torch": torch, "math": math})
