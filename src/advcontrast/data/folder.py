"""Folders of images as one tensor."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path

import torch

from .._checks import check_int, complaint
from . import _cache
from .images import ImageSet

_OWNER = "image_folder"
_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
_FORMAT = 1  # to be raised when the same files shall give other pixels
_MANY = 1000  # images that are worth a progress bar


def image_folder(root: str | Path, *, size: int = 32, cache: str | Path | None = None) -> ImageSet:
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

    Returns:
        The images on the CPU, labelled by the place of their class among the sorted names.

    Raises:
        FileNotFoundError: there is no such folder, no class in it, or a class without images.
        RuntimeError: an image cannot be decoded, or has more than 8 bits a channel.
        ValueError: size < 1.
        TypeError: ``size`` is no int.
    """
    check_int(_OWNER, "size", size, low=1, remedy="Pass the side of the images in pixels")
    root = Path(root).expanduser()
    classes = _class_folders(root)
    paths = [_images(folder) for folder in classes]
    labels = [label for label, own in enumerate(paths) for _ in own]
    every = [path for own in paths for path in own]
    y, names = torch.tensor(labels), tuple(folder.name for folder in classes)
    if cache is None:
        return ImageSet(_decode_all(every, size), y, names)
    file = Path(cache).expanduser() / f"{_key(every, size)}.pt"
    x = _cache.read(file, (len(every), 3, size, size))
    if x is None:
        x = _decode_all(every, size)
        _cache.write(file, x)
    return ImageSet(x, y, names)


def _class_folders(root: Path) -> list[Path]:
    """Return the folders of the classes by name."""
    remedy = "Put the images into root/<class>/"
    if not root.is_dir():
        got = "a file" if root.exists() else "nothing there"
        raise FileNotFoundError(complaint(_OWNER, f"a folder at {str(root)!r}", got, remedy))
    folders = [path for path in root.iterdir() if path.is_dir() and not path.name.startswith(".")]
    if not folders:
        raise FileNotFoundError(complaint(_OWNER, f"a folder for each class in {str(root)!r}", "none", remedy))
    return sorted(folders, key=lambda folder: folder.name)


def _images(folder: Path) -> list[Path]:
    """Return the images of a class by name."""
    with os.scandir(folder) as entries:  # knows what is a folder without a look at every file
        files = sorted(entry.name for entry in entries if not entry.name.startswith(".") and not entry.is_dir())
    images = [folder / name for name in files if name.lower().endswith(_SUFFIXES)]
    if not images:
        kinds = ", ".join(sorted({Path(name).suffix or "no suffix" for name in files}))
        got = f"{len(files)} files of other kinds ({kinds})" if files else "an empty folder"
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
        pixels[i * size * size * 3 : (i + 1) * size * size * 3] = _decode(path, size)
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


def _decode(path: Path, size: int) -> bytes:
    """Return the pixels of an image, row by row, three bytes each."""
    from PIL import Image

    remedy = "Remove the file, or replace it with an 8-bit RGB image"
    try:
        with Image.open(path) as image:
            mode, rgb = image.mode, image.convert("RGB")
    # Pillow's decoders complain of broken files with almost any kind of error.
    except Exception as error:
        got = f"{type(error).__name__}: {error}".rstrip(".")
        raise RuntimeError(complaint(_OWNER, f"an image in {str(path)!r}", got, remedy)) from error
    if mode.startswith(("I", "F")):
        raise RuntimeError(complaint(_OWNER, f"8 bits a channel in {str(path)!r}", f"mode {mode}", remedy))
    if rgb.size != (size, size):
        side = min(rgb.size)
        left, top = (rgb.width - side) // 2, (rgb.height - side) // 2
        square = rgb.crop((left, top, left + side, top + side))
        rgb = square.resize((size, size), Image.Resampling.BICUBIC)
    return rgb.tobytes()
