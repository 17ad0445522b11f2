"""Folders of images as one tensor."""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from .._checks import check_bool, check_choice, check_int, check_path, check_real, complaint
from . import _cache
from .decoding import SUFFIXES, UnreadableImageError, check_confined, decode
from .images import ImageSet

_OWNER = "image_folder"
_FORMAT = 3  # to be raised when the same files shall give other pixels
_MANY = 1000  # images that are worth a progress bar
_NAMED = 10  # files that a message lists


def image_folder(
    root: str | Path,
    *,
    size: int = 32,
    cache: str | Path | None = None,
    unreadable: Literal["raise", "skip"] = "raise",
    tolerance: float = 0.01,
    outside_links: bool = False,
) -> ImageSet:
    """Load the images of ``root/<class>/*`` as squares of one size.

    An image is converted to RGB, cropped to its central square and resized with antialiased bicubic interpolation
    unless it has the size already. Classes and files come in the order of their names; hidden files, and those whose
    suffix is not one of bmp, jpeg, jpg, pgm, png, ppm, tif, tiff and webp, are left out.

    Decoding takes its time, so that a ``cache`` folder pays: the pixels are kept there under the names, sizes and times
    of modification of all files. A damaged cache, or one that cannot be written, costs a warning and the time to decode
    again. Several processes may share it.

    Args:
        root: folder with a folder for each class.
        size: side of the images in pixels, at least 1.
        cache: folder for the decoded images, made if it does not exist; ``None`` decodes on every call.
        unreadable: what to do with a file that is no image, or broken, empty or gone: ``"raise"``, or ``"skip"``, which
            leaves it out and names it in a warning.
        tolerance: the largest share of the images that may be left out, in [0, 1]; beyond it an error is raised.
        outside_links: whether links may lead out of ``root``. They make an error by default: a data set of a stranger
            could name any file of this machine.

    Returns:
        The images on the CPU, labelled by the place of their class among the sorted names.

    Raises:
        FileNotFoundError: there is no such folder, no class in it, or a class without images.
        UnreadableImageError: an image cannot be decoded, has more than 8 bits a channel, or claims more pixels than
            ``PIL.Image.MAX_IMAGE_PIXELS``; where they are skipped, there are too many, or all of a class.
        ValueError: an argument out of its range, or a link that leads out of the folder.
        TypeError: an argument of the wrong kind.
    """
    check_int(_OWNER, "size", size, low=1, remedy="Pass the side of the images in pixels")
    check_bool(_OWNER, "outside_links", outside_links, remedy="True follows links to anywhere")
    check_path(_OWNER, "root", root, remedy="Pass the folder that holds a folder for each class")
    if cache is not None:
        check_path(_OWNER, "cache", cache, remedy="Pass a folder, or None to keep nothing")
    check_choice(_OWNER, "unreadable", unreadable, ("raise", "skip"))
    check_real(_OWNER, "tolerance", tolerance, low=0, high=1, remedy="0.01 accepts one bad file in a hundred")
    root = Path(root).expanduser()
    confines = None if outside_links else Path(os.path.realpath(root))
    classes = _class_folders(root, confines)
    paths = [_images(folder, confines) for folder in classes]
    every = [path for own in paths for path in own]
    y = torch.tensor([label for label, own in enumerate(paths) for _ in own])
    flat = _pixels(every, size, unreadable, None if cache is None else Path(cache).expanduser())
    x, readable = flat[: -len(y)].view(len(y), 3, size, size), flat[-len(y) :].bool()
    images = ImageSet(x, y, tuple(folder.name for folder in classes))
    if readable.all():
        return images
    _check_left_out(root, every, images, readable, tolerance)
    return images.subset(readable.nonzero()[:, 0])


def _class_folders(root: Path, confines: Path | None) -> list[Path]:
    """Return the folders of the classes by name."""
    remedy = "Put the images into root/<class>/"
    if not root.is_dir():
        got = "a file" if root.exists() else "nothing there"
        raise FileNotFoundError(complaint(_OWNER, f"a folder at {str(root)!r}", got, remedy))
    with os.scandir(root) as entries:
        found = [entry for entry in entries if entry.is_dir() and not entry.name.startswith(".")]
    for entry in found:
        check_confined(_OWNER, entry, confines)
    folders = [root / entry.name for entry in found]
    if not folders:
        remedy += ", or read them without labels by ImageStream(root)"
        raise FileNotFoundError(complaint(_OWNER, f"a folder for each class in {str(root)!r}", "none", remedy))
    return sorted(folders, key=lambda folder: folder.name)


