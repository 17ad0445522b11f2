"""Optimizers, averages of weights, and learning rate schedules for large batches."""

from .ema import EMA as EMA
from .lars import LARS as LARS
from .schedules import MultiStep as MultiStep
from .schedules import WarmupCosine as WarmupCosine

__all__ = ["EMA", "LARS", "MultiStep", "WarmupCosine"]
