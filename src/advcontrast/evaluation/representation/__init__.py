"""Measures of encoders that need no labels."""

from .branch_gap import BranchGap as BranchGap
from .branch_gap import branch_gap as branch_gap
from .label_free import LabelFreeRobustness as LabelFreeRobustness
from .label_free import label_free_robustness as label_free_robustness

__all__ = [
    "BranchGap",
    "LabelFreeRobustness",
    "branch_gap",
    "label_free_robustness",
]
