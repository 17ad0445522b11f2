"""Batches: the order of the samples, and the sources that they are read from."""

from .plan import steps_per_epoch as steps_per_epoch
from .reader import DataReader as DataReader

__all__ = ["DataReader", "steps_per_epoch"]
