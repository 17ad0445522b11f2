"""The training loop, its checkpoints and the batches that it reads."""

from .. import _deprecated
from .batches import DataReader as DataReader
from .batches import steps_per_epoch as steps_per_epoch
from .checkpoint import Checkpoint as Checkpoint
from .checkpoint import CheckpointBusyError as CheckpointBusyError
from .checkpoint import CheckpointCorruptError as CheckpointCorruptError
from .checkpoint import CheckpointError as CheckpointError
from .checkpoint import CheckpointMismatchError as CheckpointMismatchError
from .checkpoint import CheckpointVersionError as CheckpointVersionError
from .checkpoint import CheckpointWriteError as CheckpointWriteError
from .cost import forward_equivalents as forward_equivalents
from .fit import Learner as Learner
from .fit import fit as fit

__all__ = [
    "Checkpoint",
    "CheckpointBusyError",
    "CheckpointCorruptError",
    "CheckpointError",
    "CheckpointMismatchError",
    "CheckpointVersionError",
    "CheckpointWriteError",
    "DataReader",
    "Learner",
    "fit",
    "forward_equivalents",
    "steps_per_epoch",
]

_deprecated.serve_old_names(__name__)
