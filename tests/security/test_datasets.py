"""Data sets that strangers made: archives, pickles and arrays that want more than to be read."""

import gzip
import hashlib
import io
import os
import pickle
import re
import subprocess
import tarfile

import numpy as np
import pytest
import torch
from torchvision import datasets

from advcontrast.data import cifar, cifar10, cifar10_c, published

NAMES = ["data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5", "test_batch"]


def md5(content):
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


def batch(order="C"):
    pixels = np.asarray(np.arange(2 * 3072).reshape(2, 3072) % 251, dtype=np.uint8, order=order)
    return pickle.dumps({"data": pixels, "labels": [0, 1]}, protocol=4)


@pytest.fixture
def canary(tmp_path):
    """A file that nobody may touch, beside the folder of the data set."""
    path = tmp_path / "canary"
    path.write_text("alive")
    yield path
    assert path.read_text() == "alive"


@pytest.fixture
def folder(tmp_path, monkeypatch, canary):
    """A good data set in a folder of its own, whose checksums hold for whatever lies there: they are forged."""
    folder = tmp_path / "home" / datasets.CIFAR10.base_folder
    folder.mkdir(parents=True)
    for name in NAMES:
        (folder / name).write_bytes(batch())
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": ["cat", "dog"]}, protocol=2))
    forge(folder, monkeypatch)
    return folder


def forge(folder, monkeypatch):
    """Make the checksums those of the files in a folder, as if MD5 were broken altogether."""
    checksums = [[name, md5((folder / name).read_bytes())] for name in NAMES]
    monkeypatch.setattr(datasets.CIFAR10, "train_list", checksums[:5])
    monkeypatch.setattr(datasets.CIFAR10, "test_list", checksums[5:])
    meta = {**datasets.CIFAR10.meta, "md5": md5((folder / "batches.meta").read_bytes())}
    monkeypatch.setattr(datasets.CIFAR10, "meta", meta)


def load(folder, **settings):
    return cifar10(folder.parent, train=True, download=False, **settings)


# Pickles.


class Call:
    """Calls a function when it is unpickled."""

    def __init__(self, function, *arguments):
        self.function, self.arguments = function, arguments

    def __reduce__(self):
        return self.function, self.arguments


def overwrite(path):
    return Call(open, str(path), "w")


def remove(path):
    return Call(os.remove, str(path))


def shell(path):
    return Call(os.system, f"rm {path}")


def start(path):
    return Call(subprocess.Popen, ["rm", str(path)])


def evaluate(path):
    return Call(eval, f"open({str(path)!r}, 'w')")


def get(path):
    return Call(getattr, [str(path)], "append")


def deep(path):
    return {"data": [({"x": remove(path)},)], "labels": [0]}


EVIL = [overwrite, remove, shell, start, evaluate, get, deep]


@pytest.mark.parametrize("make", EVIL)
@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_pickle_that_calls_something_is_refused_even_with_the_right_checksum(
    folder, canary, make, protocol, monkeypatch
):
    (folder / "data_batch_3").write_bytes(pickle.dumps(make(canary), protocol))
    forge(folder, monkeypatch)
    with pytest.raises(OSError, match=r"^cifar10: .* data_batch_3 with something else than arrays: it calls [\w.]+\. "):
        load(folder)


@pytest.mark.parametrize(
    "content",
    [
        b"cos\nremove\n(S'%s'\ntR.",  # the oldest way
        b"(S'%s'\nios\nremove\n.",  # INST
        b"(cos\nremove\nS'%s'\no.",  # OBJ
        b"\x80\x04\x8c\x02os\x8c\x06remove\x93\x8c%c%s\x85R.",  # STACK_GLOBAL
        b"cnumpy\nload\n(S'%s'\ntR.",
        b"cnumpy.lib._npyio_impl\nload\n(S'%s'\ntR.",
        b"cnumpy\nndarray.tofile\n(S'%s'\ntR.",  # a dotted name
        b"\x80\x04\x8c\x05numpy\x8c\x0endarray.tofile\x93\x8c%c%s\x85R.",
        b"cnumpy\nmemmap\n(S'%s'\nS'uint8'\nS'w+'\ntR.",
    ],
)
def test_old_and_dotted_names_are_refused_too(folder, canary, content, monkeypatch):
    name = str(canary).encode()
    arguments = (len(name), name) if b"%c" in content else (name,)
    (folder / "data_batch_3").write_bytes(content % arguments)
    forge(folder, monkeypatch)
    with pytest.raises(OSError, match=r"^cifar10: .* data_batch_3 with something else than arrays: it calls "):
        load(folder)


