"""Export a branch of a network with dual norms as a plain network."""

import copy

from torch import nn

from .. import _deprecated
from .._checks import check_copyable
from ..norm.dual_norm import check_branch, dual_norms
from .modules import become, check_surgery


def export_branch(model: nn.Module, branch: str) -> nn.Module:
    """Return a deep copy of ``model`` with the plain norms of one branch.

    The copy has the architecture, the state-dict keys and the modes of the network before conversion. Its outputs are
    bit-identical to those of the branch. Arguments and ``ValueError`` are those of :func:`bn_branch`.

    Raises:
        TypeError: ``model`` is not a module, or is wrapped or scripted.
        RuntimeError: ``model`` cannot be copied, as it holds the old ``weight_norm``, pruned layers, results of a
            forward pass, or functions that hold its modules.

    Example:
        >>> model = convert_to_dual_bn(torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8)))
        >>> list(export_branch(model, "adv").state_dict())[:3]
        ['0.weight', '0.bias', '1.weight']
    """
    owner = "export_branch"
    check_surgery(owner, model)
    check_branch(owner, dual_norms(owner, model), branch)
    check_copyable(owner, model)
    model = copy.deepcopy(model)
    keep_branch(model, branch)
    return model


def keep_branch(model: nn.Module, branch: str) -> None:
    """Replace the dual norms of ``model`` by those of one branch, in place."""
    modules = {id(module): module for module in model.modules()}
    for norm in dual_norms("export_branch", model):
        become(norm, norm._norm_of(branch), modules)


_deprecated.serve_old_names(__name__)
