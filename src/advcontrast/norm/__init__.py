"""Batch normalisation with a clean and an adversarial branch, and the switch between them."""

from .branch import bn_branch as bn_branch
from .branch import checkpoint_context_fn as checkpoint_context_fn
from .branch import set_bn_branch as set_bn_branch
from .dual_batch_norm import DualBatchNorm as DualBatchNorm
from .dual_batch_norm import DualBatchNorm1d as DualBatchNorm1d
from .dual_batch_norm import DualBatchNorm2d as DualBatchNorm2d
from .dual_batch_norm import DualBatchNorm3d as DualBatchNorm3d

__all__ = [
    "DualBatchNorm",
    "DualBatchNorm1d",
    "DualBatchNorm2d",
    "DualBatchNorm3d",
    "bn_branch",
    "checkpoint_context_fn",
    "set_bn_branch",
]
