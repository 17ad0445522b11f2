"""Children that die, and disks that fail, at the k-th change that is made to the disk."""

import gc
import itertools
import os
import pathlib
import re
import shutil
import signal
import traceback
import warnings
from contextlib import contextmanager
from functools import partial

import pytest
import torch

from advcontrast.engine import Checkpoint

CALLS = ("mkdir", "open", "write", "fsync", "rename", "replace", "unlink", "rmdir")


def tamper(patch, around, calls=CALLS):
    """Let ``around(name, call, args)`` decide what becomes of each of the ``calls`` to the system."""
    for name in calls:
        real = getattr(os, name)

        def instead(*args, real=real, name=name, **kwargs):
            return around(name, partial(real, *args, **kwargs), args)

        patch.setattr(os, name, instead)
        # Python 3.10's pathlib holds references of its own.
        accessor = getattr(pathlib, "_NormalAccessor", None)
        if hasattr(accessor, name) and name != "open":
            patch.setattr(accessor, name, staticmethod(instead))


def dying(job, k, when):
    """Do the job, but be killed before or after call number ``k``, or in the middle of write number ``k``."""
    count, real_write = itertools.count(), os.write

    def around(name, call, args):
        if next(count) != k:
            return call()
        try:
            if when == "after":
                call()
            if when == "half":
                real_write(args[0], bytes(args[1])[: len(args[1]) // 2])
        finally:
            os.kill(os.getpid(), signal.SIGKILL)
        return None

    tamper(pytest.MonkeyPatch(), around, ("write",) if when == "half" else CALLS)
    job()


@contextmanager
def failing(call, k, number, *, lasting=False):
    """Let call number ``k`` of one kind fail inside the block, and if ``lasting`` all after it; yield which did."""
    count, failed = itertools.count(), []

    def around(_, do, args):
        i = next(count)
        if i == k or (lasting and i > k):
            failed.append(i)
            raise OSError(number, os.strerror(number))
        return do()

    with pytest.MonkeyPatch.context() as patch:
        tamper(patch, around, (call,))
        yield failed


def counted(call, job):
    """Return how many calls of one kind the job makes."""
    made = []

    def around(name, do, args):
        made.append(name)
        return do()

    with pytest.MonkeyPatch.context() as patch:
        tamper(patch, around, (call,))
        job()
    return len(made)


def fork(job):
    """Start ``job`` in a child and return its process number. It is ended after a minute at the latest."""
    with warnings.catch_warnings():
        # Other tests may have left threads behind; the child does not need them.
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if pid:
        return pid
    try:
        gc.disable()  # A collection would touch, and so copy, every page of the parent.
        signal.alarm(60)
        job()
        os._exit(0)
    except BaseException:
        traceback.print_exc()
        os._exit(1)


def exit_code(pid):
    """Wait for a child; minus the number of the signal that killed it."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def kill_everywhere(template, job, check, ways, *, stride=1):
    """Kill ``job(folder)`` at every point, or every ``stride``-th, each time in a new copy of the template.

    Returns what ``check(folder)`` returned after each of the kills.
    """
    results = []
    for when in ways:
        for k in range(0, 1000, stride):
            folder = template.with_name(f"{when} {k}")
            if template.exists():
                shutil.copytree(template, folder)
            code = exit_code(fork(partial(dying, partial(job, folder), k, when)))
            if code == 0:
                break
            assert code == -signal.SIGKILL, f"{when} call {k}: exit code {code}"
            results.append(check(folder))
            shutil.rmtree(folder, ignore_errors=True)
    return results


def state(step):
    """A state of every kind of entry that is allowed, another one for each step."""
    generator = torch.Generator().manual_seed(step)
    return {
        "learner": {"weight": torch.randn(16, 8, generator=generator), "count": torch.tensor(step)},
        "half": torch.randn(5, generator=generator).bfloat16(),
        "bytes": torch.randint(0, 256, (100,), dtype=torch.uint8, generator=generator),
        "history": [{"epoch": step, "loss": step / 3, "name": f"ä {step}"}],
        "betas": (0.9, None, True),
        "empty": torch.zeros(0),
    }


def same(a, b):
    """Tell whether two states are equal to the bit, in types too."""
    if type(a) is not type(b):
        return False
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def filled(folder, steps, **kwargs):
    """Return a folder of checkpoints with one for each of the steps."""
    checkpoint = Checkpoint(folder, **kwargs)
    for step in steps:
        checkpoint.save(step, state(step))
    return checkpoint


def open_files():
    """Return the numbers of the files that this process has open."""
    return sorted(int(path.name) for path in pathlib.Path("/dev/fd").iterdir())


def leftovers(folder):
    return [path.name for path in folder.iterdir() if not re.fullmatch(r"step-\d{8}", path.name)]


def require_recovery(folder, allowed):
    """Require the newest checkpoint to be of one of the ``allowed`` steps, untouched, and the next save to tidy up.

    Under pytest any warning of damage is an error. Returns the step that was found.
    """
    checkpoint = Checkpoint(folder)
    found = checkpoint.load()
    step = None if found is None else found[0]
    assert step in allowed
    assert found is None or same(found[1], state(step))
    checkpoint.save(90, state(90))
    assert leftovers(folder) == []
    latest, loaded = checkpoint.load()
    assert latest == 90
    assert same(loaded, state(90))
    return step
