"""Train a learner, and survive everything that can happen to a run."""

from .checkpoint import Checkpoint as Checkpoint
from .checkpoint import CheckpointBusyError as CheckpointBusyError
from .checkpoint import CheckpointCorruptError as CheckpointCorruptError
from .checkpoint import CheckpointError as CheckpointError
from .checkpoint import CheckpointMismatchError as CheckpointMismatchError
from .checkpoint import CheckpointVersionError as CheckpointVersionError
from .checkpoint import CheckpointWriteError as CheckpointWriteError
from .ema import EMA as EMA
from .fit import fit as fit
from .lars import LARS as LARS
from .sampling import steps_per_epoch as steps_per_epoch
from .schedules import Constant as Constant
from .schedules import MultiStep as MultiStep
from .schedules import WarmupCosine as WarmupCosine

__all__ = [
    "EMA",
    "LARS",
    "Checkpoint",
    "CheckpointBusyError",
    "CheckpointCorruptError",
    "CheckpointError",
    "CheckpointMismatchError",
    "CheckpointVersionError",
    "CheckpointWriteError",
    "Constant",
    "MultiStep",
    "WarmupCosine",
    "fit",
    "steps_per_epoch",
]
