"""Atomic file writes that are flushed to the disk, and file locks."""

import errno
import hashlib
import os
import secrets
import socket
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import IO, Any

from ._checks import complaint

_CHUNK = 1 << 20
_BINARY = getattr(os, "O_BINARY", 0)  # otherwise Windows translates line endings
_NO_LINK = getattr(os, "O_NOFOLLOW", 0)
# Raised by network and FUSE file systems that cannot lock or flush.
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL}
_NO_FLUSH = {errno.EINVAL, errno.EBADF, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EACCES, errno.EPERM}
_REMEDIES = {
    "Make room, or choose another folder": (errno.ENOSPC, errno.EDQUOT),
    "Raise the limit on the size of a file (ulimit -f), or choose another folder": (errno.EFBIG,),
    "Change the permissions, or choose another folder": (errno.EACCES, errno.EPERM),
    "Mount the disk for writing, or choose another folder": (errno.EROFS,),
    "Choose a shorter name": (errno.ENAMETOOLONG,),
    "Choose another folder; a file or a link is in the way": (errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ELOOP),
    "Close files, or raise the limit on open files (ulimit -n)": (errno.EMFILE, errno.ENFILE),
    "Free some memory": (errno.ENOMEM,),
}
_locks: set[IO[bytes]] = set()  # held by this process


def refusal(owner: str, expected: str, error: OSError, ending: str = "") -> str:
    """Return the message for an ``OSError``, with a remedy chosen by its errno."""
    fitting = [remedy for remedy, numbers in _REMEDIES.items() if error.errno in numbers]
    remedy = fitting[0] if fitting else "Check the disk and try again, or choose another folder"
    return complaint(owner, expected, _reason(error), remedy + ending)


def _reason(error: OSError) -> str:
    return f"{error.strerror or error} (errno {error.errno})"


@contextmanager
def writing(owner: str, path: Path) -> Iterator[None]:
    """Reword an ``OSError`` from the block: add the path and a remedy."""
    try:
        yield
    except OSError as error:
        if error.errno is None:  # reworded already
            raise
        reworded = type(error)(refusal(owner, f"to write {path}", error))
        reworded.errno = error.errno
        raise reworded from error


@cache
def _warn_once(text: str) -> None:
    warnings.warn(text, UserWarning, stacklevel=2)


class _Sink:
    """New file that hashes its content and keeps the first error of the disk, which torch.save may replace."""

    def __init__(self, path: Path) -> None:
        self.descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _BINARY, 0o666)
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
                written = os.write(self.descriptor, self._pending)
                self.digest.update(self._pending[:written])
                self.size += written
                del self._pending[:written]
        except OSError as error:
            self.error = self.error or error
            raise

    def close(self) -> None:
        os.close(self.descriptor)


def write(path: Path, produce: Callable[[Any], Any]) -> tuple[int, str]:
    """Write a new file, wait until it is on the disk, and return its size and SHA-256.

    ``path`` must not exist, not even as a link. ``produce`` calls the ``write`` method of its argument.

    Raises:
        OSError: the disk failed, even if ``produce`` raised another error because of it.
    """
    sink = _Sink(path)
    try:
        produce(sink)
        sink.flush()
        with flushing("files"):
            os.fsync(sink.descriptor)
    except Exception as error:
        if sink.error is None or isinstance(error, OSError):
            raise
        raise sink.error from error
    finally:
        sink.close()
    return sink.size, sink.digest.hexdigest()


def replace(path: Path, *parts: bytes | memoryview) -> None:
    """Write a file atomically: afterwards it holds all parts, or its content is unchanged and ``OSError`` is raised."""
    draft = path.with_name(f".{secrets.token_hex(8)}.partial")  # unpredictable: it cannot be created first
    try:
        write(draft, lambda file: [file.write(part) for part in parts])
        draft.replace(path)
    except BaseException:
        with suppress(OSError):
            draft.unlink(missing_ok=True)
        raise
    flush_folder(path.parent)


def flush_folder(path: Path) -> None:
    """Flush the entries of a folder to the disk; warn once if the file system does not support it."""
    if os.name == "nt":
        return
    with flushing("a folder"):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextmanager
def flushing(what: str) -> Iterator[None]:
    """Warn once if the file system does not support the flush in the block."""
    try:
        yield
    except OSError as error:
        if error.errno not in _NO_FLUSH:
            raise
        remedy = "Files are written as usual, but a power failure may lose the latest ones"
        _warn_once(complaint("advcontrast", f"a disk that can flush {what}", _reason(error), remedy))


@contextmanager
def only_process(path: Path) -> Iterator[Callable[[], bool]]:
    """Lock the file ``path`` inside the block; yield a function that returns whether ``path`` is still that file.

    The system releases the lock when the process ends for any reason, even if processes that it has forked are still
    running. On a file system without locks nothing is locked, and a warning is issued.

    Raises:
        BlockingIOError: another process holds the lock; the message is its name.
        OSError: the file cannot be opened or written.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | _NO_LINK | _BINARY, 0o666)
    with os.fdopen(descriptor, "rb+", buffering=0) as file:
        _locks.add(file)
        try:
            _lock(file, path)
            file.truncate(0)
            file.write(f"process {os.getpid()} on {socket.gethostname()}".encode())
            yield lambda: not file.closed and _is_at(file, path)
        finally:
            _locks.discard(file)


def _lock(file: IO[bytes], path: Path) -> None:
    try:
        import fcntl
    except ImportError:
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise BlockingIOError(file.read(1000).decode(errors="replace").strip() or "another process") from None
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        remedy = "Make sure that only one run at a time writes to this folder"
        _warn_once(complaint("advcontrast", f"a disk with locks at {path.parent}", _reason(error), remedy))


def _is_at(file: IO[bytes], path: Path) -> bool:
    with suppress(FileNotFoundError, NotADirectoryError):
        if os.path.samestat(os.fstat(file.fileno()), path.lstat()):
            with suppress(OSError):
                os.utime(path)  # some clusters delete files that were not touched for weeks
            return True
    return False


def _forget_locks() -> None:
    """Close the lock files in a forked child: a lock lasts as long as any process has its file open."""
    for file in _locks:
        file.close()
    _locks.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_locks)
