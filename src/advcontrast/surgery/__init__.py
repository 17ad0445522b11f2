"""Give an existing network dual norms, and take them out again."""

from ..norm import branch_parameters as branch_parameters
from .convert import convert_to_dual_bn as convert_to_dual_bn
from .export import blend as blend
from .export import export_branch as export_branch
from .published import load_acl_checkpoint as load_acl_checkpoint
from .published import load_published as load_published
from .sync_batchnorm import convert_sync_batchnorm as convert_sync_batchnorm

__all__ = [
    "blend",
    "branch_parameters",
    "convert_sync_batchnorm",
    "convert_to_dual_bn",
    "export_branch",
    "load_acl_checkpoint",
    "load_published",
]
