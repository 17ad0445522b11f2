"""A file with one tensor, which is either whole or does not count."""

from __future__ import annotations

import hashlib
import io
import os
import threading
import warnings
from pathlib import Path

import torch
from torch import Tensor

from .. import _durable

_DIGITS = 64  # of a SHA-256 in hexadecimal


def read(path: Path, shape: tuple[int, ...]) -> Tensor | None:
    """Return the uint8 tensor of ``shape`` that :func:`write` left in ``path``, or ``None``; warn of any other file."""
    try:
        return _load(path, shape)
    except FileNotFoundError:
        return None
    # A checksum only protects from accidents, and of foreign bytes torch.load may complain in any way.
    except Exception as error:
        reason = str(error).partition("\n")[0]
        warnings.warn(f"image_folder: {str(path)!r} is ignored and made anew ({reason}).", stacklevel=3)
        return None


def write(path: Path, tensor: Tensor) -> None:
    """Put ``tensor`` into ``path`` such that a reader, at any time, finds all of it or none; warn where that fails."""
    buffer = io.BytesIO()
    torch.save(tensor, buffer)
    content = buffer.getvalue()
    digest = hashlib.sha256(content).hexdigest().encode()
    partial = path.with_name(f".writing-{os.getpid()}-{threading.get_ident()}-{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.unlink(missing_ok=True)
        try:
            _durable.write(partial, lambda file: file.write(digest + content))
            partial.replace(path)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
        _durable.flush_folder(path.parent)
    except OSError as error:
        warnings.warn(f"image_folder: the images were not cached ({error}).", stacklevel=3)


def _load(path: Path, shape: tuple[int, ...]) -> Tensor:
    with path.open("rb") as file:
        digest, content = file.read(_DIGITS), file.read()
    if hashlib.sha256(content).hexdigest().encode() != digest:
        raise ValueError("its checksum is wrong")
    tensor = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    if not isinstance(tensor, Tensor) or tensor.dtype != torch.uint8 or tensor.shape != shape:
        raise ValueError("it holds something else")
    return tensor