def _images(folder: Path, confines: Path | None) -> list[Path]:
    """Return the images of a class by name."""
    with os.scandir(folder) as entries:  # knows what is a folder without a look at every file
        found = [entry for entry in entries if not entry.name.startswith(".") and not entry.is_dir()]
    chosen = [entry for entry in found if entry.name.lower().endswith(SUFFIXES)]
    for entry in chosen:
        check_confined(_OWNER, entry, confines)
    images = sorted(folder / entry.name for entry in chosen)
    if not images:
        kinds = ", ".join(sorted({Path(entry.name).suffix or "no suffix" for entry in found}))
        got = f"{len(found)} files of other kinds ({kinds})" if found else "an empty folder"
        remedy = "Remove the folder, or put images into it"
        raise FileNotFoundError(complaint(_OWNER, f"images in {str(folder)!r}", got, remedy))
    return images


def _check_left_out(root: Path, paths: list[Path], images: ImageSet, readable: Tensor, tolerance: float) -> None:
    """Name the images that are left out in a warning; require them to be few, and each class to keep one."""
    broken = [
        repr(str(path.relative_to(root))) for path, good in zip(paths, readable.tolist(), strict=True) if not good
    ]
    named = ", ".join(broken[:_NAMED]) + (f" and {len(broken) - _NAMED} more" if len(broken) > _NAMED else "")
    got = f"{len(broken)} of {len(paths)} images in {str(root)!r} unreadable: {named}"
    if len(broken) > tolerance * len(paths):
        expected = f"at most {tolerance:.1%} of the images left out"
        raise UnreadableImageError(complaint(_OWNER, expected, got, "Look at the folder, or raise tolerance"))
    if not images.y[readable].bincount(minlength=len(images.classes)).all():
        remedy = "Remove the folder of that class, or mend its images"
        raise UnreadableImageError(complaint(_OWNER, "a readable image of each class", got, remedy))
    warnings.warn(f"{_OWNER}: {got}. They are left out.", UserWarning, stacklevel=3)


def _key(paths: list[Path], size: int, unreadable: str) -> str:
    """Return the name under which the pixels of these files are kept."""
    files = [(path.parent.name, path.name, *_stamp(path, unreadable)) for path in paths]
    where = str(paths[0].parents[1].resolve())
    return hashlib.sha256(json.dumps([_FORMAT, size, unreadable, where, files]).encode()).hexdigest()


def _stamp(path: Path, unreadable: str) -> tuple[int, int]:
    """Return size and time of modification of a file, or zeros for one that is gone and may be."""
    try:
        found = path.stat()
    except OSError as error:
        if unreadable == "skip":
            return 0, 0
        remedy = "Remove the link, or put the image there"
        raise FileNotFoundError(complaint(_OWNER, f"images in {str(path.parent)!r}", str(error), remedy)) from error
    return found.st_size, found.st_mtime_ns


def _pixels(paths: list[Path], size: int, unreadable: str, cache: Path | None) -> Tensor:
    """Return the pixels of all images and then, for each of them, whether it could be read: uint8, flat."""
    if cache is None:
        return _decode_all(paths, size, unreadable)
    file = cache / f"{_key(paths, size, unreadable)}.pixels"
    flat = _cache.read(file, (len(paths) * (3 * size * size + 1),))
    if flat is None:
        flat = _decode_all(paths, size, unreadable)
        _cache.write(file, flat)
    return flat


def _decode_all(paths: list[Path], size: int, unreadable: str) -> Tensor:
    pixels, readable = bytearray(len(paths) * size * size * 3), bytearray(len(paths))
    for i, path in enumerate(_with_progress(paths)):
        try:
            pixels[i * size * size * 3 : (i + 1) * size * size * 3] = decode(_OWNER, path, size)
        except UnreadableImageError:
            if unreadable == "raise":
                raise
        else:
            readable[i] = True
    flat = torch.empty(len(pixels) + len(readable), dtype=torch.uint8)
    rows = torch.frombuffer(pixels, dtype=torch.uint8).view(len(paths), size, size, 3)
    flat[: len(pixels)].view(len(paths), 3, size, size).copy_(rows.permute(0, 3, 1, 2))
    flat[len(pixels) :] = torch.frombuffer(readable, dtype=torch.uint8)
    return flat


def _with_progress(paths: list[Path]) -> Iterable[Path]:
    """Show a progress bar where it pays and tqdm is installed."""
    if len(paths) <= _MANY:
        return paths
    try:
        from tqdm import tqdm
    except ImportError:
        return paths
    bar: Iterable[Path] = tqdm(paths, desc="decode", unit="image")
    return bar
