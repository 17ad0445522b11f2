"""Decoding of image files."""

import os
import stat
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Any

from .._checks import complaint

# Pillow selects a reader by the contents of a file. The reader for PostScript would start another program.
_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
_TIFF_BITS, _TIFF_KIND = 258, 339  # tags BitsPerSample and SampleFormat
_WITHOUT_WAITING = getattr(os, "O_NONBLOCK", 0)


class UnreadableImageError(RuntimeError):
    """Error for a file that cannot be used as an image."""


def decode(owner: str, path: str | Path, size: int) -> bytes:
    """Return the pixels of an image, row by row, as three bytes each.

    The image is rotated and mirrored according to its EXIF orientation and converted to RGB. An alpha channel is
    dropped, so that transparent pixels have the colour that the file stores for them. Colour profiles are not applied.
    If a file holds several images, the first one is decoded. The central square is resized to a side of ``size``.

    Raises:
        UnreadableImageError: the file is not a regular file or not a whole image, has more than 8 bits per channel, or
            more pixels than ``PIL.Image.MAX_IMAGE_PIXELS``.
    """
    from PIL import Image, ImageOps

    remedy = "Remove the file, or replace it with an 8-bit RGB image"
    try:
        with (
            # Opening a pipe would wait until another process writes to it.
            open(path, "rb", opener=lambda name, flags: os.open(name, flags | _WITHOUT_WAITING)) as file,
            warnings.catch_warnings(),
        ):
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise OSError("not a regular file")
            warnings.simplefilter("ignore")  # about metadata
            # The header holds the size, so that nothing is allocated for an image that is too large.
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(file, formats=_FORMATS) as image:
                channel = _channel(image)
                if channel is None:
                    rgb = image.convert("RGB")
                    with suppress(Exception):  # damaged metadata does not make the pixels unusable
                        ImageOps.exif_transpose(rgb, in_place=True)
    # Pillow's decoders raise almost any kind of error for broken files.
    except Exception as error:
        got = f"{type(error).__name__}: {error}".rstrip(".")
        if getattr(error, "errno", None) is not None:  # nothing is known about the contents
            remedy = "Check its permissions and the disk, or remove a link that leads nowhere"
        raise UnreadableImageError(complaint(owner, f"an image in {str(path)!r}", got, remedy)) from error
    if channel is not None:
        raise UnreadableImageError(complaint(owner, f"8 bits per channel in {str(path)!r}", channel, remedy))
    if rgb.size != (size, size):
        side = min(rgb.size)
        left, top = (rgb.width - side) // 2, (rgb.height - side) // 2
        square = rgb.crop((left, top, left + side, top + side))
        rgb = square.resize((size, size), Image.Resampling.BICUBIC)
    return rgb.tobytes()


def _channel(image: Any) -> str | None:
    """Describe the channels of a file if they are not unsigned numbers of at most 8 bits.

    Pillow reduces most files with more bits to 8 when it opens them, so its mode does not show it.
    """
    bits, largest = 8, 255
    if image.format == "PNG":
        bits = 16 if image.tile[0][3].endswith(";16B") else 8
    elif image.format == "TIFF":
        bits = max(image.tag_v2.get(_TIFF_BITS, (1,)))
        if set(image.tag_v2.get(_TIFF_KIND, (1,))) != {1}:
            return "signed or floating point numbers"
    elif image.format == "PPM" and isinstance(image.tile[0][3], tuple):
        largest = image.tile[0][3][-1]
    if bits > 8:
        return f"{bits} bits"
    if largest > 255:
        return f"values up to {largest}"
    return f"mode {image.mode}" if image.mode.startswith(("I", "F")) else None
