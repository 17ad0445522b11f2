"""CIFAR-10 and CIFAR-100, which torchvision downloads, verifies and decodes."""

from pathlib import Path

import torch

from .._checks import check_bool, check_path, complaint
from .images import ImageSet


def cifar10(root: str | Path, *, train: bool, download: bool = True) -> ImageSet:
    """Load CIFAR-10: 50,000 training and 10,000 test images of 32 x 32 pixels in 10 classes, on the CPU.

    torchvision compares the MD5 of every file with the published one before decoding any. If processes share ``root``,
    let one download first. Reference: Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009.

    Args:
        root: folder that holds ``cifar-10-batches-py``, or to which it is downloaded.
        train: whether to load the training images; the test images otherwise.
        download: whether to download missing or damaged files (170 MB). With intact files nothing is downloaded.

    Raises:
        FileNotFoundError: files are missing, and ``download`` is False.
        RuntimeError: files are damaged, and ``download`` is False.
        OSError: the download failed.
        TypeError: an argument has the wrong type.
    """
    return _load("CIFAR10", root, train, download)


def cifar100(root: str | Path, *, train: bool, download: bool = True) -> ImageSet:
    """Load CIFAR-100: 50,000 training and 10,000 test images of 32 x 32 pixels in 100 (fine) classes.

    The folder is ``cifar-100-python``, the download 169 MB; arguments, errors, reference are those of :func:`cifar10`.
    """
    return _load("CIFAR100", root, train, download)


def _load(name: str, root: str | Path, train: bool, download: bool) -> ImageSet:
    """Convert the data set of torchvision with this name to tensors."""
    from torchvision import datasets
    from torchvision.datasets.utils import check_integrity, download_and_extract_archive

    owner, kind = name.lower(), getattr(datasets, name)
    check_bool(owner, "train", train, remedy="True loads the training images, False the test images")
    check_bool(owner, "download", download, remedy="True downloads missing files")
    root = check_path(owner, "root", root, remedy="Pass the folder that holds the files")
    folder = root / kind.base_folder
    checksums = dict([*kind.train_list, *kind.test_list, (kind.meta["filename"], kind.meta["md5"])])
    wrong = [name for name, md5 in checksums.items() if not check_integrity(folder / name, md5)]
    missing = [name for name in wrong if not (folder / name).is_file()]
    if wrong and download:
        try:
            download_and_extract_archive(kind.url, root, filename=kind.filename, md5=kind.tgz_md5)
        # The errors of torchvision, http.client, tarfile and zlib have no base class but Exception.
        except Exception as error:
            got = f"{type(error).__name__}: {error}".rstrip(".")
            remedy = f"Check the network and the permissions of the folder, or download {kind.url} into it"
            raise OSError(complaint(owner, f"to download files into {str(root)!r}", got, remedy)) from error
    elif missing:
        expected, got = f"{len(checksums)} files in {str(folder)!r}", f"all but {', '.join(missing)}"
        raise FileNotFoundError(complaint(owner, expected, got, "Pass download=True, or another root"))
    elif wrong:
        expected, got = f"files with the published MD5 in {str(folder)!r}", f"others for {', '.join(wrong)}"
        raise RuntimeError(complaint(owner, expected, got, "Pass download=True to replace them"))
    data = kind(root, train=train)  # verifies the files before it unpickles them
    x = torch.from_numpy(data.data).permute(0, 3, 1, 2).contiguous()
    return ImageSet(x, torch.tensor(data.targets), tuple(data.classes))
