"""Evaluation: how often a classifier is right, how far an encoder can be trusted, and what to write down of it."""

from ._card_fields import AlarmRecord as AlarmRecord
from ._card_fields import CurveRecord as CurveRecord
from .accuracy import Accuracy as Accuracy
from .accuracy import accuracy as accuracy
from .accuracy import robust_accuracy as robust_accuracy
from .alarms import Alarm as Alarm
from .alarms import falling_loss as falling_loss
from .alarms import incomplete_search as incomplete_search
from .alarms import loss_beaten as loss_beaten
from .alarms import unbounded_attack as unbounded_attack
from .alarms import white_box_beaten as white_box_beaten
from .autoattack import AutoAttackResult as AutoAttackResult
from .autoattack import autoattack as autoattack
from .branch_gap import BranchGap as BranchGap
from .branch_gap import branch_gap as branch_gap
from .card import Result as Result
from .card import ResultCard as ResultCard
from .comparison import Comparison as Comparison
from .comparison import Flips as Flips
from .comparison import MetricComparison as MetricComparison
from .comparison import compare_cards as compare_cards
from .comparison import markdown_table as markdown_table
from .corruptions import CorruptionAccuracy as CorruptionAccuracy
from .corruptions import corrupted as corrupted
from .corruptions import corruption_accuracy as corruption_accuracy
from .curves import RobustCurve as RobustCurve
from .curves import robust_curve as robust_curve
from .figures import plot_corruptions as plot_corruptions
from .figures import plot_curves as plot_curves
from .frozen import unchanged as unchanged
from .label_free import LabelFreeRobustness as LabelFreeRobustness
from .label_free import label_free_robustness as label_free_robustness
from .masking import MaskingReport as MaskingReport
from .masking import gradient_masking as gradient_masking
from .overfitting import Overfitting as Overfitting
from .overfitting import catastrophic_overfitting as catastrophic_overfitting
from .pictures import plot_branches as plot_branches
from .pictures import plot_images as plot_images
from .presets import PROTOCOLS as PROTOCOLS
from .presets import protocol as protocol
from .probing import ProtocolResult as ProtocolResult
from .probing import run_protocol as run_protocol
from .protocols import Protocol as Protocol
from .provenance import revision as revision
from .provenance import versions as versions
from .symptoms import batch_dependence as batch_dependence
from .symptoms import probability_output as probability_output
from .symptoms import randomised_output as randomised_output
from .symptoms import train_mode as train_mode
from .symptoms import zero_gradients as zero_gradients
from .uar import CALIBRATIONS as CALIBRATIONS
from .uar import UAR as UAR
from .uar import Calibration as Calibration
from .uar import calibrated_attacks as calibrated_attacks
from .uar import uar as uar

__all__ = [
    "CALIBRATIONS",
    "PROTOCOLS",
    "UAR",
    "Accuracy",
    "Alarm",
    "AlarmRecord",
    "AutoAttackResult",
    "BranchGap",
    "Calibration",
    "Comparison",
    "CorruptionAccuracy",
    "CurveRecord",
    "Flips",
    "LabelFreeRobustness",
    "MaskingReport",
    "MetricComparison",
    "Overfitting",
    "Protocol",
    "ProtocolResult",
    "Result",
    "ResultCard",
    "RobustCurve",
    "accuracy",
    "autoattack",
    "batch_dependence",
    "branch_gap",
    "calibrated_attacks",
    "catastrophic_overfitting",
    "compare_cards",
    "corrupted",
    "corruption_accuracy",
    "falling_loss",
    "gradient_masking",
    "incomplete_search",
    "label_free_robustness",
    "loss_beaten",
    "markdown_table",
    "plot_branches",
    "plot_corruptions",
    "plot_curves",
    "plot_images",
    "probability_output",
    "protocol",
    "randomised_output",
    "revision",
    "robust_accuracy",
    "robust_curve",
    "run_protocol",
    "train_mode",
    "uar",
    "unbounded_attack",
    "unchanged",
    "versions",
    "white_box_beaten",
    "zero_gradients",
]
