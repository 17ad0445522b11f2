"""Folders of images as one tensor."""

import errno
import json
import os
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from .. import _atomic_io
from .._checks import check_bool, check_choice, check_int, check_path, check_real, complaint
from .._deprecated import warn
from .._digest import digest, raw
from .._progress import ProgressBar, check_progress
from .decoding import UnreadableImageError, decode
from .images import ImageSet

SUFFIXES = (".bmp", ".jfif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")

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
        max_unreadable_fraction: the largest share of the images that may be left out without an error, in [0, 1].
        outside_links: whether links may lead out of ``root``, which in an untrusted data set could be any file.
        progress: whether to show a bar, if tqdm is installed; ``None``: on terminals, for more than 1000 images.
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
    found, unusable = list_images(_OWNER, root, outside_links=outside_links, skip=unreadable == "skip", remedy=_REMEDY)
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
            content = raw(flat)
            try:
                file.parent.mkdir(parents=True, exist_ok=True)
                _atomic_io.replace(file, digest(content).encode(), content)
            except OSError as error:
                warnings.warn(_atomic_io.refusal(_OWNER, f"to cache the images in {file}", error), stacklevel=2)
    x, readable = flat[: -len(y)].view(len(y), 3, size, size), flat[-len(y) :].bool()
    images = ImageSet(x, y, tuple(classes))
    left_out = [*unusable, *(name for name, good in zip(names, readable.tolist(), strict=True) if not good)]
    if not left_out:
        return images
    _check_left_out(root, left_out, len(names) + len(unusable), images.y[readable], images.classes, most)
    return images.subset(readable.nonzero()[:, 0])


def check_settings(owner: str, size: Any, unreadable: Any, fraction: Any, outside_links: Any, tolerance: Any) -> float:
    """Check the arguments that :func:`image_folder` and :class:`ImageStream` share, and return the fraction."""
    if tolerance is not None:
        warn(f"{owner}(tolerance=)", f"{owner}(max_unreadable_fraction=)", stacklevel=3)
        fraction = tolerance
    check_int(owner, "size", size, low=1, remedy="Pass the side of the images in pixels")
    check_choice(owner, "unreadable", unreadable, ("raise", "skip"))
    remedy = "0.01 accepts one bad file in a hundred"
    check_real(owner, "max_unreadable_fraction", fraction, low=0, high=1, remedy=remedy)
    check_bool(owner, "outside_links", outside_links, remedy="True follows links to anywhere")
    return float(fraction)


def list_images(
    owner: str, root: Path, *, outside_links: bool, skip: bool, remedy: str
) -> tuple[dict[str, list[str]], list[str]]:
    """Return the paths of the images in each folder below ``root``, and of the folders that cannot be listed.

    Paths are relative to ``root``, which is the folder ``""``. They are sorted as in torchvision's ``ImageFolder``: by
    top folder, then by folder, then by file. A broken link without a suffix counts as a folder: it may be a class.
    """
    real = os.path.realpath(root)
    found: dict[str, list[str]] = {}
    unusable: list[str] = []
    # Each folder, with its real path and the real paths of the folders that contain it.
    waiting: list[tuple[str, tuple[str, ...]]] = [("", (real,))]
    while waiting:
        folder, places = waiting.pop()
        found[folder] = []
        try:
            with os.scandir(root / folder) as entries:  # distinguishes folders from files without a stat of each
                inner = [entry for entry in entries if not entry.name.startswith(".") and entry.name != "__MACOSX"]
        except OSError as error:
            if not folder and isinstance(error, (FileNotFoundError, NotADirectoryError)):
                got = "a file" if isinstance(error, NotADirectoryError) else "nothing there"
                raise FileNotFoundError(complaint(owner, f"a folder at {str(root)!r}", got, remedy)) from error
            if not skip or not folder:
                expected, advice = f"to list the folder {str(root / folder)!r}", "Check its permissions, and the disk"
                raise OSError(complaint(owner, expected, str(error), advice)) from error
            unusable.append(folder)
            if error.errno == errno.ELOOP:  # a link to itself is not a folder
                del found[folder]
            continue
        above = os.path.join(folder, "")  # noqa: PTH118 (keeps the slash; a Path for each of millions is slow)
        for entry in inner:
            path, is_image = above + entry.name, entry.name.lower().endswith(SUFFIXES)
            try:
                is_folder, is_link = entry.is_dir(), entry.is_symlink()
            except OSError:  # decoding the image, or listing the folder, raises it again
                is_folder, is_link = not is_image, True
            if is_link and not is_folder and "." not in entry.name:
                is_folder = not os.path.exists(entry.path)  # noqa: PTH110
            if not is_folder and not is_image:
                continue
            place = os.path.realpath(entry.path) if is_link else f"{places[-1]}{os.sep}{entry.name}"
            if is_link and not outside_links and not Path(place).is_relative_to(real):
                got = f"a link from {entry.path!r} to {place!r}"
                advice = "Copy what it leads to, or pass outside_links=True if you trust the folder"
                raise ValueError(complaint(owner, f"links to stay inside {real!r}", got, advice))
            if not is_folder:
                found[folder].append(path)
            elif place not in places:
                waiting.append((path, (*places, place)))
            elif skip:
                unusable.append(path)
            else:
                expected, got = f"links in {str(root)!r} without a circle", f"a circle at {entry.path!r}"
                raise ValueError(complaint(owner, expected, got, "Remove the link"))
    order = sorted(found, key=lambda folder: (folder.partition(os.sep)[0], folder))
    return {folder: sorted(found[folder]) for folder in order}, sorted(unusable)


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

    files: list[list[Any]] = [[name] for name in names]
    for file in files:
        with suppress(OSError):
            found = (root / file[0]).stat()
            file += [found.st_size, found.st_mtime_ns]
    settings = [_FORMAT, int(size), unreadable, Image.MAX_IMAGE_PIXELS, os.path.realpath(root)]
    return digest(json.dumps([*settings, files]))


def _read_cache(path: Path, size: int) -> Tensor | None:
    """Return the uint8 tensor ``[size]`` of a file of the cache, or ``None``; warn of any other file."""
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
        warnings.warn(f"{_OWNER}: {str(path)!r} is ignored and created again ({error}).", stacklevel=3)
        return None
    return flat


def _decode_all(root: Path, names: list[str], size: int, unreadable: str, progress: bool | None) -> tuple[Tensor, bool]:
    """Return the pixels, then whether each image could be read (uint8, flat), and whether they may be cached."""
    flat, lasting = torch.zeros(len(names) * (3 * size * size + 1), dtype=torch.uint8), True
    x, readable = flat[: -len(names)].view(len(names), 3, size, size), flat[-len(names) :]
    with ProgressBar(len(names), unit="image", shown=progress, title="decode") as bar:
        for i, name in enumerate(names):
            try:
                x[i], readable[i] = decode(_OWNER, root / name, size), True
            except UnreadableImageError as error:
                if unreadable == "raise":
                    raise
                # Errors of disk, permissions and memory may not recur, although sizes and times are the same.
                cause = error.__cause__
                lasting = lasting and not isinstance(cause, MemoryError) and getattr(cause, "errno", None) is None
            bar.update()
    return flat, lasting
