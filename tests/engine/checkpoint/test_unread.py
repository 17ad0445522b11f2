"""A checkpoint that cannot be read today, or by this version, is neither passed over nor replaced."""

import errno
import json
import os
import re
import resource
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from advcontrast.engine import (
    Checkpoint,
    CheckpointCorruptError,
    CheckpointError,
    CheckpointVersionError,
    CheckpointWriteError,
)

from ..faults import exit_code, filled, fork, leftovers, same, state
from ..learners import Separable, last_step, train
from .forgery import seal

FILES = "Close files, or raise the limit on open files (ulimit -n)"
DISK = "Check the disk and try again, or choose another folder"
REFUSALS = {
    errno.EACCES: "Change the permissions, or choose another folder",
    errno.EMFILE: FILES,
    errno.ENFILE: FILES,
    errno.EIO: DISK,
    errno.ESTALE: DISK,
}


@pytest.fixture
def checkpoint(tmp_path):
    return filled(tmp_path / "run", (1, 2))


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@contextmanager
def refusing(name, number):
    """Let the system refuse to open files of one name inside the block."""
    real, refused = Path.open, []

    def refuse(path, mode="r", *args, **kwargs):
        if path.name == name and mode == "rb":
            refused.append(path)
            raise OSError(number, os.strerror(number), str(path))
        return real(path, mode, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "open", refuse)
        yield refused


def raise_version(checkpoint, step):
    """Make a checkpoint one of a later format, sealed as that would be."""
    file = checkpoint.path(step) / "manifest.json"
    manifest = json.loads(file.read_text())
    del manifest["seal"]
    file.write_text(seal({**manifest, "version": manifest["version"] + 1}))


def later_format(checkpoint, step):
    where = re.escape(str(checkpoint.path(step)))
    return rf"^Checkpoint: expected format version 1 or older in {where}"


def test_a_newest_checkpoint_of_a_later_format_is_not_passed_over(checkpoint):
    raise_version(checkpoint, 2)
    for load in (checkpoint.load, lambda: checkpoint.read(2)):
        with pytest.raises(CheckpointVersionError, match=later_format(checkpoint, 2)):
            load()
    assert same(checkpoint.read(1), state(1))


def test_a_checkpoint_of_a_later_format_is_not_replaced_by_a_save_of_its_step(checkpoint):
    raise_version(checkpoint, 2)
    before = contents(checkpoint.folder)
    with pytest.raises(CheckpointVersionError, match=later_format(checkpoint, 2)):
        checkpoint.save(2, state(2))
    assert contents(checkpoint.folder) == before


def test_a_run_is_not_begun_anew_over_a_checkpoint_of_a_later_format(tmp_path):
    train(Separable(), folder=tmp_path)
    checkpoint = Checkpoint(tmp_path / "checkpoints")
    raise_version(checkpoint, 6)
    before = contents(tmp_path)
    learner = Separable()
    with pytest.raises(CheckpointVersionError, match=later_format(checkpoint, 6)):
        train(learner, folder=tmp_path)
    assert learner.seen == []
    assert {name: before[name] for name in before if not name.endswith(".lock")} == {
        name: content for name, content in contents(tmp_path).items() if not name.endswith(".lock")
    }


@pytest.mark.parametrize("name", ["manifest.json", "state.pt"])
@pytest.mark.parametrize("number", REFUSALS)
def test_a_checkpoint_that_may_not_be_read_is_not_called_damaged_nor_passed_over(checkpoint, name, number):
    got = f"{os.strerror(number)} (errno {number}). {REFUSALS[number]}."
    message = re.escape(f"Checkpoint: expected to read {checkpoint.path(2)}, got {got}")
    for read in (checkpoint.load, lambda: checkpoint.read(2)):
        with refusing(name, number) as refused, pytest.raises(CheckpointError, match=f"^{message}$") as caught:
            read()
        assert refused == [checkpoint.path(2) / name]
        assert not isinstance(caught.value, CheckpointCorruptError)
    assert checkpoint.load()[0] == 2


@pytest.mark.parametrize("name", ["manifest.json", "state.pt"])
@pytest.mark.parametrize("number", REFUSALS)
def test_a_checkpoint_that_may_not_be_read_is_not_discarded_by_a_save_of_its_step(checkpoint, name, number):
    before = contents(checkpoint.folder)
    with refusing(name, number) as refused, pytest.raises(CheckpointError, match=r"^Checkpoint: expected to read "):
        checkpoint.save(2, state(90))
    assert refused
    assert contents(checkpoint.folder) == before
    assert leftovers(checkpoint.folder) == []
    assert same(checkpoint.read(2), state(2))


def test_a_process_with_no_file_left_to_open_neither_passes_over_nor_discards_a_checkpoint(checkpoint):
    before = contents(checkpoint.folder)

    def with_few_files():
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
        with suppress(OSError):
            while True:
                os.open("/dev/null", os.O_RDONLY)
        for job in (checkpoint.load, lambda: checkpoint.read(2), lambda: checkpoint.save(2, state(90))):
            with pytest.raises(CheckpointError, match=re.escape(f"(errno {errno.EMFILE})")) as caught:
                job()
            assert not isinstance(caught.value, CheckpointCorruptError)

    assert exit_code(fork(with_few_files)) == 0
    assert contents(checkpoint.folder) == before


@contextmanager
def unlisted():
    """Let no folder be listed inside the block."""

    def refuse(*_):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "listdir", refuse)
        patch.setattr(Path, "iterdir", refuse)  # which has a listdir of its own before Python 3.11
        patch.setattr(os, "scandir", refuse)
        yield


def test_a_folder_that_may_not_be_listed_is_not_called_empty(checkpoint):
    message = f"expected to read {checkpoint.folder}, got {os.strerror(errno.EACCES)} (errno {errno.EACCES})."
    message = f"^Checkpoint: {re.escape(message)} {re.escape(REFUSALS[errno.EACCES])}\\.$"
    for look in (checkpoint.steps, checkpoint.load):
        with unlisted(), pytest.raises(CheckpointError, match=message):
            look()


def test_a_run_is_not_begun_anew_in_a_folder_that_may_not_be_listed(tmp_path):
    train(Separable(), folder=tmp_path)
    learner = Separable()
    with unlisted(), pytest.raises(CheckpointError, match=re.escape(f"(errno {errno.EACCES})")):
        train(learner, folder=tmp_path)
    assert learner.seen == []
    assert last_step(tmp_path) == 6


def test_nothing_is_saved_into_a_folder_that_may_not_be_listed(checkpoint):
    with unlisted(), pytest.raises(CheckpointWriteError, match=re.escape(f"(errno {errno.EACCES})")):
        checkpoint.save(3, state(3))
    assert checkpoint.steps() == [1, 2]
