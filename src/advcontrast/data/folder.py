"""Folders of images as one tensor."""

import json
import os
import warnings
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from .. import _atomic_io
from .._checks import check_path, complaint
from .._digest import digest, raw
from .._progress import ProgressBar, check_progress
from .decoding import UnreadableImageError, decode
from .images import ImageSet
from .listing import check_settings, list_images

_OWNER = "image_folder"
_FORMAT = 4  # increase it when decoding changes
_MANY = 1000  # images for which the progress bar is shown by default
_NAMED = 10  # files that a message lists
_DIGITS = 64  # of a SHA-256 in hexadecimal, with which a file of the cache begins
_REMEDY = "Put the images into root/<class>/"
_SPLITS = {"test", "testing", "train", "training", "val", "valid", "validation"}
_EACH_CLASS = "a readable image of each class"


def image_folder(
    root: str | Path,
    *,
    size: int = 32,
    cache: str | Path | None = None,
    unreadable: Literal["raise", "skip"] = "raise",
    max_unreadable_fraction: float = 0.01,
    outside_links: bool = False,
    progress: bool | None = None,
    tolerance: float | None = None,
) -> ImageSet:
    """Load the images in and below the folders ``root/<class>`` as squares of one size, on the CPU.

    An image is rotated by its EXIF orientation, converted to RGB, cropped to its central square, and resized by
    antialiased bicubic interpolation unless it already has the size. An alpha channel is dropped: transparent pixels
    have the colour that the file stores for them. Classes, labels and files have the order of torchvision's
    ``ImageFolder``. Only files with the suffixes bmp, jfif, jpeg, jpg, pgm, png, ppm, tif, tiff and webp are read, in
    upper or lower case. Hidden files and folders, and those called ``__MACOSX``, are left out.

    Decoding is slow. The folder ``cache`` stores the pixels under a key of the names, sizes and modification times of
    all files. If it is damaged or cannot be written, the images are decoded with a warning. Processes may share it.

    Args:
        root: folder with a folder for each class.
        size: side of the images in pixels, at least 1.
        cache: folder for the decoded images, made if it does not exist; ``None`` decodes on every call.
        unreadable: ``"raise"`` an error for a file that is broken, empty, missing, not an image or above 8 bits per
            channel, a folder that cannot be listed, or a link that cannot be followed; or ``"skip"`` it with a warning.
        max_unreadable_fraction: the largest share of the images that may be left out, in [0, 1]; beyond it an error is
            raised.
        outside_links: whether links may lead out of ``root``, which in an untrusted data set could be any file.
        progress: whether to show a progress bar, where tqdm is installed; ``None`` shows it on terminals only, for more
            than 1000 images.
        tolerance: old name of ``max_unreadable_fraction``, kept for one release.

    Raises:
        FileNotFoundError: the folder does not exist, or holds no class, or a class without images.
        OSError: a folder cannot be listed, and ``unreadable`` is ``"raise"``.
        UnreadableImageError: an image is unreadable, or claims more pixels than ``PIL.Image.MAX_IMAGE_PIXELS``; with
            ``"skip"``, more images than that are unreadable, or all of a class.
        ValueError: an argument out of range, a link out of the folder or in a circle, or only folders with the
            names of splits, such as ``train`` and ``test``.
        TypeError: an argument has the wrong type.
    """
    most = check_settings(_OWNER, size, unreadable, max_unreadable_fraction, outside_links, tolerance)
    check_progress(_OWNER, progress)
    root = check_path(_OWNER, "root", root, remedy="Pass the folder that holds a folder for each class")
    if cache is not None:
        cache = check_path(_OWNER, "cache", cache, remedy="Pass a folder, or None for no cache")
    skip = unreadable == "skip"
    found, unusable = list_images(_OWNER, root, outside_links=outside_links, skip=skip, remedy=_REMEDY)
    classes = _by_class(root, found, unusable)
    names = [name for own in classes.values() for name in own]
    y = torch.tensor([label for label, own in enumerate(classes.values()) for _ in own])
    if progress is None and len(names) <= _MANY:
        progress = False
    file = None if cache is None else cache / f"{_key(root, names, size, unreadable)}.pixels"
    flat = None if file is None else _read_cache(file, len(names) * (3 * size * size + 1))
    if flat is None:
        flat, lasting = _decode_all(root, names, size, unreadable, progress)
        if file is not None and lasting:
            _write_cache(file, flat)
    x, readable = flat[: -len(y)].view(len(y), 3, size, size), flat[-len(y) :].bool()
    images = ImageSet(x, y, tuple(classes))
    left_out = [*unusable, *(name for name, good in zip(names, readable.tolist(), strict=True) if not good)]
    if not left_out:
        return images
    _check_left_out(root, left_out, len(names) + len(unusable), images.y[readable], images.classes, most)
    return images.subset(readable.nonzero()[:, 0])


