"""The files of CIFAR-10-C are read whole or not at all."""

import hashlib
import re

import numpy as np
import pytest
import torch

from advcontrast.data import CIFAR10_C, CIFAR10_C_MAIN, cifar10_c, cifar_c


@pytest.fixture
def archive(tmp_path, monkeypatch):
    """Return the folder of an archive like CIFAR-10-C, with two images a severity and checksums of its own."""
    monkeypatch.setattr(cifar_c, "_IMAGES", 2)
    random = np.random.default_rng(0)
    for name in CIFAR10_C:
        np.save(tmp_path / f"{name}.npy", random.integers(0, 256, (10, 32, 32, 3), dtype=np.uint8))
    np.save(tmp_path / "labels.npy", np.arange(10, dtype=np.uint8))
    sums = {path.stem: hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest() for path in tmp_path.iterdir()}
    monkeypatch.setattr(cifar_c, "_MD5", sums)
    return tmp_path


def test_19_names_of_which_15_are_the_usual_ones():
    assert len(set(CIFAR10_C)) == 19
    assert len(set(CIFAR10_C_MAIN)) == 15
    assert set(CIFAR10_C) - set(CIFAR10_C_MAIN) == {"speckle_noise", "gaussian_blur", "spatter", "saturate"}


def test_every_file_has_a_checksum_of_its_own():
    assert set(cifar_c._MD5) == {*CIFAR10_C, "labels"}
    assert len(set(cifar_c._MD5.values())) == 20
    assert all(re.fullmatch("[0-9a-f]{32}", checksum) for checksum in cifar_c._MD5.values())


def test_archive_is_read_file_by_file_and_severity_by_severity(archive):
    found = list(cifar10_c(archive))
    assert [(name, severity) for name, severity, _ in found] == [(n, s) for n in CIFAR10_C for s in (1, 2, 3, 4, 5)]
    for name in CIFAR10_C:
        x = torch.cat([images.x for own, _, images in found if own == name])
        assert np.array_equal(x.permute(0, 2, 3, 1).numpy(), np.load(archive / f"{name}.npy"))
        assert torch.equal(torch.cat([images.y for own, _, images in found if own == name]), torch.arange(10))


def test_images_are_contiguous_and_have_the_classes_of_cifar_10(archive):
    _, _, images = next(cifar10_c(archive))
    assert images.x.is_contiguous()
    assert images.classes[3:6] == ("cat", "deer", "dog")
    assert len(images.classes) == 10


def test_some_files_are_enough_for_some_names(archive):
    (archive / "snow.npy").unlink()
    names = [name for name, _, _ in cifar10_c(archive, names=("frost", "fog"))]
    assert names == ["frost"] * 5 + ["fog"] * 5


def test_images_can_be_written_to(archive):
    before = (archive / "gaussian_noise.npy").read_bytes()
    _, _, images = next(cifar10_c(str(archive)))
    images.x.zero_()
    assert (archive / "gaussian_noise.npy").read_bytes() == before


def test_labels_of_any_integer_type_are_read(archive):
    np.save(archive / "labels.npy", np.arange(10)[::-1])
    _, _, images = next(cifar10_c(archive, verify=False))
    assert images.y.tolist() == [9, 8]


def test_files_of_the_published_size_hold_10000_images_a_severity(tmp_path):
    # Sparse files: nothing is written to the disk but the header and one image.
    np.lib.format.open_memmap(tmp_path / "labels.npy", "w+", np.uint8, (50_000,))
    images = np.lib.format.open_memmap(tmp_path / "fog.npy", "w+", np.uint8, (50_000, 32, 32, 3))
    images[20_000] = 7
    images.flush()
    found = cifar10_c(tmp_path, names=("fog",), verify=False)
    next(found), next(found)
    name, severity, third = next(found)
    assert (name, severity, third.x.shape) == ("fog", 3, (10_000, 3, 32, 32))
    assert third.x.flatten(1).sum(1).nonzero().tolist() == [[0]]


@pytest.mark.parametrize("name", ["fog", "labels"])
def test_a_file_with_another_checksum_is_refused_at_once(archive, name):
    path = archive / f"{name}.npy"
    content = bytearray(path.read_bytes())
    published = cifar_c._MD5[name]
    content[-1] ^= 1
    path.write_bytes(content)
    message = f"cifar10_c: expected the published MD5 {published} of {name}.npy, got another one. "
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        cifar10_c(archive)


