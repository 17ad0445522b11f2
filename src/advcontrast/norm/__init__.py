"""Norms with a clean and an adversarial branch, the switch between them, and their statistics."""

from .branch import bn_branch, branch_parameters, checkpoint_context_fn, set_bn_branch
from .dual_batch_norm import DualBatchNorm, DualBatchNorm1d, DualBatchNorm2d, DualBatchNorm3d
from .dual_norm import DualNorm
from .statistics import update_bn

__all__ = [
    "DualBatchNorm",
    "DualBatchNorm1d",
    "DualBatchNorm2d",
    "DualBatchNorm3d",
    "DualNorm",
    "bn_branch",
    "branch_parameters",
    "checkpoint_context_fn",
    "set_bn_branch",
    "update_bn",
]
