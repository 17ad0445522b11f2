"""Norms with a clean and an adversarial branch, the switch between them, and their statistics."""

from .branch import bn_branch as bn_branch
from .branch import branch_parameters as branch_parameters
from .branch import checkpoint_context_fn as checkpoint_context_fn
from .branch import set_bn_branch as set_bn_branch
from .dual_batch_norm import DualBatchNorm as DualBatchNorm
from .dual_batch_norm import DualBatchNorm1d as DualBatchNorm1d
from .dual_batch_norm import DualBatchNorm2d as DualBatchNorm2d
from .dual_batch_norm import DualBatchNorm3d as DualBatchNorm3d
from .dual_norm import DualNorm as DualNorm
from .statistics import update_bn as update_bn

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
