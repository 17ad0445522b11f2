"""Files that are on the disk when the call returns."""

import errno
import hashlib
import os
import re
import stat
import warnings

import pytest

from advcontrast import _atomic_io as durable
from advcontrast._atomic_io import replace, write

from .engine.faults import failing, open_files


def pieces(sizes):
    return [bytes([i % 256]) * size for i, size in enumerate(sizes)]


@pytest.mark.parametrize("sizes", [[], [0], [1], [7, 8, 9], [1 << 20], [(1 << 20) - 1, 2], [3 << 20, 5]])
def test_size_and_digest_are_those_of_the_file(tmp_path, sizes):
    data = b"".join(pieces(sizes))
    found = write(tmp_path / "file", lambda file: [file.write(piece) for piece in pieces(sizes)])
    assert (tmp_path / "file").read_bytes() == data
    assert found == (len(data), hashlib.sha256(data).hexdigest())


def test_any_buffer_can_be_written(tmp_path):
    assert write(tmp_path / "file", lambda file: file.write(memoryview(bytearray(b"abc"))))[0] == 3


def test_write_tells_how_much_it_took(tmp_path):
    told = []
    write(tmp_path / "file", lambda file: told.append(file.write(b"abc")))
    assert told == [3]


def test_a_file_that_is_there_is_not_overwritten(tmp_path):
    (tmp_path / "file").write_bytes(b"old")
    with pytest.raises(FileExistsError):
        write(tmp_path / "file", lambda file: file.write(b"new"))
    assert (tmp_path / "file").read_bytes() == b"old"


def test_nothing_is_held_back_in_memory_beyond_a_chunk(tmp_path, monkeypatch):
    monkeypatch.setattr(durable, "_CHUNK", 10)
    sizes = []

    def produce(file):
        for _ in range(8):
            file.write(b"12345")
            sizes.append((tmp_path / "file").stat().st_size)

    write(tmp_path / "file", produce)
    assert sizes == [0, 10, 10, 20, 20, 30, 30, 40]


def test_an_error_of_the_producer_is_passed_on(tmp_path):
    def produce(file):
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        write(tmp_path / "file", produce)


def test_an_error_of_the_disk_is_told_from_the_one_that_the_producer_makes_of_it(tmp_path, monkeypatch):
    monkeypatch.setattr(durable, "_CHUNK", 1)

    def produce(file):
        try:
            file.write(b"abc")
        except OSError:
            raise RuntimeError("unexpected pos 704 vs 598") from None

    with failing("write", 0, errno.ENOSPC), pytest.raises(OSError, match="No space left") as caught:
        write(tmp_path / "file", produce)
    assert caught.value.errno == errno.ENOSPC
    assert isinstance(caught.value.__cause__, RuntimeError)


def test_an_error_of_the_disk_that_the_producer_swallows_does_not_lose_data(tmp_path, monkeypatch):
    monkeypatch.setattr(durable, "_CHUNK", 1)

    def produce(file):
        try:
            file.write(b"abc")
        except OSError:
            file.write(b"def")

    with failing("write", 0, errno.EINTR):
        size, digest = write(tmp_path / "file", produce)
    assert (tmp_path / "file").read_bytes() == b"abcdef"
    assert (size, digest) == (6, hashlib.sha256(b"abcdef").hexdigest())


@pytest.mark.parametrize("call", ["open", "write", "fsync"])
def test_the_file_is_closed_after_an_error(tmp_path, call):
    before = open_files()
    with failing(call, 0, errno.EIO) as failed, pytest.raises(OSError, match=re.escape(os.strerror(errno.EIO))):
        write(tmp_path / "file", lambda file: file.write(b"abc"))
    assert failed
    assert open_files() == before


def test_a_file_is_replaced_as_a_whole(tmp_path):
    for text in (b"old", b"newer"):
        replace(tmp_path / "file", text)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_bytes() == b"newer"


@pytest.mark.parametrize("call", ["open", "write", "fsync", "replace"])
def test_a_file_that_cannot_be_replaced_is_unchanged(tmp_path, call):
    (tmp_path / "file").write_bytes(b"old")
    with failing(call, 0, errno.ENOSPC), pytest.raises(OSError, match="No space left"):
        replace(tmp_path / "file", b"n", b"ew")
    assert (tmp_path / "file").read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_link_is_replaced_and_not_followed(tmp_path):
    (tmp_path / "precious").write_bytes(b"precious")
    (tmp_path / "file").symlink_to("precious")
    replace(tmp_path / "file", b"n", b"ew")
    assert (tmp_path / "precious").read_bytes() == b"precious"
    assert (tmp_path / "file").read_bytes() == b"new"


def fail_to_flush_folders(monkeypatch, number):
    real = os.fsync

    def fsync(descriptor):
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(number, os.strerror(number))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    durable._warn_once.cache_clear()


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EBADF, errno.EACCES])
def test_a_disk_that_cannot_flush_folders_is_warned_of_once(tmp_path, monkeypatch, number):
    fail_to_flush_folders(monkeypatch, number)
    message = rf"^advcontrast: expected a disk that can flush a folder, got .* \(errno {number}\)\. Files are written"
    with pytest.warns(UserWarning, match=message):
        durable.flush_folder(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        replace(tmp_path / "file", b"n", b"ew")
    assert (tmp_path / "file").read_bytes() == b"new"


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EPERM])
def test_a_disk_that_cannot_flush_files_is_warned_of_once(tmp_path, number):
    durable._warn_once.cache_clear()
    message = rf"^advcontrast: expected a disk that can flush files, got .* \(errno {number}\)\. Files are written"
    with failing("fsync", 0, number, lasting=True):
        with pytest.warns(UserWarning, match=message):
            write(tmp_path / "first", lambda file: file.write(b"abc"))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            write(tmp_path / "second", lambda file: file.write(b"abc"))
    assert (tmp_path / "first").read_bytes() == (tmp_path / "second").read_bytes() == b"abc"


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC])
def test_a_disk_that_fails_to_flush_a_folder_is_an_error(tmp_path, monkeypatch, number):
    fail_to_flush_folders(monkeypatch, number)
    with pytest.raises(OSError, match=re.escape(os.strerror(number))):
        durable.flush_folder(tmp_path)


@pytest.mark.parametrize(
    ("number", "remedy"),
    [
        (errno.ENOSPC, "Make room, or choose another folder."),
        (errno.EDQUOT, "Make room, or choose another folder."),
        (errno.EROFS, "Mount the disk for writing, or choose another folder."),
        (errno.EACCES, "Change the permissions, or choose another folder."),
        (errno.ENAMETOOLONG, "Choose a shorter name."),
        (errno.EIO, "Check the disk and try again, or choose another folder."),
        (errno.ESTALE, "Check the disk and try again, or choose another folder."),
    ],
)
def test_the_remedy_fits_the_error(tmp_path, number, remedy):
    message = f"Owner: expected to write {tmp_path}, got {os.strerror(number)} (errno {number}). {remedy}"
    with pytest.raises(OSError, match=f"^{re.escape(message)}$") as caught, durable.writing("Owner", tmp_path):
        raise OSError(number, os.strerror(number))
    assert caught.value.errno == number
