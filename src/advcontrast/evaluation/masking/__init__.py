"""Checks for signs of gradient masking, which makes robust accuracy appear too high."""

from ... import _deprecated
from .attack_alarms import (
    Alarm,
    attack_not_converged,
    loss_beaten,
    loss_decreases_with_strength,
    unbounded_attack,
    weaker_attack_wins,
)
from .model_alarms import batch_dependence, probability_output, randomised_output, train_mode, zero_gradients
from .overfitting import Overfitting, catastrophic_overfitting
from .report import MaskingReport, gradient_masking

__all__ = [
    "Alarm",
    "MaskingReport",
    "Overfitting",
    "attack_not_converged",
    "batch_dependence",
    "catastrophic_overfitting",
    "gradient_masking",
    "loss_beaten",
    "loss_decreases_with_strength",
    "probability_output",
    "randomised_output",
    "train_mode",
    "unbounded_attack",
    "weaker_attack_wins",
    "zero_gradients",
]

_deprecated.serve_old_names(__name__)
