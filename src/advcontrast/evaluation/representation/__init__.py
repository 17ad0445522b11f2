"""Measures of encoders that need no labels."""

from .branch_gap import BranchGap, branch_gap
from .label_free import LabelFreeRobustness, label_free_robustness

__all__ = [
    "BranchGap",
    "LabelFreeRobustness",
    "branch_gap",
    "label_free_robustness",
]
