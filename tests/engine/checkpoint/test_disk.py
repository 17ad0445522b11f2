"""A disk that is full, failing or not there is reported, and costs no earlier checkpoint."""

import errno
import os
import re
import resource
import shutil
import signal
from pathlib import Path

import pytest

from advcontrast import _atomic_io
from advcontrast.engine import Checkpoint, CheckpointWriteError

from ..faults import counted, exit_code, failing, filled, fork, leftovers, open_files, require_recovery, same, state


@pytest.fixture(autouse=True)
def _many_writes(monkeypatch):
    """Let even a small state take several writes, so that some happen inside of torch's own writer."""
    monkeypatch.setattr(_atomic_io, "_CHUNK", 2048)


REMEDIES = {
    errno.ENOSPC: "Make room, or choose another folder",
    errno.EFBIG: "Raise the limit on the size of a file (ulimit -f), or choose another folder",
    errno.EACCES: "Change the permissions, or choose another folder",
    errno.EEXIST: "Choose another folder; a file or a link is in the way",
    errno.ENOTDIR: "Choose another folder; a file or a link is in the way",
    errno.ENAMETOOLONG: "Choose a shorter name",
}


def refusal(path, number):
    got = f"{os.strerror(number)} (errno {number})"
    remedy = REMEDIES.get(number, "Check the disk and try again, or choose another folder")
    remedy += "; earlier checkpoints are unchanged."
    return f"^{re.escape(f'Checkpoint: expected to write {path}, got {got}. {remedy}')}$"


@pytest.mark.parametrize("lasting", [False, True], ids=["once", "for good"])
@pytest.mark.parametrize(
    ("call", "number", "fewest"),
    [
        ("write", errno.ENOSPC, 3),
        ("write", errno.EFBIG, 3),
        ("write", errno.EIO, 3),
        ("fsync", errno.EIO, 4),
        ("fsync", errno.ENOSPC, 4),
        ("mkdir", errno.ENOSPC, 2),
        ("mkdir", errno.EIO, 2),
        ("rename", errno.ENOSPC, 2),
        ("rename", errno.EIO, 2),
        ("open", errno.ENOSPC, 4),
        ("unlink", errno.EIO, 2),
        ("rmdir", errno.EIO, 1),
    ],
)
def test_any_call_that_fails_is_reported_and_costs_nothing(tmp_path, call, number, fewest, lasting):
    template = filled(tmp_path / "run", (1, 2)).folder
    rehearsal = Checkpoint(shutil.copytree(template, tmp_path / "rehearsal"))
    calls = counted(call, lambda: rehearsal.save(3, state(3)))
    assert calls >= fewest
    # The first mkdir is of a folder that is there already.
    for k in range(call == "mkdir", calls):
        checkpoint = Checkpoint(shutil.copytree(template, tmp_path / str(k)))
        before = open_files()
        refused = pytest.raises(CheckpointWriteError, match=refusal(checkpoint.path(3), number))
        with failing(call, k, number, lasting=lasting) as failed, refused:
            checkpoint.save(3, state(3))
        assert failed
        assert open_files() == before
        if call in ("mkdir", "write", "fsync", "rename"):
            assert leftovers(checkpoint.folder) == []
        require_recovery(checkpoint.folder, (2, 3))


def test_first_save_ever_on_a_disk_that_makes_no_folders(tmp_path):
    checkpoint = Checkpoint(tmp_path / "run")
    refused = pytest.raises(CheckpointWriteError, match=refusal(checkpoint.path(1), errno.ENOSPC))
    with failing("mkdir", 0, errno.ENOSPC, lasting=True) as failed, refused:
        checkpoint.save(1, state(1))
    assert failed
    assert list(tmp_path.iterdir()) == []


def test_file_size_limit_of_the_system(tmp_path):
    checkpoint = filled(tmp_path / "run", (1,))

    def save_with_limit():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (600, 600))
        with pytest.raises(CheckpointWriteError, match=refusal(checkpoint.path(2), errno.EFBIG)):
            checkpoint.save(2, state(2))

    assert exit_code(fork(save_with_limit)) == 0
    assert leftovers(checkpoint.folder) == []
    require_recovery(checkpoint.folder, (1,))


def test_short_writes_are_continued(tmp_path, monkeypatch):
    write = os.write
    monkeypatch.setattr(os, "write", lambda file, data: write(file, bytes(data[:7])))
    checkpoint = filled(tmp_path / "run", (1,))
    monkeypatch.undo()
    assert same(checkpoint.read(1), state(1))


NO_FOLDERS = {
    "a file": (lambda place: place / "file", errno.EEXIST),
    "below a file": (lambda place: place / "file/run", errno.ENOTDIR),
    "in the kernel's files": (lambda place: Path("/proc/run"), errno.ENOENT),
    "a name that is too long": (lambda place: place / ("x" * 300), errno.ENAMETOOLONG),
}


@pytest.mark.parametrize(
    "name",
    [
        *list(NO_FOLDERS)[:-1],
        "a name that is too long",
    ],
)
def test_folder_that_cannot_be_made_is_refused_by_save(tmp_path, name):
    where, number = NO_FOLDERS[name]
    (tmp_path / "file").touch()
    checkpoint = Checkpoint(where(tmp_path))
    with pytest.raises(CheckpointWriteError, match=refusal(checkpoint.path(1), number)):
        checkpoint.save(1, state(1))
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("name", NO_FOLDERS)
def test_folder_that_cannot_be_made_is_refused_before_training(tmp_path, name):
    where, number = NO_FOLDERS[name]
    (tmp_path / "file").touch()
    checkpoint = Checkpoint(where(tmp_path))
    with pytest.raises(CheckpointWriteError, match=refusal(checkpoint.folder, number)), checkpoint.locked():
        raise AssertionError("the block was entered")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_read_only_folder_is_refused(tmp_path):
    checkpoint = filled(tmp_path / "run", (1,))
    checkpoint.folder.chmod(0o500)
    with pytest.raises(CheckpointWriteError, match=refusal(checkpoint.path(2), errno.EACCES)):
        checkpoint.save(2, state(2))
    checkpoint.folder.chmod(0o700)


@pytest.mark.parametrize("name", ["with spaces", "größe 日本", "it's [1]*?.txt", "-rf", "a/b/c"])
def test_folder_of_any_name(tmp_path, name):
    assert filled(tmp_path / name, (1, 2)).steps() == [1, 2]
    step, loaded = Checkpoint(str(tmp_path / name)).load()
    assert step == 2
    assert same(loaded, state(2))


def test_relative_folder_stays_where_it_was_after_a_change_of_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    checkpoint = filled("run", (1,))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    checkpoint.save(2, state(2))
    assert checkpoint.steps() == [1, 2]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["elsewhere", "run"]
