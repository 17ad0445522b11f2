"""Building blocks for adversarial contrastive learning in PyTorch."""

from . import _deprecated
from . import functional as functional
from .attacks import PGDAttack as PGDAttack
from .augment import ContrastivePairAugment as ContrastivePairAugment
from .engine import Checkpoint as Checkpoint
from .engine import fit as fit
from .losses import NTXentLoss as NTXentLoss
from .losses import SemiSupervisedLoss as SemiSupervisedLoss
from .losses import TRADESLoss as TRADESLoss
from .norm import DualBatchNorm1d as DualBatchNorm1d
from .norm import DualBatchNorm2d as DualBatchNorm2d
from .norm import DualBatchNorm3d as DualBatchNorm3d
from .norm import bn_branch as bn_branch
from .norm import branch_parameters as branch_parameters
from .norm import checkpoint_context_fn as checkpoint_context_fn
from .norm import set_bn_branch as set_bn_branch
from .norm import update_bn as update_bn
from .strategies import ACLOutput as ACLOutput
from .strategies import ACLTrainer as ACLTrainer
from .surgery import blend as blend
from .surgery import convert_to_dual_bn as convert_to_dual_bn
from .surgery import export_branch as export_branch
from .surgery import interpolate_branches as interpolate_branches
from .surgery import load_acl_checkpoint as load_acl_checkpoint
from .surgery import load_published as load_published

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

__getattr__ = _deprecated.names_of(__name__)
