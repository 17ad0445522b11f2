"""A file with one tensor, which is either whole or does not count."""

from __future__ import annotations

import hashlib
import math
import os
import warnings
from pathlib import Path

import torch
from torch import Tensor

from .. import _atomic_io

_DIGITS = 64  # of a SHA-256 in hexadecimal


def read(path: Path, shape: tuple[int, ...]) -> Tensor | None:
    """Return the uint8 tensor of ``shape`` that :func:`write` left in ``path``, or ``None``; warn of any other file."""
    try:
        return _load(path, shape)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        warnings.warn(f"image_folder: {str(path)!r} is ignored and made anew ({reason}).", stacklevel=4)
        return None


def write(path: Path, tensor: Tensor) -> None:
    """Put ``tensor`` into ``path`` such that a reader, at any time, finds all of it or none; warn where that fails."""
    content = tensor.contiguous().numpy().data.cast("B")
    digest = hashlib.sha256(content).hexdigest().encode()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _atomic_io.replace(path, digest, content)
    except OSError as error:
        warnings.warn(_atomic_io.refusal("image_folder", f"to cache the images in {path}", error), stacklevel=4)


def _load(path: Path, shape: tuple[int, ...]) -> Tensor:
    size = math.prod(shape)
    with path.open("rb") as file:
        if os.fstat(file.fileno()).st_size != _DIGITS + size:  # before room is made for it
            raise ValueError("it holds something else")
        digest, content = file.read(_DIGITS), bytearray(file.read(size))
    if hashlib.sha256(content).hexdigest().encode() != digest:
        raise ValueError("its checksum is wrong")
    return torch.frombuffer(content, dtype=torch.uint8).view(shape)
