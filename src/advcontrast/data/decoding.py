"""From a file to pixels, and which files are taken for images."""

from __future__ import annotations

import os
import stat
import warnings
from pathlib import Path

from .._checks import complaint

SUFFIXES = (".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
# Pillow goes by the contents. One of its readers, for PostScript, would start another program.
_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
_WITHOUT_WAITING = getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)


class UnreadableImageError(RuntimeError):
    """A file that should be an image cannot be used as one."""


def decode(owner: str, path: str | Path, size: int) -> bytes:
    """Return the pixels of an image, row by row, three bytes each.

    Args:
        owner: who asks, for messages.
        path: of the image.
        size: side of the central square that is kept, in pixels.

    Raises:
        UnreadableImageError: the file is no regular file, no whole image, has more than 8 bits a channel, or more
            pixels than ``PIL.Image.MAX_IMAGE_PIXELS``.
    """
    from PIL import Image

    remedy = "Remove the file, or replace it with an 8-bit RGB image"
    try:
        with (
            # A pipe would be waited for until somebody writes to it.
            os.fdopen(os.open(path, os.O_RDONLY | _WITHOUT_WAITING), "rb") as file,
            warnings.catch_warnings(),
        ):
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise OSError("not a regular file")
            # The header tells the size, so that nothing is allocated for what is too large.
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(file, formats=_FORMATS) as image:
                mode, rgb = image.mode, image.convert("RGB")
    # Pillow's decoders complain of broken files with almost any kind of error.
    except Exception as error:
        got = f"{type(error).__name__}: {error}".rstrip(".")
        raise UnreadableImageError(complaint(owner, f"an image in {str(path)!r}", got, remedy)) from error
    if mode.startswith(("I", "F")):
        raise UnreadableImageError(complaint(owner, f"8 bits a channel in {str(path)!r}", f"mode {mode}", remedy))
    if rgb.size != (size, size):
        side = min(rgb.size)
        left, top = (rgb.width - side) // 2, (rgb.height - side) // 2
        square = rgb.crop((left, top, left + side, top + side))
        rgb = square.resize((size, size), Image.Resampling.BICUBIC)
    return rgb.tobytes()


def check_confined(owner: str, entry: os.DirEntry[str], root: Path | None) -> None:
    """Require an entry of a folder not to be a link that leads out of ``root``, a path without links, if there is one.

    Raises:
        ValueError: it does.
    """
    if root is None or not entry.is_symlink():
        return
    target = Path(os.path.realpath(entry.path))
    if not target.is_relative_to(root):
        remedy = "Copy what it leads to, or pass outside_links=True if you trust the folder"
        got = f"a link from {entry.path!r} to {str(target)!r}"
        raise ValueError(complaint(owner, f"nothing outside of {str(root)!r}", got, remedy))
