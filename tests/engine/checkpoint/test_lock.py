"""One process at a time writes to a folder."""

import errno
import fcntl
import os
import re
import shutil
import signal
import warnings

import pytest

from advcontrast import _atomic_io
from advcontrast.engine import Checkpoint, CheckpointBusyError, CheckpointError, CheckpointWriteError

from ..faults import exit_code, fork


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


def test_children_of_a_killed_process_hold_nothing(tmp_path):
    checkpoint = Checkpoint(tmp_path)
    reading, writing = os.pipe()

    def sleep():
        os.write(writing, f"{os.getpid()}\n".encode())  # by itself: only now has it closed its copy of the lock
        signal.pause()

    def job():
        with checkpoint.locked():
            fork(sleep)
            signal.pause()

    pid = fork(job)
    child = int(os.read(reading, 100))
    os.kill(pid, signal.SIGKILL)
    exit_code(pid)
    try:
        with checkpoint.locked():
            checkpoint.save(1, {})
    finally:
        os.kill(child, signal.SIGKILL)
        os.close(reading)
        os.close(writing)


def test_a_child_that_ends_leaves_the_lock_to_its_parent(tmp_path):
    with Checkpoint(tmp_path).locked():
        assert exit_code(fork(lambda: None)) == 0
        with pytest.raises(CheckpointBusyError, match=f"got process {os.getpid()} on "):
            Checkpoint(tmp_path).locked().__enter__()


def test_a_program_that_is_started_inside_does_not_inherit_the_lock(tmp_path):
    with Checkpoint(tmp_path).locked():
        (file,) = _atomic_io._locks
        assert not os.get_inheritable(file.fileno())


def test_a_forked_child_may_not_save_for_its_parent(tmp_path):
    checkpoint = Checkpoint(tmp_path)

    def job():
        with pytest.raises(CheckpointError, match="to be the folder that this process has locked"):
            checkpoint.save(1, {})

    with checkpoint.locked():
        assert exit_code(fork(job)) == 0


def test_locks_that_are_released_are_forgotten(tmp_path):
    with Checkpoint(tmp_path).locked():
        assert len(_atomic_io._locks) == 1
    assert not _atomic_io._locks


def move(folder):
    folder.rename(folder.with_name("moved"))


def move_and_begin_anew(folder):
    move(folder)
    with Checkpoint(folder).locked():
        Checkpoint(folder).save(1, {"run": "B"})


def remove_and_put_a_file(folder):
    shutil.rmtree(folder)
    folder.touch()


@pytest.mark.parametrize("deed", [move, shutil.rmtree, move_and_begin_anew, remove_and_put_a_file])
def test_a_folder_that_is_not_the_one_that_was_locked_is_not_written_to(tmp_path, deed):
    checkpoint = Checkpoint(tmp_path / "run")
    with checkpoint.locked():
        checkpoint.save(1, {"run": "A"})
        deed(checkpoint.folder)
        before = sorted(tmp_path.rglob("*"))
        message = f"Checkpoint: expected {checkpoint.folder} to be the folder that this process has locked"
        with pytest.raises(CheckpointError, match=f"^{re.escape(message)}"):
            checkpoint.save(2, {"run": "A"})
        assert sorted(tmp_path.rglob("*")) == before


def test_a_save_touches_the_lock_so_that_it_does_not_look_abandoned(tmp_path):
    checkpoint = Checkpoint(tmp_path)
    with checkpoint.locked():
        os.utime(tmp_path / ".lock", (0, 0))
        checkpoint.save(1, {})
        assert (tmp_path / ".lock").stat().st_mtime > 0


def test_a_folder_may_change_once_it_is_free(tmp_path):
    checkpoint = Checkpoint(tmp_path / "run")
    with checkpoint.locked():
        pass
    move(checkpoint.folder)
    checkpoint.save(1, {})
    assert checkpoint.steps() == [1]


def test_a_link_in_the_place_of_the_lock_is_not_followed(tmp_path):
    precious = tmp_path / "precious"
    precious.write_text("precious")
    (tmp_path / "run").mkdir()
    (tmp_path / "run/.lock").symlink_to(precious)
    with pytest.raises(CheckpointWriteError, match=r"a file or a link is in the way"):
        Checkpoint(tmp_path / "run").locked().__enter__()
    assert precious.read_text() == "precious"


def without_locks(monkeypatch, number):
    def flock(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)
    _atomic_io._warn_once.cache_clear()


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL])
def test_a_disk_without_locks_is_warned_of_once(tmp_path, monkeypatch, number):
    without_locks(monkeypatch, number)
    checkpoint = Checkpoint(tmp_path)
    message = (
        rf"^advcontrast: expected a disk with locks at .*, got .* \(errno {number}\)\. Make sure that only one run"
    )
    with pytest.warns(UserWarning, match=message), checkpoint.locked():
        checkpoint.save(1, {})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with checkpoint.locked():
            checkpoint.save(2, {})
    assert checkpoint.steps() == [1, 2]


def test_a_folder_that_moves_on_a_disk_without_locks_is_noticed_too(tmp_path, monkeypatch):
    without_locks(monkeypatch, errno.ENOLCK)
    checkpoint = Checkpoint(tmp_path / "run")
    refused = pytest.raises(CheckpointError, match="to be the folder that this process has locked")
    with pytest.warns(UserWarning, match="a disk with locks"), checkpoint.locked(), refused:  # noqa: PT031
        move(checkpoint.folder)
        checkpoint.save(1, {})


def test_a_disk_that_fails_to_lock_is_refused(tmp_path, monkeypatch):
    without_locks(monkeypatch, errno.EIO)
    with pytest.raises(CheckpointWriteError, match=r"\(errno 5\)\. Check the disk"):
        Checkpoint(tmp_path).locked().__enter__()