@pytest.mark.parametrize(
    "value",
    [
        [1, 2],
        {"labels": [0, 1]},
        {"data": np.zeros((2, 3072)), "labels": [0, 1]},
        {"data": np.zeros((2, 3071), np.uint8), "labels": [0, 1]},
        {"data": np.array([[]], object), "labels": [0, 1]},
        {"data": np.zeros((2, 3072), np.uint8), "labels": [0, 1, 1]},
        {"data": np.zeros((2, 3072), np.uint8), "labels": ["cat", "dog"]},
        {"data": np.zeros((2, 3072), np.uint8), "labels": [0, 2]},
        {"data": "pixels", "labels": [0, 1]},
        {"data": np.zeros((2, 3072), np.uint8)},
    ],
)
def test_a_pickle_of_something_else_is_refused(folder, value, monkeypatch):
    (folder / "data_batch_3").write_bytes(pickle.dumps(value, protocol=4))
    forge(folder, monkeypatch)
    with pytest.raises(OSError, match=r"^cifar10: expected to read or download the data set in .*, got .*Check the"):
        load(folder)


@pytest.mark.parametrize("bit", range(0, 8 * 200, 7))
def test_a_file_with_a_wrong_bit_is_refused_before_it_is_parsed(folder, bit, monkeypatch):
    content = bytearray((folder / "data_batch_3").read_bytes())
    content[bit // 8] ^= 1 << bit % 8
    (folder / "data_batch_3").write_bytes(content)
    monkeypatch.setattr(published, "_Plain", None)
    with pytest.raises(RuntimeError, match=r"got others for data_batch_3\."):
        load(folder)


def test_what_is_parsed_is_what_the_checksum_is_of(tmp_path):
    """Not a file that was put there between the two."""
    (tmp_path / "file").write_bytes(pickle.dumps({"x": 1}))
    with pytest.raises(ValueError, match=r"^another checksum of file$"):
        published.read(tmp_path / "file", md5(b"something else"))


@pytest.mark.parametrize("order", ["C", "F"])
def test_good_files_are_read_in_either_order_of_memory(folder, order, monkeypatch):
    for name in NAMES:
        (folder / name).write_bytes(batch(order))
    forge(folder, monkeypatch)
    images = load(folder)
    expected = torch.arange(2 * 3072).remainder(251).byte().view(2, 3, 32, 32).repeat(5, 1, 1, 1)
    assert torch.equal(images.x, expected)
    assert images.y.tolist() == [0, 1] * 5


def test_pickles_of_python_2_are_read():
    """Byte strings as keys and as pixels, and the name that numpy had then."""
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntS'b'\ntR"
        b"(I1\n(I1\nI4\ntcnumpy\ndtype\n(S'u1'\nI0\nI1\ntR(I3\nS'|'\nNNNI-1\nI-1\nI0\ntbI00\nS'\\x01\\x80\\xff\\x00'\ntb"
    )
    content = b"(dS'data'\n" + array + b"sS'labels'\n(lI3\nas."
    entries = published._Plain(io.BytesIO(content), encoding="latin1").load()
    assert entries["data"].tolist() == [[1, 128, 255, 0]]
    assert entries["labels"] == [3]


# Archives.


def member(name, content=b"", kind=tarfile.REGTYPE, link="", size=None):
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.size = kind, link, len(content) if size is None else size
    return info, content


def archive(path, *members):
    with tarfile.open(path, "w:gz") as tar:
        for info, content in members:
            tar.addfile(info, io.BytesIO(content))
    return path


def files_of(folder):
    return {name: (folder / name).read_bytes() for name in [*NAMES, "batches.meta"]}


@pytest.fixture
def unpacking(folder, tmp_path, monkeypatch):
    """Load from an archive with good files and given members, whose checksums are forged too."""
    good = [member(f"{folder.name}/{name}", content) for name, content in files_of(folder).items()]

    def unpack(*members, before=True):
        home = tmp_path / "victim"
        home.mkdir()
        path = archive(home / datasets.CIFAR10.filename, *(members if before else ()), *good, *members)
        monkeypatch.setattr(datasets.CIFAR10, "tgz_md5", md5(path.read_bytes()))
        monkeypatch.setitem(cifar._SHA256, path.name, hashlib.sha256(path.read_bytes()).hexdigest())
        return cifar10(home, train=True)

    return unpack


def test_a_good_archive_is_unpacked(unpacking, folder, tmp_path):
    readme = member(f"{folder.name}/readme.html", b"hello")
    assert len(unpacking(member(folder.name, kind=tarfile.DIRTYPE), readme)) == 10
    assert {path.name for path in (tmp_path / "victim" / folder.name).iterdir()} == {*NAMES, "batches.meta"}


BASE = datasets.CIFAR10.base_folder
ATTACKS = {
    "above": member("../canary", b"dead"),
    "above the folder": member(f"{BASE}/../../canary", b"dead"),
    "absolute": member("/tmp/canary", b"dead"),
    "link": member(f"{BASE}/data_batch_1", kind=tarfile.SYMTYPE, link="../../canary"),
    "linked folder": member(BASE, kind=tarfile.SYMTYPE, link=".."),
    "hard link": member(f"{BASE}/data_batch_1", kind=tarfile.LNKTYPE, link="../canary"),
    "character device": member(f"{BASE}/data_batch_1", kind=tarfile.CHRTYPE),
    "block device": member(f"{BASE}/data_batch_1", kind=tarfile.BLKTYPE),
    "pipe": member(f"{BASE}/data_batch_1", kind=tarfile.FIFOTYPE),
}


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("name", ATTACKS)
def test_an_archive_that_leads_elsewhere_is_refused(unpacking, canary, name, before, tmp_path):
    what = re.escape(repr(ATTACKS[name][0].name))
    pattern = rf"^cifar10: .*got ValueError: an archive with {what}, which is no plain file in a folder of its own\. "
    with pytest.raises(OSError, match=pattern):
        unpacking(ATTACKS[name], before=before)
    everything = {path.relative_to(tmp_path).parts[0] for path in tmp_path.rglob("*")}
    assert everything == {"canary", "home", "victim"}
    assert not any(path.is_symlink() for path in tmp_path.rglob("*"))


