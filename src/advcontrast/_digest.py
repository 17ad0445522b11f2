"""SHA-256 digests of tensors, strings, bytes and files."""

import ctypes
import hashlib
from typing import IO, Any

from torch import Tensor

_CHUNK = 1 << 20


def digest(*parts: Tensor | str | bytes) -> str:
    """Return the SHA-256 of all parts, in hexadecimal.

    Tensors are hashed with dtype and shape. Those on an accelerator are copied to the host one at a time.
    """
    summary = hashlib.sha256()
    for part in parts:
        if isinstance(part, Tensor):
            summary.update(f"{part.dtype} {list(part.shape)}".encode())
            summary.update(raw(part))
        else:
            summary.update(part.encode() if isinstance(part, str) else part)
    return summary.hexdigest()


def raw(tensor: Tensor) -> Any:
    """Return a bytes-like object with the values of a tensor, in row-major order."""
    plain = tensor.detach().resolve_conj().resolve_neg().cpu().contiguous()
    # Tensors have no buffer of their own without NumPy. The buffer keeps the tensor alive.
    buffer: Any = (ctypes.c_char * plain.nbytes).from_address(plain.data_ptr())
    buffer.owner = plain
    return buffer


def file_digest(file: IO[bytes]) -> str:
    """Return the SHA-256 of an open file, in hexadecimal; the file is left at its beginning."""
    file.seek(0)
    summary = hashlib.sha256()
    while chunk := file.read(_CHUNK):
        summary.update(chunk)
    file.seek(0)
    return summary.hexdigest()
