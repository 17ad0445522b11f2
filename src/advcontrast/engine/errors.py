"""What can be wrong with a checkpoint."""

from __future__ import annotations

from pathlib import Path

from .._checks import complaint

_OWNER = "Checkpoint"


class CheckpointError(RuntimeError):
    """Something is wrong with a checkpoint, or with its folder."""


class CheckpointWriteError(CheckpointError):
    """A checkpoint could not be written. Those written earlier are untouched."""


class CheckpointCorruptError(CheckpointError):
    """A checkpoint is damaged, or was not written by this library."""


class CheckpointVersionError(CheckpointError):
    """A checkpoint was written by a later version of this library."""


class CheckpointMismatchError(CheckpointError):
    """A checkpoint belongs to another run: another model, optimizer, data set or setting."""


class CheckpointBusyError(CheckpointError):
    """Another process is writing to the folder."""


def unwritable(path: Path, error: OSError) -> CheckpointWriteError:
    """Return the error of a disk that cannot be written to."""
    remedy = "Make room or choose another folder; earlier checkpoints are untouched"
    got = f"{error.strerror or error} (errno {error.errno})"
    return CheckpointWriteError(complaint(_OWNER, f"to write {path}", got, remedy))


def unreadable(path: Path, error: OSError) -> CheckpointError:
    """Return the error of a disk that cannot be read, which says nothing about what is on it."""
    got, remedy = f"{error.strerror or error} (errno {error.errno})", "Try again, or repair the disk"
    return CheckpointError(complaint(_OWNER, f"to read {path}", got, remedy))


def corrupt(path: Path, got: str) -> CheckpointCorruptError:
    """Return the error of a checkpoint that is damaged."""
    remedy = "Delete that folder"
    return CheckpointCorruptError(complaint(_OWNER, f"a good checkpoint in {path}", got, remedy))
