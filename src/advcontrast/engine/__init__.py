"""Train a learner, and survive everything that can happen to a run."""

from .. import _deprecated
from .checkpoint import Checkpoint as Checkpoint
from .cost import forward_equivalents as forward_equivalents
from .errors import CheckpointBusyError as CheckpointBusyError
from .errors import CheckpointCorruptError as CheckpointCorruptError
from .errors import CheckpointError as CheckpointError
from .errors import CheckpointMismatchError as CheckpointMismatchError
from .errors import CheckpointVersionError as CheckpointVersionError
from .errors import CheckpointWriteError as CheckpointWriteError
from .fit import fit as fit
from .reader import Reader as Reader
from .sampling import steps_per_epoch as steps_per_epoch

__all__ = [
    "Checkpoint",
    "CheckpointBusyError",
    "CheckpointCorruptError",
    "CheckpointError",
    "CheckpointMismatchError",
    "CheckpointVersionError",
    "CheckpointWriteError",
    "Reader",
    "fit",
    "forward_equivalents",
    "steps_per_epoch",
]

__getattr__ = _deprecated.names_of(__name__)
