"""The cache of decoded images: right, whole, or ignored."""

import errno
import hashlib
import io
import os
import pickle
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from advcontrast.data import folder, image_folder


@pytest.fixture
def root(tmp_path):
    for i, name in enumerate(("cat", "dog")):
        (tmp_path / "root" / name).mkdir(parents=True)
        Image.new("RGB", (8, 8), (10 + i, 20, 30)).save(tmp_path / "root" / name / "a.png")
    return tmp_path / "root"


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "new" / "cache"


def load(root, cache):
    return image_folder(root, size=8, cache=cache)


def forbid_decoding(monkeypatch):
    def decode(*args):
        raise AssertionError("decoded")

    monkeypatch.setattr(folder, "_decode_all", decode)


def with_checksum(content):
    return hashlib.sha256(content).hexdigest().encode() + content


def saved(value):
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def test_second_call_decodes_nothing(root, cache, monkeypatch):
    first = load(root, cache)
    forbid_decoding(monkeypatch)
    second = load(root, cache)
    assert torch.equal(second.x, first.x)
    assert torch.equal(second.y, first.y)
    assert second.classes == first.classes


def test_cache_is_one_file(root, cache):
    load(root, cache)
    assert len(list(cache.iterdir())) == 1


def test_cache_can_be_a_string(root, cache, monkeypatch):
    load(root, str(cache))
    forbid_decoding(monkeypatch)
    load(root, str(cache))


def test_size_can_be_an_integer_of_numpy(root, cache):
    assert torch.equal(image_folder(root, size=np.int64(8), cache=cache).x, load(root, cache).x)
    assert len(list(cache.iterdir())) == 1


def test_without_a_cache_nothing_is_written(root, tmp_path):
    image_folder(root, size=8)
    assert [path.name for path in tmp_path.iterdir()] == ["root"]


def test_a_moved_folder_is_decoded_anew(root, cache):
    load(root, cache)
    load(root.rename(root.with_name("moved")), cache)
    assert len(list(cache.iterdir())) == 2


def touch(root):
    found = (root / "cat" / "a.png").stat()
    os.utime(root / "cat" / "a.png", ns=(found.st_atime_ns, found.st_mtime_ns + 1))


def grow(root):
    path = root / "cat" / "a.png"
    found = path.stat()
    path.write_bytes(path.read_bytes() + b"0")
    os.utime(path, ns=(found.st_atime_ns, found.st_mtime_ns))


def rename_file(root):
    (root / "cat" / "a.png").rename(root / "cat" / "b.png")


def rename_class(root):
    (root / "cat").rename(root / "rat")


def add(root):
    Image.new("RGB", (8, 8)).save(root / "cat" / "z.png")


@pytest.mark.parametrize("change", [touch, grow, rename_file, rename_class, add])
def test_any_change_of_the_files_decodes_anew(root, cache, change):
    load(root, cache)
    change(root)
    images = load(root, cache)
    assert len(list(cache.iterdir())) == 2
    assert torch.equal(images.x, image_folder(root, size=8).x)


def test_another_size_decodes_anew(root, cache):
    load(root, cache)
    assert image_folder(root, size=4, cache=cache).x.shape == (2, 3, 4, 4)


def test_another_format_decodes_anew(root, cache, monkeypatch):
    load(root, cache)
    monkeypatch.setattr(folder, "_FORMAT", folder._FORMAT + 1)
    load(root, cache)
    assert len(list(cache.iterdir())) == 2


class Evil:
    """Opens a file for writing when it is unpickled."""

    path = ""

    def __reduce__(self):
        return (open, (self.path, "w"))


