"""CIFAR-10 and CIFAR-100, downloaded and verified by torchvision."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from .._checks import check_bool, complaint
from .images import ImageSet


def cifar10(root: str | Path, *, train: bool, download: bool = True) -> ImageSet:
    """Load CIFAR-10: 50,000 training and 10,000 test images of 32 x 32 pixels in 10 classes.

    Every file is compared with its published checksum before it is read. In a job of many processes let one of them
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
    root = Path(root).expanduser()
    if not download:
        _check_files(owner, kind, root / kind.base_folder)
    try:
        dataset = kind(root, train=train, download=download)
    # Of an archive that breaks off torchvision says RuntimeError, tarfile and zlib have errors of their own.
    except Exception as error:
        expected = f"to read or download the data set in {str(root)!r}"
        remedy = f"Check the network and that the folder can be written to, or fetch {kind.url} and put it there"
        raise OSError(complaint(owner, expected, f"{type(error).__name__}: {error}".rstrip("."), remedy)) from error
    x = torch.from_numpy(dataset.data).permute(0, 3, 1, 2)
    return ImageSet(x, torch.tensor(dataset.targets), tuple(dataset.classes))


def _check_files(owner: str, kind: Any, folder: Path) -> None:
    """Require all files of a data set, each with its checksum."""
    from torchvision.datasets.utils import check_integrity

    files = [*kind.train_list, *kind.test_list, (kind.meta["filename"], kind.meta["md5"])]
    missing = [name for name, _ in files if not (folder / name).is_file()]
    if missing:
        expected, got = f"{len(files)} files in {str(folder)!r}", f"all but {', '.join(missing)}"
        raise FileNotFoundError(complaint(owner, expected, got, "Pass download=True, or another root"))
    damaged = [name for name, md5 in files if not check_integrity(str(folder / name), md5)]
    if damaged:
        expected, got = f"the published checksums in {str(folder)!r}", f"others for {', '.join(damaged)}"
        raise RuntimeError(complaint(owner, expected, got, "Remove these files and pass download=True"))
