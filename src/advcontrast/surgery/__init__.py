"""Conversion of networks to dual norms and back, and loading of published checkpoints."""

from ..norm import branch_parameters
from .convert import convert_to_dual_bn
from .export import export_branch
from .interpolate import blend as blend
from .interpolate import interpolate_branches
from .published import load_acl_checkpoint as load_acl_checkpoint
from .published import load_published
from .sync_batchnorm import convert_sync_batchnorm

__all__ = [
    "branch_parameters",
    "convert_sync_batchnorm",
    "convert_to_dual_bn",
    "export_branch",
    "interpolate_branches",
    "load_published",
]
