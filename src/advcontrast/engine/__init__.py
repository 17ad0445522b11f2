"""Train a learner, and survive everything that can happen to a run."""

from .checkpoint import Checkpoint as Checkpoint
from .cost import forward_equivalents as forward_equivalents
from .ema import EMA as EMA
from .errors import CheckpointBusyError as CheckpointBusyError
from .errors import CheckpointCorruptError as CheckpointCorruptError
from .errors import CheckpointError as CheckpointError
from .errors import CheckpointMismatchError as CheckpointMismatchError
from .errors import CheckpointVersionError as CheckpointVersionError
from .errors import CheckpointWriteError as CheckpointWriteError
from .fit import fit as fit
from .lars import LARS as LARS
from .reader import Reader as Reader
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
    "Reader",
    "WarmupCosine",
    "fit",
    "forward_equivalents",
    "steps_per_epoch",
]
