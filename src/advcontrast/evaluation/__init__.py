"""Evaluation of classifiers and encoders: accuracy, robustness, alarms, protocols and result cards."""

from .. import _deprecated
from .accuracy import (
    Accuracy,
    AutoAttackResult,
    CorruptionAccuracy,
    RobustCurve,
    accuracy,
    autoattack,
    corruption_accuracy,
    robust_accuracy,
    robust_curve,
)
from .cards import ResultCard, compare_cards, markdown_table
from .masking import Alarm, MaskingReport, catastrophic_overfitting, gradient_masking
from .protocols import PROTOCOLS, Protocol, ProtocolResult, protocol, run_protocol
from .representation import LabelFreeRobustness, branch_gap, label_free_robustness
from .uar import uar

__all__ = [
    "PROTOCOLS",
    "Accuracy",
    "Alarm",
    "AutoAttackResult",
    "CorruptionAccuracy",
    "LabelFreeRobustness",
    "MaskingReport",
    "Protocol",
    "ProtocolResult",
    "ResultCard",
    "RobustCurve",
    "accuracy",
    "autoattack",
    "branch_gap",
    "catastrophic_overfitting",
    "compare_cards",
    "corruption_accuracy",
    "gradient_masking",
    "label_free_robustness",
    "markdown_table",
    "protocol",
    "robust_accuracy",
    "robust_curve",
    "run_protocol",
    "uar",
]

_deprecated.serve_old_names(__name__)
