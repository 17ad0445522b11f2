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

from advcontrast.data import cifar10, cifar100

PER_FILE = 4


@pytest.fixture(autouse=True)
def _no_network(monkeypatch):
    def refuse(*args, **kwargs):
        raise urllib.error.URLError("no network")

    monkeypatch.setattr("urllib.request.urlopen", refuse)


def md5(content):
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


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
        return md5(content)

    for files in ("train_list", "test_list"):
        names = [name for name, _ in getattr(kind, files)]
        monkeypatch.setattr(kind, files, [[name, put(name, batch(name, key)[0])] for name in names])
    content = pickle.dumps({kind.meta["key"]: ["cat", "dog", "owl"]})
    monkeypatch.setattr(kind, "meta", {**kind.meta, "md5": put(kind.meta["filename"], content)})
    return folder


@pytest.fixture
def folder(monkeypatch, tmp_path):
    return plant(monkeypatch, datasets.CIFAR10, tmp_path, "labels")


@pytest.fixture
def archive(folder, monkeypatch):
    """The archive of the data set, with its checksum in place of the published one."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as tar:
        tar.add(folder, folder.name)
    monkeypatch.setattr(datasets.CIFAR10, "tgz_md5", md5(file.getvalue()))
    return file.getvalue()


def test_training_images_are_those_of_the_five_files_in_order(folder, tmp_path):
    images = cifar10(tmp_path, train=True)
    files = [batch(f"data_batch_{i}", "labels") for i in range(1, 6)]
    assert torch.equal(images.x, torch.cat([pixels for _, pixels, _ in files]))
    assert images.x.is_contiguous()
    assert images.y.tolist() == [label for _, _, labels in files for label in labels]
    assert images.classes == ("cat", "dog", "owl")


def test_test_images_are_those_of_the_test_file(folder, tmp_path):
    assert torch.equal(cifar10(tmp_path, train=False).x, batch("test_batch", "labels")[1])


@pytest.mark.parametrize("train", [True, False])
def test_cifar100_has_its_fine_labels(monkeypatch, tmp_path, train):
    plant(monkeypatch, datasets.CIFAR100, tmp_path, "fine_labels")
    images = cifar100(tmp_path, train=train)
    _, pixels, labels = batch("train" if train else "test", "fine_labels")
    assert torch.equal(images.x, pixels)
    assert images.y.tolist() == labels


@pytest.mark.parametrize("train", [True, False])
def test_images_and_labels_are_those_of_torchvision(folder, tmp_path, train):
    images, theirs = cifar10(tmp_path, train=train), datasets.CIFAR10(tmp_path, train=train)
    assert np.array_equal(images.x.permute(0, 2, 3, 1).numpy(), theirs.data)
    assert images.y.tolist() == theirs.targets
    assert list(images.classes) == theirs.classes


def test_root_can_be_a_string_in_the_home_folder(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    assert len(cifar10("~", train=False, download=False)) == PER_FILE


class Response(io.BytesIO):
    """Answer of a server to a request."""

    url, length = None, None


@pytest.mark.filterwarnings("ignore:Python 3.14 will, by default, filter:DeprecationWarning")  # torchvision extracts
@pytest.mark.parametrize("damage", [None, b"damaged"])
def test_archive_is_downloaded_once_and_replaces_a_damaged_one(archive, tmp_path, monkeypatch, damage):
    root = tmp_path / "new"
    if damage is not None:
        root.mkdir()
        (root / datasets.CIFAR10.filename).write_bytes(damage)
    with monkeypatch.context() as network:
        network.setattr("urllib.request.urlopen", lambda *args, **kwargs: Response(archive))
        assert len(cifar10(root, train=True)) == 5 * PER_FILE
    assert len(cifar10(root, train=True)) == 5 * PER_FILE


@pytest.mark.filterwarnings("ignore:Python 3.14 will, by default, filter:DeprecationWarning")
@pytest.mark.parametrize("name", ["data_batch_2", "batches.meta"])
@pytest.mark.parametrize("content", [None, b"damaged"])
def test_missing_and_damaged_files_are_taken_from_an_archive_in_the_root(folder, archive, tmp_path, name, content):
    (tmp_path / datasets.CIFAR10.filename).write_bytes(archive)
    (folder / name).unlink()
    if content is not None:
        (folder / name).write_bytes(content)
    assert len(cifar10(tmp_path, train=True)) == 5 * PER_FILE


@pytest.mark.parametrize("loader", [cifar10, cifar100])
def test_failed_download_raises_an_os_error_with_the_address(loader, tmp_path):
    url = {"cifar10": datasets.CIFAR10.url, "cifar100": datasets.CIFAR100.url}[loader.__name__]
    expected = f"{loader.__name__}: expected to download files into {str(tmp_path)!r}, got URLError: "
    with pytest.raises(OSError, match=f"^{re.escape(expected)}.*{re.escape(url)}") as caught:
        loader(tmp_path, train=True)
    assert isinstance(caught.value.__cause__, urllib.error.URLError)


def test_download_into_a_file_raises_an_os_error(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"^cifar10: expected to download files into .*file'"):
        cifar10(tmp_path / "file", train=True)


def test_download_of_something_else_raises_an_os_error(tmp_path, monkeypatch):
    monkeypatch.setattr("urllib.request.urlopen", lambda *args, **kwargs: Response(b"short"))
    with pytest.raises(OSError, match=r"^cifar10: expected to download files into .*"):
        cifar10(tmp_path, train=True)
    assert not (tmp_path / datasets.CIFAR10.base_folder).exists()


def test_missing_files_are_named(folder, tmp_path):
    (folder / "data_batch_3").unlink()
    (folder / "batches.meta").unlink()
    message = f"cifar10: expected 7 files in {str(folder)!r}, got all but data_batch_3, batches.meta. "
    with pytest.raises(FileNotFoundError, match=f"^{re.escape(message)}"):
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
    message = f"cifar10: expected files with the published MD5 in {str(folder)!r}, got others for {name}. "
    with pytest.raises(RuntimeError, match=f"^{re.escape(message)}"):
        cifar10(tmp_path, train=True, download=False)


@pytest.mark.parametrize("name", ["data_batch_1", "batches.meta"])
@pytest.mark.parametrize("download", [True, False])
def test_a_file_with_another_checksum_is_never_unpickled(folder, tmp_path, name, download):
    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "owned"), "w"))

    (folder / name).write_bytes(pickle.dumps(Evil()))
    with pytest.raises((RuntimeError, OSError)):
        cifar10(tmp_path, train=True, download=download)
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize(
    ("arguments", "name"), [({"train": 1}, "train"), ({"train": True, "download": None}, "download")]
)
def test_wrong_arguments(tmp_path, arguments, name):
    with pytest.raises(TypeError, match=f"^cifar10: expected {name} to be True or False, got "):
        cifar10(tmp_path, **arguments)
