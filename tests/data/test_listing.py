"""Folders and links that cannot be listed: named by both readers, or skipped and counted."""

import errno
import os
import re
import warnings
from pathlib import Path

import pytest

from advcontrast.data import ImageStream, UnreadableImageError, image_folder
from tests.data.test_folder import noise, save


@pytest.fixture
def root(tmp_path):
    """Five images of 8 x 8 pixels, one of them in the folder itself."""
    for name, seed in (("b/x/1.png", 1), ("a.png", 2), ("b/0.png", 3), ("b/z.bmp", 4), ("c/c.PNG", 5)):
        save(tmp_path / "root" / name, noise(8, 8, seed))
    return tmp_path / "root"


def everything(root):
    stream = ImageStream(root)
    return [stream[i] for i in range(len(stream))]


def fail(monkeypatch, path, code):
    """Make the listing of a folder fail."""
    real = os.scandir

    def scandir(folder):
        if str(folder) == str(path):
            raise OSError(code, os.strerror(code), str(folder))
        return real(folder)

    monkeypatch.setattr(os, "scandir", scandir)


CODES = [errno.EACCES, errno.EIO, errno.ESTALE, errno.ENAMETOOLONG, errno.ELOOP]
READERS = [ImageStream, image_folder]


@pytest.mark.parametrize("code", CODES)
@pytest.mark.parametrize("read", READERS)
def test_a_folder_that_cannot_be_listed_is_named(root, monkeypatch, read, code):
    fail(monkeypatch, root / "b" / "x", code)
    message = f"{read.__name__}: expected to list the folder {str(root / 'b' / 'x')!r}, got [Errno {code}]"
    with pytest.raises(OSError, match=f"^{re.escape(message)}"):
        read(root)


@pytest.mark.parametrize("code", CODES)
@pytest.mark.parametrize("read", READERS)
@pytest.mark.parametrize("skip", ["raise", "skip"])
def test_a_root_that_cannot_be_listed_is_named(root, monkeypatch, read, code, skip):
    fail(monkeypatch, root, code)
    with pytest.raises(OSError, match=rf"^{read.__name__}: expected to list the folder .*got \[Errno {code}\]"):
        read(root, unreadable=skip, max_unreadable_fraction=1)


def self_link(path):
    path.symlink_to(path.name)


def pair_of_links(path):
    path.symlink_to(f"other-{path.name}")
    path.with_name(f"other-{path.name}").symlink_to(path.name)


def parent_link(path):
    path.symlink_to(".")


def root_link(path):
    path.symlink_to("..")


def longest(path):
    path.symlink_to("x" * 300)


def to_nothing(path):
    path.symlink_to("not-mounted")


LOOP, LONG, GONE = (os.strerror(code) for code in (errno.ELOOP, errno.ENAMETOOLONG, errno.ENOENT))
BROKEN = {
    "image": (self_link, ["b/1.png"], UnreadableImageError, LOOP),
    "pair": (pair_of_links, ["b/1.png", "b/other-1.png"], UnreadableImageError, LOOP),
    "longest": (longest, ["b/1.png"], UnreadableImageError, LONG),
    "folder": (self_link, ["b/loop"], OSError, LOOP),
    "class": (self_link, ["loop"], OSError, LOOP),
    "gone": (to_nothing, ["b/gone"], OSError, GONE),
    "parent": (parent_link, ["b/loop"], ValueError, "a circle"),
    "root": (root_link, ["b/loop"], ValueError, "a circle"),
    "root as class": (parent_link, ["loop"], ValueError, "a circle"),
}


@pytest.mark.parametrize("name", BROKEN)
@pytest.mark.parametrize("read", [image_folder, everything], ids=["folder", "stream"])
def test_a_link_that_leads_nowhere_is_named(root, name, read):
    make, links, error, reason = BROKEN[name]
    make(root / links[0])
    with pytest.raises(error, match=reason) as caught:
        read(root)
    assert repr(str(root / links[0])) in str(caught.value)


