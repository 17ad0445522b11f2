"""CIFAR-10 and CIFAR-100 from small files in the right layout; nothing is fetched from the network."""

import hashlib
import io
import pickle
import re
import tarfile
import urllib.error

import numpy as np
import pytest
import torch
from torchvision import datasets

from advcontrast.data import cifar, cifar10, cifar100

PER_FILE = 4


@pytest.fixture(autouse=True)
def _no_network(monkeypatch):
    def refuse(*args, **kwargs):
        raise urllib.error.URLError("no network")

    monkeypatch.setattr("urllib.request.urlopen", refuse)


def batch(name, key):
    """Return the content of a file and its pixels; every file has pixels of its own."""
    pixels = np.random.RandomState(len(name) + ord(name[-1])).randint(0, 256, (PER_FILE, 3072), dtype=np.uint8)
    labels = [(ord(name[-1]) + i) % 3 for i in range(PER_FILE)]
    return pickle.dumps({"data": pixels, key: labels}, protocol=4), torch.from_numpy(pixels).view(-1, 3, 32, 32), labels


def plant(monkeypatch, kind, root, key):
    """Put small files in place of a data set's, and their checksums in place of the published ones."""
    folder = root / kind.base_folder
    folder.mkdir(parents=True)

    def put(name, content):
        (folder / name).write_bytes(content)
        return hashlib.md5(content, usedforsecurity=False).hexdigest()

    for files in ("train_list", "test_list"):
        names = [name for name, _ in getattr(kind, files)]
        monkeypatch.setattr(kind, files, [[name, put(name, batch(name, key)[0])] for name in names])
    content = pickle.dumps({kind.meta["key"]: ["cat", "dog", "owl"]})
    monkeypatch.setattr(kind, "meta", {**kind.meta, "md5": put(kind.meta["filename"], content)})
    return folder


@pytest.fixture
def folder(monkeypatch, tmp_path):
    return plant(monkeypatch, datasets.CIFAR10, tmp_path, "labels")


def test_training_images_are_those_of_the_five_files_in_order(folder, tmp_path):
    images = cifar10(tmp_path, train=True)
    files = [batch(f"data_batch_{i}", "labels") for i in range(1, 6)]
    assert torch.equal(images.x, torch.cat([pixels for _, pixels, _ in files]))
    assert images.y.tolist() == [label for _, _, labels in files for label in labels]
    assert images.classes == ("cat", "dog", "owl")


def test_test_images_are_those_of_the_test_file(folder, tmp_path):
    assert torch.equal(cifar10(tmp_path, train=False).x, batch("test_batch", "labels")[1])


def test_images_lie_in_memory_channel_by_channel(folder, tmp_path):
    assert cifar10(tmp_path, train=False).x.is_contiguous()


def test_cifar100_has_its_fine_labels(monkeypatch, tmp_path):
    plant(monkeypatch, datasets.CIFAR100, tmp_path, "fine_labels")
    images = cifar100(tmp_path, train=True)
    _, pixels, labels = batch("train", "fine_labels")
    assert torch.equal(images.x, pixels)
    assert images.y.tolist() == labels
    assert torch.equal(cifar100(tmp_path, train=False).x, batch("test", "fine_labels")[1])


def test_root_can_be_a_string_in_the_home_folder(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    assert len(cifar10("~", train=False, download=False)) == PER_FILE


def test_archive_in_the_root_is_unpacked_instead_of_a_download(folder, tmp_path, monkeypatch):
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w:gz") as tar:
        tar.add(folder, folder.name)
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / datasets.CIFAR10.filename).write_bytes(archive.getvalue())
    monkeypatch.setattr(datasets.CIFAR10, "tgz_md5", hashlib.md5(archive.getvalue(), usedforsecurity=False).hexdigest())
    monkeypatch.setitem(cifar._SHA256, datasets.CIFAR10.filename, hashlib.sha256(archive.getvalue()).hexdigest())
    assert len(cifar10(tmp_path / "new", train=True)) == 5 * PER_FILE


@pytest.mark.parametrize("loader", [cifar10, cifar100])
def test_failed_download_says_what_to_do(loader, tmp_path):
    url = {"cifar10": datasets.CIFAR10.url, "cifar100": datasets.CIFAR100.url}[loader.__name__]
    message = (
        f"{loader.__name__}: expected to read or download the data set in {str(tmp_path)!r}, got URLError: "
        f"<urlopen error no network>. Check the network and that the folder can be written to, or "
        f"fetch {url} and put it there."
    )
    with pytest.raises(OSError, match=f"^{re.escape(message)}$") as caught:
        loader(tmp_path, train=True)
    assert isinstance(caught.value.__cause__, urllib.error.URLError)


def test_download_into_a_file_says_what_to_do(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(
        OSError, match=r"^cifar10: expected to read or download .*file', got FileExistsError: .* Check the"
    ):
        cifar10(tmp_path / "file", train=True)


def test_download_that_breaks_off_says_what_to_do(tmp_path, monkeypatch):
    class Response(io.BytesIO):
        url, length = None, 5

    monkeypatch.setattr("urllib.request.urlopen", lambda *args, **kwargs: Response(b"short"))
    with pytest.raises(OSError, match=r"got RuntimeError: File not found or corrupted\. Check the network"):
        cifar10(tmp_path, train=True)


def test_missing_files_are_named(folder, tmp_path):
    (folder / "data_batch_3").unlink()
    (folder / "batches.meta").unlink()
    message = (
        f"cifar10: expected 7 files in {str(folder)!r}, got all but data_batch_3, batches.meta. "
        "Pass download=True, or another root."
    )
    with pytest.raises(FileNotFoundError, match=f"^{re.escape(message)}$"):
        cifar10(tmp_path, train=True, download=False)


def test_without_download_nothing_is_made(tmp_path):
    with pytest.raises(FileNotFoundError, match="got all but train, test, meta"):
        cifar100(tmp_path / "absent", train=True, download=False)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["data_batch_2", "test_batch", "batches.meta"])
def test_damaged_file_is_named(folder, tmp_path, name):
    content = bytearray((folder / name).read_bytes())
    content[-3] ^= 1
    (folder / name).write_bytes(content)
    message = (
        f"cifar10: expected the published checksums in {str(folder)!r}, got others for {name}. "
        "Remove these files and pass download=True."
    )
    with pytest.raises(RuntimeError, match=f"^{re.escape(message)}$"):
        cifar10(tmp_path, train=True, download=False)


@pytest.mark.parametrize("download", [True, False])
def test_foreign_pickle_is_never_loaded(folder, tmp_path, download, monkeypatch):
    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "owned"), "w"))

    (folder / "data_batch_1").write_bytes(pickle.dumps(Evil()))
    with pytest.raises((RuntimeError, OSError)):
        cifar10(tmp_path, train=True, download=download)
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"train": 1}, "expected train to be True or False, got 1. True loads the training images, False the test "),
        ({"train": True, "download": None}, "expected download to be True or False, got None. True fetches missing "),
    ],
)
def test_wrong_arguments(tmp_path, arguments, message):
    with pytest.raises(TypeError, match=re.escape(f"cifar10: {message}")):
        cifar10(tmp_path, **arguments)
