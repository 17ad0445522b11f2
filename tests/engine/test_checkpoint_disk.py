"""A disk that is full, failing or not there is reported, and costs no earlier checkpoint."""

import errno
import os
import re
import resource
import shutil
from functools import partial
from pathlib import Path

import pytest

from advcontrast.engine import Checkpoint, CheckpointWriteError, durable

from .faults import exit_code, failing, filled, fork, leftovers, require_recovery, same, state


@pytest.fixture(autouse=True)
def _many_writes(monkeypatch):
    """Let even a small state take several writes, so that some happen inside of torch's own writer."""
    monkeypatch.setattr(durable, "_CHUNK", 2048)


def refusal(path, number):
    got = f"{os.strerror(number)} (errno {number})"
    remedy = "Make room or choose another folder; earlier checkpoints are untouched."
    return f"^{re.escape(f'Checkpoint: expected to write {path}, got {got}. {remedy}')}$"


def open_files():
    return sorted(os.listdir("/dev/fd"))


@pytest.mark.parametrize("lasting", [False, True], ids=["once", "for good"])
@pytest.mark.parametrize(
    ("call", "number", "fewest"),
    [
        ("write", errno.ENOSPC, 3),
        ("write", errno.EFBIG, 3),
        ("write", errno.EIO, 3),
        ("fsync", errno.EIO, 4),
        ("fsync", errno.ENOSPC, 4),
        ("mkdir", errno.ENOSPC, 1),
        ("mkdir", errno.EIO, 1),
        ("rename", errno.ENOSPC, 2),
        ("rename", errno.EIO, 2),
        ("open", errno.ENOSPC, 4),
        ("unlink", errno.EIO, 2),
        ("rmdir", errno.EIO, 1),
    ],
)
def test_any_call_that_fails_is_reported_and_costs_nothing(tmp_path, call, number, fewest, lasting):
    template = filled(tmp_path / "run", (1, 2)).folder
    failures = 0
    # The first mkdir is of a folder that is there already.
    for k in range(call == "mkdir", 100):
        checkpoint = Checkpoint(shutil.copytree(template, tmp_path / str(k)))
        before = open_files()
        with failing(call, k, number, lasting=lasting) as failed:
            try:
                checkpoint.save(3, state(3))
            except CheckpointWriteError as error:
                assert re.match(refusal(checkpoint.path(3), number), str(error))
                assert error.__cause__.errno == number
            else:
                assert not failed
        assert open_files() == before
        if not failed:
            break
        require_recovery(checkpoint.folder, (2, 3))
        failures += 1
    assert failures >= fewest
