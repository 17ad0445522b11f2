"""Runs of the scripts of examples/cifar: as a process of their own, or, faster, in this one."""

import importlib
import json
import os
import runpy
import signal
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
from safetensors import safe_open
from safetensors.torch import load_file

from advcontrast.evaluation import ResultCard
from tests.processes import run

CIFAR = Path(__file__).parents[2] / "examples" / "cifar"
PATIENCE = 300  # seconds for what takes a few
FEW = ("--data", "embedded", "--arch", "quickstart", "--limit", "60", "--test-limit", "20")
RESNET = ("--arch", "resnet18", "--width", "4")  # instead of the quickstart's network, which is faster
TINY = (*FEW, "--epochs", "1", "--batch-size", "20", "--attack-steps", "1")


def line(script, *flags):
    return [str(CIFAR / f"{script}.py"), *map(str, flags)]


def environment(home):
    # Folders of images are cached in the home of the user.
    return {**os.environ, "HOME": str(home)}


def process(script, *flags, home):
    """Run a script in a process of its own, to its end."""
    return run(*line(script, *flags), env=environment(home), timeout=PATIENCE)


SIGNALLED = """
import os, runpy, sys
from tests.engine.faults import tamper

script, number, at = sys.argv[1], int(sys.argv[2]), sys.argv[3]
sys.argv = [script, *sys.argv[4:]]
sys.path.insert(0, os.path.dirname(script))

class Patch:
    setattr = staticmethod(setattr)

def moved(name, call, args):
    result = call()
    if os.fspath(args[1]) == at:
        os.kill(os.getpid(), number)
    return result

tamper(Patch, moved, ("rename", "replace"))
runpy.run_path(script, run_name="__main__")
"""


def interrupted(script, *flags, home, at, number=signal.SIGKILL):
    """Run a script that sends itself a signal once a file or folder gets the name ``at``, and return its status."""
    path, *rest = line(script, *flags)
    return run("-c", SIGNALLED, path, int(number), at, *rest, env=environment(home), timeout=PATIENCE).returncode


@contextmanager
def scripts_importable():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(CIFAR)
        yield patch


def module(name):
    """Return a script as a module."""
    with scripts_importable():
        return importlib.import_module(name)


def inside(script, *flags):
    """Run a script in this process, and return its status."""
    with scripts_importable() as patch:
        patch.setattr(sys, "argv", line(script, *flags))
        try:
            runpy.run_path(sys.argv[0], run_name="__main__")
        except SystemExit as stop:
            return stop.code
        return 0


def card(out):
    return ResultCard.read(out / "card.json")


def training(out):
    """Return the results of a run beside its accuracies."""
    return card(out).settings["training"]


def flags_of(out):
    """Return the flags that a run was started with."""
    return json.loads((out / "run.json").read_text())["flags"]


def weights(out):
    return load_file(out / "final.safetensors")


def about(out):
    with safe_open(out / "final.safetensors", "pt") as file:
        return json.loads(file.metadata()["advcontrast"])


def contents(folder):
    """Return every file of a folder, to compare with later."""
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
