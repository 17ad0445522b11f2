"""Search for the images below a folder."""

import errno
import os
from pathlib import Path

from .._checks import check_bool, check_choice, check_int, check_real, complaint
from .._deprecated import warn

SUFFIXES = (".bmp", ".jfif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
_RESOURCE_FORKS = "__MACOSX"  # a folder that macOS adds to archives


def check_settings(
    owner: str, size: object, unreadable: object, fraction: float, outside_links: object, tolerance: float | None
) -> float:
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

    Paths are relative to ``root``, and the folder ``""`` is ``root`` itself. They are sorted like those of
    torchvision's ``ImageFolder``: by the name of the top folder, then by the path of the folder, then by the name of
    the file. A broken link whose name has no suffix counts as a folder that cannot be listed, since it may be a class.

    Raises:
        FileNotFoundError: the folder does not exist; the message ends with ``remedy``.
        OSError: a folder cannot be listed, and ``skip`` is False.
        ValueError: a link leads out of ``root``, and ``outside_links`` is False; or a link leads to a folder that
            contains it, and ``skip`` is False.
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
                inner = [entry for entry in entries if not entry.name.startswith(".") and entry.name != _RESOURCE_FORKS]
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
