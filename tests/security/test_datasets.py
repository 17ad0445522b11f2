"""Data sets of strangers: arrays and names that lead elsewhere."""

import os
import re

import numpy as np
import pytest
from torchvision import datasets

from advcontrast.data import cifar10_c


class Remove:
    """Removes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.remove, (str(self.path),)


@pytest.fixture
def canary(tmp_path):
    """A file that must survive."""
    path = tmp_path / "canary"
    path.write_text("alive")
    yield path
    assert path.read_text() == "alive"


def test_downloads_have_published_checksums_and_begin_at_an_https_address():
    for kind in (datasets.CIFAR10, datasets.CIFAR100):
        assert kind.url.startswith("https://")
        checksums = [kind.tgz_md5, kind.meta["md5"], *(md5 for _, md5 in [*kind.train_list, *kind.test_list])]
        assert all(re.fullmatch("[0-9a-f]{32}", checksum) for checksum in checksums)


def test_an_array_file_that_holds_a_pickle_is_refused(tmp_path, canary):
    np.save(tmp_path / "labels.npy", np.array([Remove(canary)], dtype=object), allow_pickle=True)
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
