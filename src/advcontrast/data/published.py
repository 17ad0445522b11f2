"""Published files, taken out of their archive and read in a way that runs nothing that is in them."""

from __future__ import annotations

import gzip
import hashlib
import io
import pickle
import tarfile
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any, cast

from .._atomic_io import replace

_LARGEST = 1 << 28  # bytes that an archive may unpack to; those of CIFAR unpack to 186 MB
_RECONSTRUCT = {("numpy.core.multiarray", "_reconstruct"), ("numpy._core.multiarray", "_reconstruct")}


def unpack(archive: Path, folder: Path, wanted: Mapping[str, str]) -> None:
    """Take files out of a tar archive into a folder.

    Names are those that are wanted, and not those of the archive; all else in it is left there.

    Args:
        archive: a gzipped tar file.
        folder: what the archive unpacks to, made if it does not exist.
        wanted: MD5 of each file by its name in that folder.

    Raises:
        ValueError: the archive holds links, devices or paths that lead elsewhere, unpacks to too much, or its files
            have other checksums.
    """
    left = dict(wanted)
    with gzip.open(archive) as unzipped, tarfile.open(fileobj=cast(Any, _Limited(unzipped)), mode="r|") as members:
        for member in members:
            path = PurePosixPath(member.name)
            if path.is_absolute() or ".." in path.parts or not (member.isreg() or member.isdir()):
                raise ValueError(f"an archive with {member.name!r}, which is no plain file in a folder of its own")
            file = members.extractfile(member)
            if file is None or path.parent.name != folder.name or path.name not in left:
                continue
            content = file.read()
            if _md5(content) != left.pop(path.name):
                raise ValueError(f"an archive in which {member.name!r} has another checksum")
            folder.mkdir(parents=True, exist_ok=True)
            replace(folder / path.name, content)
    if left:
        raise ValueError(f"an archive without {', '.join(left)}")


def read(path: Path, md5: str) -> dict[str, Any]:
    """Return what a pickle file holds, if it holds arrays, numbers, strings and lists and dicts of them.

    Raises:
        ValueError: it has another checksum, or holds anything else.
    """
    content = path.read_bytes()
    if _md5(content) != md5:
        raise ValueError(f"another checksum of {path.name}")
    try:
        entries = _Plain(io.BytesIO(content), encoding="latin1").load()
    # Of foreign bytes the parser and numpy may complain in any way.
    except Exception as error:
        raise ValueError(f"{path.name} with something else than arrays: {error}") from error
    if not isinstance(entries, dict):
        raise ValueError(f"{path.name} without entries")
    return entries


class _Plain(pickle.Unpickler):
    """A parser that knows the three names that an array is made of, and no other.

    A checksum protects from a foreign file, and this from a foreign file with the same checksum: MD5 is what was
    published, and was broken since.
    """

    def find_class(self, module: str, name: str) -> Any:
        import numpy as np

        if (module, name) in (("numpy", "ndarray"), ("numpy", "dtype")):
            return getattr(np, name)
        if (module, name) in _RECONSTRUCT:
            return np.empty(0).__reduce__()[0]
        raise pickle.UnpicklingError(f"it calls {module}.{name}")


class _Limited:
    """A file that ends with an error where it has gone on for too long."""

    def __init__(self, file: gzip.GzipFile) -> None:
        self._file, self._left = file, _LARGEST

    def read(self, size: int) -> bytes:
        content = self._file.read(size)
        self._left -= len(content)
        if self._left < 0:
            raise ValueError(f"an archive that unpacks to more than {_LARGEST} bytes")
        return content


def _md5(content: bytes) -> str:
    return hashlib.md5(content, usedforsecurity=False).hexdigest()