OTHER, WRONG = "it holds something else", "its checksum is wrong"
DAMAGE = {
    "empty": (lambda content: b"", OTHER),
    "short": (lambda content: content[:40], OTHER),
    "truncated": (lambda content: content[:-1], OTHER),
    "longer": (lambda content: content + b"0", OTHER),
    "a pixel": (lambda content: content[:400] + bytes([content[400] ^ 1]) + content[401:], WRONG),
    "a digit": (lambda content: bytes([content[0] ^ 1]) + content[1:], WRONG),
    "no checksum": (lambda content: content[64:], OTHER),
    "another length": (lambda content: with_checksum(content[64:] * 2), OTHER),
    "an archive": (lambda content: with_checksum(saved(torch.zeros(2, 3, 8, 8, dtype=torch.uint8))), OTHER),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damaged_file_is_ignored_with_a_warning_and_made_anew(root, cache, name, monkeypatch):
    damage, reason = DAMAGE[name]
    expected = load(root, cache).x
    (path,) = cache.iterdir()
    content = path.read_bytes()
    path.write_bytes(damage(content))
    message = rf"^image_folder: {re.escape(repr(str(path)))} is ignored and created again \({reason}\)\.$"
    with pytest.warns(UserWarning, match=message) as caught:
        assert torch.equal(load(root, cache).x, expected)
    assert len(caught) == 1
    assert caught[0].filename == __file__
    forbid_decoding(monkeypatch)
    assert torch.equal(load(root, cache).x, expected)


@pytest.mark.parametrize("dump", [lambda value: pickle.dumps(value, 2), saved], ids=["pickle", "archive"])
def test_foreign_code_is_not_run_even_with_the_right_checksum(root, cache, tmp_path, dump):
    load(root, cache)
    (path,) = cache.iterdir()
    evil = Evil()
    evil.path = str(tmp_path / "owned")
    path.write_bytes(with_checksum(dump(evil)))
    with pytest.warns(UserWarning, match="is ignored and created again"):
        load(root, cache)
    assert not (tmp_path / "owned").exists()


def test_folder_in_the_place_of_the_file_is_ignored_with_two_warnings(root, cache):
    expected = load(root, cache).x
    (path,) = cache.iterdir()
    path.unlink()
    path.mkdir()
    with (
        pytest.warns(UserWarning, match="is ignored and created again"),
        pytest.warns(UserWarning, match="expected to cache the images in"),
    ):
        assert torch.equal(load(root, cache).x, expected)
    assert list(cache.iterdir()) == [path]


def test_cache_that_is_a_file_only_warns(root, cache):
    cache.parent.mkdir()
    cache.touch()
    with (
        pytest.warns(UserWarning, match="is ignored and created again"),
        pytest.warns(UserWarning, match="expected to cache the images in"),
    ):
        assert len(load(root, cache)) == 2


def raises(error):
    def function(*args, **kwargs):
        raise error

    return function


@pytest.mark.parametrize(
    ("place", "error", "remedy"),
    [
        ("os.write", PermissionError(errno.EACCES, "Permission denied"), "Change the permissions"),
        ("os.fsync", OSError(errno.ENOSPC, "No space left on device"), "Make room"),
        ("pathlib.Path.replace", OSError(errno.EROFS, "Read-only file system"), "Mount the disk for writing"),
    ],
)
def test_cache_that_cannot_be_written_only_warns_and_leaves_nothing_behind(
    root, cache, monkeypatch, place, error, remedy
):
    monkeypatch.setattr(place, raises(error))
    got = rf"{error.strerror} \(errno {error.errno}\)\. {remedy}, or"
    message = rf"^image_folder: expected to cache the images in .*, got {got}"
    with pytest.warns(UserWarning, match=message) as caught:
        assert torch.equal(load(root, cache).x, image_folder(root, size=8).x)
    assert caught[0].filename == __file__
    assert list(cache.iterdir()) == []


def test_interrupted_write_leaves_the_old_file_and_nothing_else(root, cache, monkeypatch):
    load(root, cache)
    (path,) = cache.iterdir()
    path.write_bytes(b"old")
    monkeypatch.setattr(Path, "replace", raises(KeyboardInterrupt))
    with pytest.warns(UserWarning, match="is ignored"), pytest.raises(KeyboardInterrupt):
        load(root, cache)
    assert path.read_bytes() == b"old"
    assert list(cache.iterdir()) == [path]


def test_content_reaches_the_disk_before_its_name(root, cache, monkeypatch):
    events = []
    replace, fsync = Path.replace, os.fsync
    monkeypatch.setattr(os, "fsync", lambda handle: events.append("fsync") or fsync(handle))
    monkeypatch.setattr(Path, "replace", lambda *args: events.append("replace") or replace(*args))
    load(root, cache)
    assert events[:2] == ["fsync", "replace"]


def test_several_writers_at_once_leave_one_whole_file(root, cache, monkeypatch):
    expected = image_folder(root, size=8).x
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda _: load(root, cache).x, range(24)))
    assert all(torch.equal(x, expected) for x in results)
    assert len(list(cache.iterdir())) == 1
    forbid_decoding(monkeypatch)
    assert torch.equal(load(root, cache).x, expected)


def test_image_that_cannot_be_decoded_leaves_no_cache(root, cache):
    (root / "cat" / "a.png").write_text("no image")
    with pytest.raises(RuntimeError, match="expected an image"):
        load(root, cache)
    assert not cache.exists()