def _by_class(root: Path, found: dict[str, list[str]], unusable: list[str]) -> dict[str, list[str]]:
    """Return the images of each class."""
    classes: dict[str, list[str]] = {}
    for folder, names in found.items():
        if folder:
            classes.setdefault(Path(folder).parts[0], []).extend(names)
    if not classes:
        remedy = f"{_REMEDY}, or read them without labels by ImageStream(root)"
        raise FileNotFoundError(complaint(_OWNER, f"a folder for each class in {str(root)!r}", "none", remedy))
    if {name.lower() for name in classes} <= _SPLITS:
        got = f"those of splits: {', '.join(map(repr, classes))}"
        remedy = "Pass one of them, which holds a folder for each class"
        raise ValueError(complaint(_OWNER, f"folders of classes in {str(root)!r}", got, remedy))
    for name in [name for name, own in classes.items() if not own]:
        unlisted = [folder for folder in unusable if Path(folder).parts[0] == name]
        if unlisted:
            got = f"folders in {str(root)!r} that cannot be listed: {', '.join(map(repr, unlisted))}"
            raise UnreadableImageError(complaint(_OWNER, _EACH_CLASS, got, "Check their permissions, and the disk"))
        others = [file for _, _, files in os.walk(root / name) for file in files if not file.startswith(".")]
        kinds = ", ".join(sorted({Path(file).suffix or "no suffix" for file in others}))
        got = f"{len(others)} files of other kinds ({kinds})" if others else "no files"
        remedy = "Put images into it, or move it elsewhere"
        raise FileNotFoundError(complaint(_OWNER, f"images in {str(root / name)!r}", got, remedy))
    return classes


def _check_left_out(root: Path, left_out: list[str], of: int, y: Tensor, classes: tuple[str, ...], most: float) -> None:
    """Warn of the images that are left out; require few of them, and each class to keep an image."""
    named = ", ".join(map(repr, left_out[:_NAMED]))
    if len(left_out) > _NAMED:
        named += f" and {len(left_out) - _NAMED} more"
    got = f"{len(left_out)} of {of} images in {str(root)!r} unreadable: {named}"
    if len(left_out) > most * of + 1e-9:  # 0.29 * 100 is 28.999999999999996
        expected = f"at most {most:.1%} of the images left out"
        remedy = "Check the folder, or raise max_unreadable_fraction"
        raise UnreadableImageError(complaint(_OWNER, expected, got, remedy))
    if not y.bincount(minlength=len(classes)).all():
        remedy = "Remove the folder of that class, or repair its images"
        raise UnreadableImageError(complaint(_OWNER, _EACH_CLASS, got, remedy))
    warnings.warn(f"{_OWNER}: {got}. They are left out.", UserWarning, stacklevel=3)


def _key(root: Path, names: list[str], size: int, unreadable: str) -> str:
    """Return the cache key of these files, which depends on their sizes and modification times."""
    from PIL import Image

    def stamp(path: Path) -> tuple[int, ...]:
        try:
            found = path.stat()
        except OSError:
            return ()
        return found.st_size, found.st_mtime_ns

    files = [(name, *stamp(root / name)) for name in names]
    settings = [_FORMAT, int(size), unreadable, Image.MAX_IMAGE_PIXELS, os.path.realpath(root)]
    return digest(json.dumps([*settings, files]))


def _read_cache(path: Path, size: int) -> Tensor | None:
    """Return the uint8 tensor ``[size]`` that :func:`_write_cache` wrote, or ``None``; warn of any other file."""
    try:
        with path.open("rb") as file:
            if os.fstat(file.fileno()).st_size != _DIGITS + size:  # before memory is allocated for it
                raise ValueError("it holds something else")
            checksum, flat = file.read(_DIGITS), torch.frombuffer(bytearray(file.read(size)), dtype=torch.uint8)
        if digest(raw(flat)).encode() != checksum:
            raise ValueError("its checksum is wrong")
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        warnings.warn(f"{_OWNER}: {str(path)!r} is ignored and created again ({reason}).", stacklevel=3)
        return None
    return flat


def _write_cache(path: Path, flat: Tensor) -> None:
    """Write the checksum and the values of ``flat`` atomically; warn where that fails."""
    content = raw(flat)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _atomic_io.replace(path, digest(content).encode(), content)
    except OSError as error:
        warnings.warn(_atomic_io.refusal(_OWNER, f"to cache the images in {path}", error), stacklevel=3)


def _decode_all(root: Path, names: list[str], size: int, unreadable: str, progress: bool | None) -> tuple[Tensor, bool]:
    """Return the pixels, then whether each image could be read (uint8, flat), and whether they may be cached."""
    pixels, readable, lasting = bytearray(len(names) * size * size * 3), bytearray(len(names)), True
    with ProgressBar(len(names), unit="image", shown=progress, title="decode") as bar:
        for i, name in enumerate(names):
            try:
                pixels[i * size * size * 3 : (i + 1) * size * size * 3] = decode(_OWNER, root / name, size)
            except UnreadableImageError as error:
                if unreadable == "raise":
                    raise
                # Errors of disk, permissions and memory may not recur, although sizes and times are the same.
                cause = error.__cause__
                lasting = lasting and not isinstance(cause, MemoryError) and getattr(cause, "errno", None) is None
            else:
                readable[i] = True
            bar.update()
    flat = torch.empty(len(pixels) + len(readable), dtype=torch.uint8)
    rows = torch.frombuffer(pixels, dtype=torch.uint8).view(len(names), size, size, 3)
    flat[: len(pixels)].view(len(names), 3, size, size).copy_(rows.permute(0, 3, 1, 2))
    flat[len(pixels) :] = torch.frombuffer(readable, dtype=torch.uint8)
    return flat, lasting