def test_a_checksum_is_that_of_the_whole_file(archive, monkeypatch):
    monkeypatch.setattr(cifar_c, "_IMAGES", 200)
    np.save(archive / "labels.npy", np.zeros(1000, np.uint8))
    np.save(archive / "fog.npy", np.zeros((1000, 32, 32, 3), np.uint8))
    sums = {name: hashlib.md5((archive / f"{name}.npy").read_bytes()).hexdigest() for name in ("fog", "labels")}
    monkeypatch.setattr(cifar_c, "_MD5", sums)
    assert len(list(cifar10_c(archive, names=("fog",)))) == 5


def test_another_checksum_is_let_pass_on_demand(archive, monkeypatch):
    monkeypatch.setattr(cifar_c, "_MD5", dict.fromkeys(cifar_c._MD5, "0" * 32))
    assert len(list(cifar10_c(archive, names=("fog",), verify=False))) == 5


def test_missing_files_are_named_at_once(archive):
    (archive / "fog.npy").unlink()
    (archive / "labels.npy").unlink()
    message = f"cifar10_c: expected 20 files in {str(archive)!r}, got all but fog.npy, labels.npy. "
    with pytest.raises(FileNotFoundError, match=f"^{re.escape(message)}"):
        cifar10_c(archive)


@pytest.mark.parametrize(
    ("content", "got"),
    [
        (np.zeros((9, 32, 32, 3), np.uint8), "uint8 [9, 32, 32, 3]"),
        (np.zeros((10, 3, 32, 32), np.uint8), "uint8 [10, 3, 32, 32]"),
        (np.zeros((10, 32, 32, 3), np.float32), "float32 [10, 32, 32, 3]"),
        (np.zeros((10, 32, 32, 3), np.int8), "int8 [10, 32, 32, 3]"),
    ],
)
def test_a_file_with_something_else_is_named_at_once(archive, content, got):
    np.save(archive / "saturate.npy", content)
    message = f"cifar10_c: expected uint8 [10, 32, 32, 3] in saturate.npy, got {got}"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        cifar10_c(archive)


@pytest.mark.parametrize("damage", ["truncated", "header", "foreign", "empty", "pickled", "zip"])
@pytest.mark.parametrize("verify", [True, False])
def test_a_damaged_file_is_named_at_once(archive, damage, verify):
    path = archive / "snow.npy"
    good = path.read_bytes()
    if damage == "pickled":
        np.save(path, np.array([{"a": 1}], dtype=object))
    elif damage == "zip":
        with path.open("wb") as file:
            np.savez(file, np.zeros(3))
    else:
        pieces = {"truncated": good[:-1], "header": good[:40], "foreign": b"<html>" * 99, "empty": b""}
        path.write_bytes(pieces[damage])
    pattern = r"^cifar10_c: expected uint8 \[10, 32, 32, 3\] in snow.npy"
    with pytest.raises(ValueError, match=pattern):
        cifar10_c(archive, verify=verify)


@pytest.mark.parametrize("labels", [np.arange(10) + 1, np.arange(10) - 1])
def test_labels_out_of_range_are_refused(archive, labels):
    np.save(archive / "labels.npy", labels)
    with pytest.raises(ValueError, match=r"^cifar10_c: expected labels within bounds \[0, 9\]"):
        cifar10_c(archive)


def test_labels_that_are_no_integers_are_refused(archive):
    np.save(archive / "labels.npy", np.zeros(10))
    message = "cifar10_c: expected integer [10] in labels.npy"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        cifar10_c(archive)


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"names": ("rain",)}, ValueError, "expected each of names to be"),
        ({"names": ("labels",)}, ValueError, "expected each of names to be"),
        ({"names": ("Fog",)}, ValueError, "expected each of names to be"),
        ({"names": (3,)}, TypeError, "expected each of names to be"),
        ({"names": ()}, ValueError, "expected names to hold"),
        ({"names": "fog"}, TypeError, "expected names to be"),
        ({"verify": 1}, TypeError, "expected verify to be"),
    ],
)
def test_wrong_settings(archive, settings, error, message):
    with pytest.raises(error, match=f"^cifar10_c: .*{re.escape(message)}"):
        cifar10_c(archive, **settings)
