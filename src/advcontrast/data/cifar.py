"""CIFAR-10 and CIFAR-100: downloaded by torchvision, and neither unpacked nor parsed by it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from .._checks import check_bool, check_path, complaint
from .._digest import file_digest
from .images import ImageSet
from .published import read, unpack

# Of the archives; torchvision knows their MD5, which can be forged. Ours are those that Keras lists, among others.
_SHA256 = {
    "cifar-10-python.tar.gz": "6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce",
    "cifar-100-python.tar.gz": "85cd44d02ba6437773c5bbd22e183051d648de2e7d6b014e1ef29b855ba677a7",
}


def cifar10(root: str | Path, *, train: bool, download: bool = True) -> ImageSet:
    """Load CIFAR-10: 50,000 training and 10,000 test images of 32 x 32 pixels in 10 classes.

    Every file is compared with its published checksum before it is read, by a parser that builds nothing but arrays,
    numbers and strings: the files are pickles. In a job of many processes let one of them
    download before the others start.

    Args:
        root: folder that holds ``cifar-10-batches-py``, or shall.
        train: whether to load the training images; the test images otherwise.
        download: whether to fetch missing or damaged files (170 MB). With intact files nothing is fetched.

    Returns:
        The images on the CPU, in the order of the files.

    Raises:
        FileNotFoundError: files are missing, and ``download`` is False.
        RuntimeError: files are damaged, and ``download`` is False.
        OSError: the download failed.
        TypeError: ``train`` or ``download`` is no bool.

    References:
        Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009.
    """
    from torchvision.datasets import CIFAR10

    return _load("cifar10", CIFAR10, root, train, download)


def cifar100(root: str | Path, *, train: bool, download: bool = True) -> ImageSet:
    """Load CIFAR-100: 50,000 training and 10,000 test images of 32 x 32 pixels in 100 (fine) classes.

    Args:
        root: folder that holds ``cifar-100-python``, or shall.
        train: whether to load the training images; the test images otherwise.
        download: whether to fetch missing or damaged files (169 MB). With intact files nothing is fetched.

    Returns:
        The images on the CPU, in the order of the files.

    Raises:
        FileNotFoundError: files are missing, and ``download`` is False.
        RuntimeError: files are damaged, and ``download`` is False.
        OSError: the download failed.
        TypeError: ``train`` or ``download`` is no bool.

    References:
        Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009.
    """
    from torchvision.datasets import CIFAR100

    return _load("cifar100", CIFAR100, root, train, download)


def _load(owner: str, kind: Any, root: str | Path, train: bool, download: bool) -> ImageSet:
    """Return a data set of torchvision's ``kind`` as tensors, or say in one sentence what keeps it from loading."""
    check_bool(owner, "train", train, remedy="True loads the training images, False the test images")
    check_bool(owner, "download", download, remedy="True fetches missing files")
    root = check_path(owner, "root", root, remedy="Pass the folder that holds the files")
    folder, files = root / kind.base_folder, [*kind.train_list, *kind.test_list]
    checksums = {**dict(files), kind.meta["filename"]: kind.meta["md5"]}
    missing, damaged = _wrong(folder, checksums)
    if not download:
        _complain(owner, folder, checksums, missing, damaged)
    try:
        if missing or damaged:
            unpack(_archive(kind, root), folder, checksums)
        parts = [read(folder / name, md5) for name, md5 in (kind.train_list if train else kind.test_list)]
        names = read(folder / kind.meta["filename"], kind.meta["md5"])[kind.meta["key"]]
        return _image_set(parts, names)
    # Of an archive that breaks off torchvision says RuntimeError, tarfile and zlib have errors of their own.
    except Exception as error:
        expected = f"to read or download the data set in {str(root)!r}"
        remedy = f"Check the network and that the folder can be written to, or fetch {kind.url} and put it there"
        raise OSError(complaint(owner, expected, f"{type(error).__name__}: {error}".rstrip("."), remedy)) from error


def _archive(kind: Any, root: Path) -> Path:
    """Return the archive of a data set, downloaded if it is not there."""
    from torchvision.datasets.utils import download_url

    download_url(kind.url, str(root), kind.filename, kind.tgz_md5)
    path: Path = root / kind.filename
    with path.open("rb") as file:
        found = file_digest(file)
    if found != _SHA256[kind.filename]:
        raise ValueError(f"an archive {str(path)!r} with the SHA-256 {found} instead of {_SHA256[kind.filename]}")
    return path


def _image_set(parts: list[dict[str, Any]], names: list[str]) -> ImageSet:
    labels = [label for part in parts for label in part["labels" if "labels" in part else "fine_labels"]]
    pixels = [torch.from_numpy(part["data"]).reshape(-1, 3, 32, 32) for part in parts]
    return ImageSet(torch.cat(pixels), torch.tensor(labels), tuple(names))


def _wrong(folder: Path, checksums: Mapping[str, str]) -> tuple[list[str], list[str]]:
    """Return which files are missing, and which have other checksums."""
    from torchvision.datasets.utils import check_integrity

    missing = [name for name in checksums if not (folder / name).is_file()]
    there = [name for name in checksums if name not in missing]
    return missing, [name for name in there if not check_integrity(str(folder / name), checksums[name])]


def _complain(owner: str, folder: Path, checksums: Mapping[str, str], missing: list[str], damaged: list[str]) -> None:
    """Require all files of a data set, each with its checksum."""
    if missing:
        expected, got = f"{len(checksums)} files in {str(folder)!r}", f"all but {', '.join(missing)}"
        raise FileNotFoundError(complaint(owner, expected, got, "Pass download=True, or another root"))
    if damaged:
        expected, got = f"the published checksums in {str(folder)!r}", f"others for {', '.join(damaged)}"
        raise RuntimeError(complaint(owner, expected, got, "Remove these files and pass download=True"))
