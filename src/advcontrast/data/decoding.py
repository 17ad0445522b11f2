"""Decoding of image files."""

import os
import stat
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .._checks import complaint

# Pillow selects a reader by the contents of a file. The reader for PostScript would start another program.
_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
_TIFF_BITS, _TIFF_KIND = 258, 339  # tags BitsPerSample and SampleFormat
_WITHOUT_WAITING = getattr(os, "O_NONBLOCK", 0)


class UnreadableImageError(RuntimeError):
    """Error for a file that cannot be used as an image."""


def decode(owner: str, path: str | Path, size: int) -> Tensor:
    """Return the first image of a file as :func:`image_folder` describes it, uint8 ``[3, size, size]``."""
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
    side = min(rgb.size)
    left, top = (rgb.width - side) // 2, (rgb.height - side) // 2
    rgb = rgb.crop((left, top, left + side, top + side)).resize((size, size), Image.Resampling.BICUBIC)
    pixels = torch.frombuffer(bytearray(rgb.tobytes()), dtype=torch.uint8)
    return pixels.view(size, size, 3).permute(2, 0, 1).contiguous()


def _channel(image: Any) -> str | None:
    """Describe channels that are not unsigned numbers of at most 8 bits, to which Pillow reduces most of them."""
    bits = 8
    if image.format == "PNG" and image.tile[0][3].endswith(";16B"):
        bits = 16
    elif image.format == "TIFF":
        bits = max(image.tag_v2.get(_TIFF_BITS, (1,)))
        if set(image.tag_v2.get(_TIFF_KIND, (1,))) != {1}:
            return "signed or floating point numbers"
    elif image.format == "PPM" and isinstance(image.tile[0][3], tuple):
        bits = image.tile[0][3][-1].bit_length()  # of the largest value
    if bits > 8:
        return f"{bits} bits"
    return f"mode {image.mode}" if image.mode.startswith(("I", "F")) else None
