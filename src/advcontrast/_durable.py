"""Files that are on the disk when the call returns, and are known to be the ones that were written."""

from __future__ import annotations

import hashlib
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

_CHUNK = 1 << 20
_BINARY = getattr(os, "O_BINARY", 0)  # Windows would else translate line ends


class _Sink:
    """A file open for writing that hashes what reaches it, and remembers why it failed.

    A serialiser in C++ may turn an error of the disk into one of its own; the original is kept in ``error``.
    """

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _BINARY, 0o666)
        self._pending = bytearray()
        self.digest, self.size = hashlib.sha256(), 0
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        self._pending += data
        if len(self._pending) >= _CHUNK:
            self.flush()
        return len(data)

    def flush(self) -> None:
        try:
            while self._pending:
                written = os.write(self._descriptor, self._pending)
                self.digest.update(self._pending[:written])
                self.size += written
                del self._pending[:written]
        except OSError as error:
            self.error = self.error or error
            raise

    def sync(self) -> None:
        """Wait until everything is on the disk."""
        self.flush()
        os.fsync(self._descriptor)

    def close(self) -> None:
        os.close(self._descriptor)


def write(path: Path, produce: Callable[[Any], Any]) -> tuple[int, str]:
    """Write a new file and wait until it is on the disk.

    Args:
        path: the file, which must not exist.
        produce: writes to the object that it is given, by its ``write`` method.

    Returns:
        Size and SHA-256 of what was written.

    Raises:
        OSError: the disk refused, even where ``produce`` raised something else because of it.
    """
    sink = _Sink(path)
    try:
        produce(sink)
        sink.sync()
    except Exception as error:
        if sink.error is None or isinstance(error, OSError):
            raise
        raise sink.error from error
    finally:
        sink.close()
    return sink.size, sink.digest.hexdigest()


def flush_folder(path: Path) -> None:
    """Wait until the names in a folder are on the disk, where the system can be asked to."""
    if os.name == "nt":
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256(file: IO[bytes]) -> str:
    """Return the SHA-256 of an open file, and leave it at its beginning."""
    file.seek(0)
    digest = hashlib.sha256()
    while chunk := file.read(_CHUNK):
        digest.update(chunk)
    file.seek(0)
    return digest.hexdigest()


@contextmanager
def only_process(path: Path) -> Iterator[str | None]:
    """Hold the lock file ``path`` inside the block.

    The system gives the lock back when the process ends, however it ends. Where it knows no such locks nothing is
    locked.

    Yields:
        ``None``, or the process that holds the lock instead of this one.
    """
    try:
        import fcntl
    except ImportError:
        yield None
        return
    with path.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            yield file.read().strip() or "another process"
            return
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        yield None
