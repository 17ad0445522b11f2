"""Accuracy of classifiers: clean, under attack, under AutoAttack, under corruptions, and as a curve."""

from .autoattack import AutoAttackResult as AutoAttackResult
from .autoattack import autoattack as autoattack
from .corruptions import CorruptionAccuracy as CorruptionAccuracy
from .corruptions import corrupted as corrupted
from .corruptions import corruption_accuracy as corruption_accuracy
from .curves import RobustCurve as RobustCurve
from .curves import robust_curve as robust_curve
from .measure import Accuracy as Accuracy
from .measure import accuracy as accuracy
from .measure import robust_accuracy as robust_accuracy

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
