"""Measures of encoders, without training a head."""

from .branch_gap import BranchGap, branch_gap
from .knn import KNNClassifier, knn_monitor
from .label_free import LabelFreeRobustness, label_free_robustness

__all__ = ["BranchGap", "KNNClassifier", "LabelFreeRobustness", "branch_gap", "knn_monitor", "label_free_robustness"]
