"""Errors of checkpoints."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..._atomic_io import refusal
from ..._checks import complaint

_OWNER = "Checkpoint"


class CheckpointError(RuntimeError):
    """Base class of the errors of checkpoints and their folders."""


class CheckpointWriteError(CheckpointError):
    """A file of a run could not be written. Earlier checkpoints are unchanged."""


class CheckpointCorruptError(CheckpointError):
    """A checkpoint is damaged, or was not written by this library."""


class CheckpointVersionError(CheckpointError):
    """A checkpoint was written by a later version of this library."""


class CheckpointMismatchError(CheckpointError):
    """A checkpoint belongs to another run: another model, optimizer, data set or setting."""


class CheckpointBusyError(CheckpointError):
    """Another process is writing to the folder."""


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Raise :class:`CheckpointWriteError` where the system refuses to write ``path`` inside the block."""
    try:
        yield
    except OSError as error:
        ending = "; earlier checkpoints are unchanged"
        raise CheckpointWriteError(refusal(_OWNER, f"to write {path}", error, ending)) from error


def unreadable(path: Path, error: OSError) -> CheckpointError:
    """Return the error for a file that the disk cannot read; its content may be undamaged."""
    return CheckpointError(refusal(_OWNER, f"to read {path}", error))


def corrupt(path: Path, got: str) -> CheckpointCorruptError:
    """Return the error of a checkpoint that is damaged."""
    remedy = "Delete that folder"
    return CheckpointCorruptError(complaint(_OWNER, f"a good checkpoint in {path}", got, remedy))
