"""Evaluation of classifiers and encoders: accuracy, robustness, alarms, protocols and result cards."""

from .. import _deprecated
from .accuracy import Accuracy as Accuracy
from .accuracy import AutoAttackResult as AutoAttackResult
from .accuracy import CorruptionAccuracy as CorruptionAccuracy
from .accuracy import RobustCurve as RobustCurve
from .accuracy import accuracy as accuracy
from .accuracy import autoattack as autoattack
from .accuracy import corruption_accuracy as corruption_accuracy
from .accuracy import robust_accuracy as robust_accuracy
from .accuracy import robust_curve as robust_curve
from .cards import ResultCard as ResultCard
from .cards import compare_cards as compare_cards
from .cards import markdown_table as markdown_table
from .masking import Alarm as Alarm
from .masking import MaskingReport as MaskingReport
from .masking import catastrophic_overfitting as catastrophic_overfitting
from .masking import gradient_masking as gradient_masking
from .protocols import PROTOCOLS as PROTOCOLS
from .protocols import Protocol as Protocol
from .protocols import ProtocolResult as ProtocolResult
from .protocols import protocol as protocol
from .protocols import run_protocol as run_protocol
from .representation import LabelFreeRobustness as LabelFreeRobustness
from .representation import branch_gap as branch_gap
from .representation import label_free_robustness as label_free_robustness
from .uar import uar as uar

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

__getattr__ = _deprecated.names_of(__name__)
