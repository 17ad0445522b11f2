"""Accuracy of classifiers: clean, under attack, under AutoAttack, under corruptions, and along a setting."""

from .autoattack import AutoAttackResult, autoattack
from .corruptions import CorruptionAccuracy, corrupted, corruption_accuracy
from .curves import RobustCurve, robust_curve
from .measure import Accuracy, accuracy, robust_accuracy

__all__ = [
    "Accuracy",
    "AutoAttackResult",
    "CorruptionAccuracy",
    "RobustCurve",
    "accuracy",
    "autoattack",
    "corrupted",
    "corruption_accuracy",
    "robust_accuracy",
    "robust_curve",
]
