"""One process at a time writes to a folder."""

import os
import signal

import pytest

from advcontrast.engine import Checkpoint, CheckpointBusyError

from .faults import exit_code, fork


def hold(checkpoint):
    """Start a process that holds the folder until it is killed."""
    reading, writing = os.pipe()

    def job():
        with checkpoint.locked():
            os.write(writing, b"0")
            signal.pause()

    pid = fork(job)
    os.close(writing)
    assert os.read(reading, 1) == b"0"
    os.close(reading)
    return pid


def test_a_second_process_is_refused_and_told_of_the_first(tmp_path):
    checkpoint = Checkpoint(tmp_path / "run")
    pid = hold(checkpoint)
    try:
        message = (
            rf"^Checkpoint: expected {checkpoint.folder} to be free, got process {pid} on {os.uname().nodename}\. "
        )
        with pytest.raises(CheckpointBusyError, match=message + r"Wait for it to end, or choose another folder\.$"):
            checkpoint.locked().__enter__()
    finally:
        os.kill(pid, signal.SIGKILL)
        exit_code(pid)


def test_a_killed_process_holds_nothing(tmp_path):
    checkpoint = Checkpoint(tmp_path)
    pid = hold(checkpoint)
    os.kill(pid, signal.SIGKILL)
    assert exit_code(pid) == -signal.SIGKILL
    with checkpoint.locked():
        checkpoint.save(1, {})
    assert f"process {os.getpid()} on " in (tmp_path / ".lock").read_text()


def test_another_run_in_the_same_process_is_refused_too(tmp_path):
    busy = pytest.raises(CheckpointBusyError, match=f"got process {os.getpid()} on ")
    with Checkpoint(tmp_path).locked(), busy, Checkpoint(tmp_path).locked():
        raise AssertionError("the block was entered")


def test_the_folder_is_free_after_the_block_and_after_an_error_in_it(tmp_path):
    checkpoint = Checkpoint(tmp_path)
    with checkpoint.locked():
        pass
    with pytest.raises(OSError, match="mine"), checkpoint.locked():
        raise OSError("mine")
    with checkpoint.locked():
        pass


def test_folders_do_not_hold_each_other(tmp_path):
    with Checkpoint(tmp_path / "a").locked(), Checkpoint(tmp_path / "b").locked():
        pass


def test_the_lock_is_no_leftover(tmp_path):
    checkpoint = Checkpoint(tmp_path)
    with checkpoint.locked():
        checkpoint.save(1, {})
        assert (tmp_path / ".lock").exists()
    assert checkpoint.steps() == [1]