def test_a_file_of_another_checksum_is_refused(unpacking):
    pattern = r"got ValueError: an archive in which '.*/data_batch_1' has another checksum\. "
    with pytest.raises(OSError, match=pattern):
        unpacking(member(f"{BASE}/data_batch_1", b"something else"))


def test_an_archive_without_a_file_is_refused(folder, tmp_path):
    path = archive(tmp_path / "archive.tar.gz", member(f"{BASE}/test_batch", batch()))
    with pytest.raises(ValueError, match=r"^an archive without batches\.meta$"):
        published.unpack(path, tmp_path / BASE, {"test_batch": md5(batch()), "batches.meta": "0" * 32})


def test_a_bomb_is_refused_before_it_fills_disk_or_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(published, "_LARGEST", 1 << 20)
    path = archive(tmp_path / "bomb.tar.gz", member("a/zeros", bytes(1 << 22)), member(f"{BASE}/x", b"x"))
    assert path.stat().st_size < 1 << 15
    with pytest.raises(ValueError, match=r"^an archive that unpacks to more than 1048576 bytes$"):
        published.unpack(path, tmp_path / BASE, {"x": md5(b"x")})
    assert [path.name for path in tmp_path.iterdir()] == ["bomb.tar.gz"]


def test_a_name_as_long_as_a_bomb_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(published, "_LARGEST", 1 << 20)
    header = tarfile.TarInfo("././@LongLink")
    header.type, header.size = tarfile.GNUTYPE_LONGNAME, 1 << 30
    with gzip.open(tmp_path / "bomb.tar.gz", "wb") as file:
        file.write(header.tobuf() + bytes(1 << 22))
    with pytest.raises(ValueError, match=r"^an archive that unpacks to more than 1048576 bytes$"):
        published.unpack(tmp_path / "bomb.tar.gz", tmp_path / BASE, {"x": md5(b"x")})


def test_the_archives_of_cifar_fit_into_the_limit():
    assert published._LARGEST > 6 * 31_035_704 + 200_000


def test_an_archive_of_another_sha256_is_not_opened(folder, tmp_path, monkeypatch):
    """As one would have whose MD5 was forged."""
    home = tmp_path / "victim"
    home.mkdir()
    (home / datasets.CIFAR10.filename).write_bytes(b"something else")
    monkeypatch.setattr(datasets.CIFAR10, "tgz_md5", md5(b"something else"))
    monkeypatch.setattr(cifar, "unpack", None)
    found = hashlib.sha256(b"something else").hexdigest()
    pattern = (
        rf"with the SHA-256 {found} instead of 6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce\. "
    )
    with pytest.raises(OSError, match=pattern):
        cifar10(home, train=True)


def test_downloads_have_published_checksums_and_begin_at_an_https_address():
    for kind in (datasets.CIFAR10, datasets.CIFAR100):
        assert kind.url.startswith("https://")
        assert re.fullmatch("[0-9a-f]{64}", cifar._SHA256[kind.filename])
        assert all(re.fullmatch("[0-9a-f]{32}", md5) for _, md5 in [*kind.train_list, *kind.test_list])


# Arrays.


def test_an_array_file_that_holds_a_pickle_is_refused(tmp_path, canary):
    np.save(tmp_path / "labels.npy", np.array([remove(canary)], dtype=object), allow_pickle=True)
    np.save(tmp_path / "fog.npy", np.zeros(3, np.uint8))
    with pytest.raises(ValueError, match=r"^cifar10_c: expected integer \[50000\] in labels.npy, got an error: "):
        next(cifar10_c(tmp_path, names=["fog"], verify=False))


def test_an_array_file_whose_header_calls_something_is_refused(tmp_path, canary):
    header = f"__import__('os').remove({str(canary)!r})\n".encode()
    (tmp_path / "labels.npy").write_bytes(b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header)
    np.save(tmp_path / "fog.npy", np.zeros(3, np.uint8))
    with pytest.raises(ValueError, match=r"^cifar10_c: expected integer \[50000\] in labels.npy, got an error: "):
        next(cifar10_c(tmp_path, names=["fog"], verify=False))


@pytest.mark.parametrize("name", ["../canary", "/etc/passwd", "fog/../../canary", "labels"])
def test_only_known_corruptions_become_paths(tmp_path, name):
    with pytest.raises(ValueError, match="expected each of names to be one of"):
        next(cifar10_c(tmp_path, names=[name]))
