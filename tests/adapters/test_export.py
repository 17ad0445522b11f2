"""A folder appears when it is complete, and only one of several processes makes it."""

import os
import stat
from pathlib import Path

import pytest

from advcontrast.adapters._export import new_folder


def write(path, text="mine"):
    path.mkdir(exist_ok=True)
    (path / "file").write_text(text)


@pytest.mark.parametrize("empty", [False, True], ids=["nothing there", "an empty folder there"])
@pytest.mark.parametrize("first", [write, lambda path: path.write_text("mine")], ids=["folder", "file"])
def test_the_slower_of_two_processes_is_told_that_the_folder_exists(tmp_path, first, empty):
    target = tmp_path / "target"
    if empty:
        target.mkdir()
    new = r"^owner: expected folder to be a new one"
    with pytest.raises(FileExistsError, match=new), new_folder("owner", target) as draft:  # noqa: PT012
        (draft / "file").write_text("slower")
        if empty:
            target.rmdir()  # as the faster one does
        first(target)
    kept = target if target.is_file() else target / "file"
    assert kept.read_text() == "mine"
    assert list(tmp_path.iterdir()) == [target]


def test_the_empty_folder_that_another_process_removed_is_made(tmp_path):
    (target := tmp_path / "target").mkdir()
    with new_folder("owner", target) as draft:
        (draft / "file").write_text("mine")
        target.rmdir()
    assert (target / "file").read_text() == "mine"


FULL = r"^owner: expected to write .*target"


def test_an_error_of_the_disk_has_a_remedy(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match=FULL), new_folder("owner", tmp_path / "target"):
        monkeypatch.setattr(Path, "rename", full)
    assert list(tmp_path.iterdir()) == []


def test_an_error_of_the_disk_that_safetensors_rewords_has_one_too(tmp_path):
    with pytest.raises(OSError, match=FULL), new_folder("owner", tmp_path / "target"):
        raise RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)")
    assert list(tmp_path.iterdir()) == []


def test_another_error_is_not_reworded(tmp_path):
    with pytest.raises(RuntimeError, match=r"^mine$"), new_folder("owner", tmp_path / "target"):
        raise RuntimeError("mine")


def test_a_disk_without_permissions_works(tmp_path, monkeypatch):
    def chmod(*_, **__):
        raise PermissionError(1, "Operation not permitted")

    with new_folder("owner", tmp_path / "target") as draft:
        (draft / "file").write_text("mine")
        monkeypatch.setattr(Path, "chmod", chmod)
    assert (tmp_path / "target/file").read_text() == "mine"


def test_folder_may_be_below_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    with new_folder("owner", "~/target"):
        pass
    assert (tmp_path / "target").is_dir()


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_files_are_as_open_as_the_user_has_them(tmp_path, umask, mode):
    before = os.umask(umask)
    try:
        with new_folder("owner", tmp_path / "target") as draft:
            os.close(os.open(draft / "file", os.O_CREAT | os.O_WRONLY, 0o600))
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "target" / "file").stat().st_mode) == mode
