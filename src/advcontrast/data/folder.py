"""Folders of images as one tensor."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path

import torch

from .._checks import check_bool, check_int, check_path, complaint
from . import _cache
from .decoding import SUFFIXES, check_confined, decode
from .images import ImageSet

_OWNER = "image_folder"
_FORMAT = 2  # to be raised when the same files shall give other pixels
_MANY = 1000  # images that are worth a progress bar


def image_folder(
    root: str | Path, *, size: int = 32, cache: str | Path | None = None, outside_links: bool = False
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
        outside_links: whether links may lead out of ``root``. They make an error by default: a data set of a stranger
            could name any file of this machine.

    Returns:
        The images on the CPU, labelled by the place of their class among the sorted names.

    Raises:
        FileNotFoundError: there is no such folder, no class in it, or a class without images.
        UnreadableImageError: an image cannot be decoded, has more than 8 bits a channel, or claims more pixels than
            ``PIL.Image.MAX_IMAGE_PIXELS``.
        ValueError: size < 1, or a link leads out of the folder.
        TypeError: an argument of the wrong kind.
    """
    check_int(_OWNER, "size", size, low=1, remedy="Pass the side of the images in pixels")
    check_bool(_OWNER, "outside_links", outside_links, remedy="True follows links to anywhere")
    check_path("image_folder", "root", root, remedy="Pass the folder that holds a folder for each class")
    if cache is not None:
        check_path("image_folder", "cache", cache, remedy="Pass a folder, or None to keep nothing")
    root = Path(root).expanduser()
    confines = None if outside_links else Path(os.path.realpath(root))
    classes = _class_folders(root, confines)
    paths = [_images(folder, confines) for folder in classes]
    labels = [label for label, own in enumerate(paths) for _ in own]
    every = [path for own in paths for path in own]
    y, names = torch.tensor(labels), tuple(folder.name for folder in classes)
    if cache is None:
        return ImageSet(_decode_all(every, size), y, names)
    file = Path(cache).expanduser() / f"{_key(every, size)}.pixels"
    x = _cache.read(file, (len(every), 3, size, size))
    if x is None:
        x = _decode_all(every, size)
        _cache.write(file, x)
    return ImageSet(x, y, names)


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


def _key(paths: list[Path], size: int) -> str:
    """Return the name under which the pixels of these files are kept."""
    try:
        stats = [(path, path.stat()) for path in paths]
    except OSError as error:
        remedy = "Remove the link, or put the image there"
        raise FileNotFoundError(complaint(_OWNER, f"images in {str(paths[0].parent)!r}", str(error), remedy)) from error
    files = [(path.parent.name, path.name, found.st_size, found.st_mtime_ns) for path, found in stats]
    where = str(paths[0].parents[1].resolve())
    return hashlib.sha256(json.dumps([_FORMAT, size, where, files]).encode()).hexdigest()


def _decode_all(paths: list[Path], size: int) -> torch.Tensor:
    """Return the images as uint8 ``[N, 3, size, size]``."""
    pixels = bytearray(len(paths) * size * size * 3)
    for i, path in enumerate(_with_progress(paths)):
        pixels[i * size * size * 3 : (i + 1) * size * size * 3] = decode(_OWNER, path, size)
    x = torch.frombuffer(pixels, dtype=torch.uint8).view(len(paths), size, size, 3)
    return x.permute(0, 3, 1, 2).contiguous()


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
