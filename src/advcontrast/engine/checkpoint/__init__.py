"""Checkpoints: folders that are written atomically, verified before they are read, and removed only by a newer one."""

from .errors import CheckpointBusyError as CheckpointBusyError
from .errors import CheckpointCorruptError as CheckpointCorruptError
from .errors import CheckpointError as CheckpointError
from .errors import CheckpointMismatchError as CheckpointMismatchError
from .errors import CheckpointVersionError as CheckpointVersionError
from .errors import CheckpointWriteError as CheckpointWriteError
from .protocol import Checkpoint as Checkpoint

__all__ = [
    "Checkpoint",
    "CheckpointBusyError",
    "CheckpointCorruptError",
    "CheckpointError",
    "CheckpointMismatchError",
    "CheckpointVersionError",
    "CheckpointWriteError",
]