@pytest.mark.parametrize("name", BROKEN)
@pytest.mark.parametrize("cached", [False, True])
def test_image_folder_skips_links_that_lead_nowhere(root, tmp_path, name, cached):
    settings = {"size": 8, "cache": tmp_path / "cache" if cached else None}
    expected = image_folder(root, **settings)
    make, links, _, _ = BROKEN[name]
    make(root / links[0])
    many = len(links)
    message = f"{many} of {4 + many} images in {str(root)!r} unreadable: {', '.join(map(repr, links))}. They"
    with pytest.warns(UserWarning, match=re.escape(message)):
        found = image_folder(root, unreadable="skip", max_unreadable_fraction=many / (4 + many), **settings)
    assert found.classes == expected.classes
    assert found.fingerprint() == expected.fingerprint()


def read_with_warnings(stream):
    """Return the images, and the messages."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        images = [stream[i] for i in range(len(stream))]
    return images, [str(warning.message) for warning in caught]


@pytest.mark.parametrize("name", BROKEN)
def test_a_stream_skips_and_counts_links_that_lead_nowhere(root, name):
    make, links, _, _ = BROKEN[name]
    make(root / links[0])
    stream = ImageStream(root, unreadable="skip", max_unreadable_fraction=len(links) / (5 + len(links)))
    images, messages = read_with_warnings(stream)
    assert len(images) == 5 + len(links)
    assert stream.skipped == [root / link for link in links]
    assert [str(root / link) in message for link, message in zip(links, messages, strict=True)] == [True] * len(links)


def test_a_class_that_cannot_be_listed_is_not_left_out(root, monkeypatch):
    """The classes after it would get other labels."""
    fail(monkeypatch, root / "b", errno.EACCES)
    with pytest.raises(UnreadableImageError, match=r"^image_folder: expected a readable image of each class"):
        image_folder(root, unreadable="skip", max_unreadable_fraction=1)


def test_a_class_that_is_a_link_to_nothing_is_not_left_out(root):
    """The classes after it would get other labels."""
    (root / "a").symlink_to(root / "not-mounted")
    with pytest.raises(OSError, match=rf"^image_folder: expected to list the folder .*{GONE}"):
        image_folder(root)
    with pytest.raises(UnreadableImageError, match=r"^image_folder: expected a readable image of each class"):
        image_folder(root, unreadable="skip", max_unreadable_fraction=1)


def test_links_to_nothing_with_the_suffix_of_another_file_are_left_out(root):
    (root / "b" / "0.xml").symlink_to("not-downloaded")
    assert len(image_folder(root)) == 4


@pytest.mark.skipif(not Path("/dev/fd").is_dir(), reason="needs a list of open files")
def test_a_link_in_a_circle_leaves_no_file_open(root):
    (root / "b" / "loop").symlink_to("..")
    stream = ImageStream(root, unreadable="skip", max_unreadable_fraction=0.2)
    read_with_warnings(stream)
    before = len(list(Path("/dev/fd").iterdir()))
    read_with_warnings(stream)
    assert len(list(Path("/dev/fd").iterdir())) == before


def test_an_unlisted_folder_is_skipped_and_counted(root, monkeypatch):
    fail(monkeypatch, root / "b" / "x", errno.ESTALE)
    with pytest.warns(UserWarning, match=r"1 of 4 images in .* unreadable: 'b/x'"):
        assert len(image_folder(root, size=8, unreadable="skip", max_unreadable_fraction=0.25)) == 3
    stream = ImageStream(root, size=8, unreadable="skip", max_unreadable_fraction=0.2)
    assert "It is skipped (1 so far)" in read_with_warnings(stream)[1][0]
    assert stream.skipped == [root / "b" / "x"]


@pytest.mark.parametrize("read", READERS)
def test_the_old_name_of_the_fraction_is_used_and_warns(root, read):
    message = rf"^{read.__name__}\(tolerance=\) has moved .* Use {read.__name__}\(max_unreadable_fraction=\)$"
    with (
        pytest.raises(ValueError, match="expected max_unreadable_fraction to be"),
        pytest.warns(DeprecationWarning, match=message) as caught,
    ):
        read(root, tolerance=2)
    assert caught[0].filename == __file__
