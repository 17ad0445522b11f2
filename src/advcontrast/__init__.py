"""Building blocks for adversarial contrastive learning in PyTorch."""

from . import _deprecated, functional
from .attacks import PGDAttack
from .augment import ContrastivePairAugment
from .engine import Checkpoint, fit
from .losses import NTXentLoss, SemiSupervisedLoss, TRADESLoss
from .norm import (
    DualBatchNorm1d,
    DualBatchNorm2d,
    DualBatchNorm3d,
    bn_branch,
    branch_parameters,
    checkpoint_context_fn,
    set_bn_branch,
    update_bn,
)
from .strategies import ACLOutput, ACLTrainer
from .surgery import blend as blend
from .surgery import convert_to_dual_bn, export_branch, interpolate_branches, load_published
from .surgery import load_acl_checkpoint as load_acl_checkpoint

__version__ = "0.1.0"

__all__ = [
    "ACLOutput",
    "ACLTrainer",
    "Checkpoint",
    "ContrastivePairAugment",
    "DualBatchNorm1d",
    "DualBatchNorm2d",
    "DualBatchNorm3d",
    "NTXentLoss",
    "PGDAttack",
    "SemiSupervisedLoss",
    "TRADESLoss",
    "__version__",
    "bn_branch",
    "branch_parameters",
    "checkpoint_context_fn",
    "convert_to_dual_bn",
    "export_branch",
    "fit",
    "functional",
    "interpolate_branches",
    "load_published",
    "set_bn_branch",
    "update_bn",
]

_deprecated.serve_old_names(__name__)
