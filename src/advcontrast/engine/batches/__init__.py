"""Batches: the order of the samples, and where they are read from."""

from .plan import steps_per_epoch as steps_per_epoch
from .reader import Reader as Reader

__all__ = ["Reader", "steps_per_epoch"]
