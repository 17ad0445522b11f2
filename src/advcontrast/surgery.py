"""Give an existing network dual batch norms, and take them out again."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.lazy import LazyModuleMixin

from ._checks import check_bool, check_choice, check_module, complaint, type_name
from ._types import BRANCHES, Branch
from .norm.branch import dual_norms
from .norm.dual_batch_norm import DualBatchNorm, dual_class

_WRAPPERS = {
    "DataParallel": "model.module",
    "DistributedDataParallel": "model.module",
    "FullyShardedDataParallel": "model.module",
    "FSDPModule": "the model before fully_shard",
    "OptimizedModule": "model._orig_mod",
}


def _check_surgery(owner: str, model: nn.Module) -> None:
    """Refuse what cannot be operated on: wrapped, scripted and lazy modules, wherever they are."""
    check_module(owner, model)
    for name, module in model.named_modules():
        here = f" at {name!r}" if name else ""
        wrapper = next((kind.__name__ for kind in type(module).__mro__ if kind.__name__ in _WRAPPERS), None)
        if wrapper:
            verb = "Convert" if owner == "convert_to_dual_bn" else "Export"
            remedy = f"{verb} {_WRAPPERS[wrapper]}, then wrap it again"
            raise TypeError(complaint(owner, "an unwrapped module", wrapper + here, remedy))
        if isinstance(module, torch.jit.ScriptModule):
            remedy = "Convert the Python module before scripting it"
            raise TypeError(complaint(owner, "an unscripted module", type(module).__name__ + here, remedy))
        if isinstance(module, LazyModuleMixin):
            remedy = "Run one forward pass first, so that its shapes are known"
            raise TypeError(complaint(owner, "an initialised module", type(module).__name__ + here, remedy))


def _slots(root: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield every slot that holds a module, with its full name; a shared module comes once for each parent."""
    yield "", root
    for prefix, parent in list(root.named_modules(remove_duplicate=False)):
        for name, child in parent._modules.items():
            if child is not None and not isinstance(parent, DualBatchNorm):
                yield f"{prefix}.{name}" if prefix else name, child


def _replace(root: nn.Module, replacements: Mapping[int, nn.Module]) -> nn.Module:
    """Put into every slot the replacement of the module with that ``id``; return the new root."""
    for parent in list(root.modules()):
        for name, child in parent._modules.items():
            parent._modules[name] = replacements.get(id(child), child)
    return replacements.get(id(root), root)


def _warn_of_other_references(owner: str, model: nn.Module, norms: Mapping[int, nn.Module]) -> None:
    """Warn of norms that a module also holds where they cannot be replaced, such as a plain list."""
    for name, module in model.named_modules():
        for attribute, value in vars(module).items():
            held = list(value.values()) if isinstance(value, dict) else value
            items = held if isinstance(held, (list, tuple)) else [held]
            if attribute != "_modules" and any(id(item) in norms for item in items):
                where = f"one in the attribute {attribute!r} of {name or 'the model'!r}"
                remedy = "What runs through that attribute keeps using the clean branch; hold it in an nn.ModuleList"
                text = complaint(owner, "batch norms to be held as submodules only", where, remedy)
                warnings.warn(text, UserWarning, stacklevel=3)


def convert_to_dual_bn(
    model: nn.Module,
    *,
    filter_fn: Callable[[nn.Module, str], bool] | None = None,
    inplace: bool = True,
) -> nn.Module:
    """Replace every batch norm of ``model`` by a dual one that starts as two copies of it.

    Outputs stay the same to the bit, in both branches, in training and in evaluation. The original norms stay inside as
    the ``clean`` branch, so an optimizer built earlier keeps training them; add :func:`branch_parameters` of ``"adv"``
    to it. Norms that several parents share stay shared. Norms that are dual already are left alone.

    Convert before wrapping in DDP or ``torch.compile``; ``nn.SyncBatchNorm.convert_sync_batchnorm`` may come before or
    after. State dicts of the plain network load into the dual one with ``strict=True`` and fill both branches.

    Args:
        model: any network. Batch norms are recognised by ``isinstance``, subclasses with a fused activation included.
        filter_fn: ``filter_fn(module, fully_qualified_name)`` says whether to convert a batch norm; by default all are.
        inplace: whether to change ``model`` itself or a deep copy of it.

    Returns:
        The converted network, which is ``model`` itself unless that is a batch norm or ``inplace=False``.

    Raises:
        TypeError: ``model`` is no module, is wrapped (DDP, DataParallel, FSDP, ``torch.compile``), scripted, or lazy
            and not yet initialised.

    Warns:
        UserWarning: nothing was converted, or a norm is also held outside of the submodules, as in a plain list.

    Example:
        >>> model = convert_to_dual_bn(torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8)))
        >>> [key for key in model.state_dict() if key.endswith("weight")]
        ['0.weight', '1.clean.weight', '1.adv.weight']
    """
    owner = "convert_to_dual_bn"
    _check_surgery(owner, model)
    check_bool(owner, "inplace", inplace, remedy="False converts a deep copy")
    if filter_fn is not None and not callable(filter_fn):
        remedy = "Pass a function of (module, fully_qualified_name)"
        raise TypeError(complaint(owner, "filter_fn to be callable", type_name(filter_fn), remedy))
    if not inplace:
        model = copy.deepcopy(model)

    norms = {
        id(module): module
        for name, module in _slots(model)
        if isinstance(module, _BatchNorm) and (filter_fn is None or filter_fn(module, name))
    }
    if not norms and not any(isinstance(module, DualBatchNorm) for module in model.modules()):
        expected = "a model with batch norms" + (" that filter_fn accepts" if filter_fn else "")
        remedy = "It is returned unchanged; single-norm training works without conversion"
        warnings.warn(complaint(owner, expected, f"none in {type(model).__name__}", remedy), UserWarning, stacklevel=2)
    _warn_of_other_references(owner, model, norms)
    # Only the norms are to be copied, not a module that one of them refers to.
    parts = {id(part) for bn in norms.values() for part in bn.modules()}
    memo: dict[int, Any] = {id(module): module for module in model.modules() if id(module) not in parts}
    return _replace(model, {key: dual_class(bn).from_batchnorm(bn, memo) for key, bn in norms.items()})


def export_branch(model: nn.Module, branch: Branch) -> nn.Module:
    """Return a plain copy of ``model`` that holds one branch only.

    The copy has the architecture, the state-dict keys and the modes of the network before conversion, and the outputs
    of that branch, bit for bit. ``model`` is not touched.

    Args:
        model: a network with dual norms.
        branch: ``"clean"`` or ``"adv"``.

    Returns:
        A deep copy with plain norms.

    Raises:
        ValueError: ``branch`` is another word, or the model holds no dual norm.
        TypeError: ``model`` is no module, is wrapped or scripted.

    Example:
        >>> model = convert_to_dual_bn(torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8)))
        >>> list(export_branch(model, "adv").state_dict())[:3]
        ['0.weight', '0.bias', '1.weight']
    """
    owner = "export_branch"
    _check_surgery(owner, model)
    check_choice(owner, "branch", branch, BRANCHES)
    dual_norms(owner, model)
    model = copy.deepcopy(model)
    return _replace(model, {id(norm): getattr(norm, branch) for norm in dual_norms(owner, model)})


def branch_parameters(model: nn.Module, branch: Branch) -> list[nn.Parameter]:
    """Return the parameters that only ``branch`` of the dual norms of ``model`` uses.

    An optimizer built before conversion lacks those of ``"adv"``: ``optimizer.add_param_group({"params":
    branch_parameters(model, "adv")})``. A branch that a training leaves idle can be frozen with them.

    Args:
        model: a network with dual norms.
        branch: ``"clean"`` or ``"adv"``.

    Returns:
        The parameters, each once, in the order of the modules.

    Raises:
        ValueError: ``branch`` is another word, or the model holds no dual norm.
        TypeError: ``model`` is no ``nn.Module``.

    Example:
        >>> model = convert_to_dual_bn(torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8)))
        >>> [tuple(parameter.shape) for parameter in branch_parameters(model, "adv")]
        [(8,), (8,)]
    """
    owner = "branch_parameters"
    norms = dual_norms(owner, model)
    check_choice(owner, "branch", branch, BRANCHES)
    return list(dict.fromkeys(parameter for norm in norms for parameter in getattr(norm, branch).parameters()))


def load_acl_checkpoint(
    model: nn.Module, state_dict: Mapping[str, Tensor], *, ignore: str | tuple[str, ...] = ()
) -> None:
    """Load a state dict in the layout of the published ACL checkpoints into a converted ResNet.

    The layout differs from that of a converted torchvision ResNet in three ways, which are translated: the branches are
    called ``bn_list.0`` (clean) and ``bn_list.1`` (adversarial), the shortcut ``downsample.conv`` and
    ``downsample.bn``, and parallel training left the prefix ``module.``. Nothing is skipped in silence.

    Args:
        model: a network whose norms are dual, for example ``convert_to_dual_bn(resnet18())`` with a CIFAR stem.
        state_dict: names and tensors; of a published file, what its key ``"state_dict"`` holds.
        ignore: prefix or prefixes of the names that are not wanted, for example ``"fc."`` to leave out the projection
            head; the model then keeps its own values for them.

    Raises:
        ValueError: the model holds no dual norm, or names or shapes do not match; every one of them is listed, and
            the model is left as it was.
        TypeError: ``model`` is no module, or ``state_dict`` holds something other than tensors.

    Example:
        >>> model = convert_to_dual_bn(torch.nn.Sequential(torch.nn.BatchNorm2d(8, affine=False)))
        >>> published = {f"module.0.bn_list.{branch}.running_mean": torch.ones(8) * branch for branch in (0, 1)}
        >>> published |= {f"module.0.bn_list.{branch}.running_var": torch.ones(8) for branch in (0, 1)}
        >>> published |= {f"module.0.bn_list.{branch}.num_batches_tracked": torch.tensor(7) for branch in (0, 1)}
        >>> load_acl_checkpoint(model, published)
        >>> model[0].adv.running_mean.mean().item()
        1.0
    """
    owner = "load_acl_checkpoint"
    dual_norms(owner, model)
    tensors = isinstance(state_dict, Mapping) and all(isinstance(value, Tensor) for value in state_dict.values())
    if not tensors or not all(isinstance(name, str) for name in state_dict):
        remedy = 'Pass what torch.load(path, weights_only=True) holds under "state_dict"'
        raise TypeError(complaint(owner, "a state dict of tensors", type_name(state_dict), remedy))
    prefixes = (ignore,) if isinstance(ignore, str) else ignore
    if not isinstance(prefixes, tuple) or not all(isinstance(prefix, str) and prefix for prefix in prefixes):
        raise TypeError(complaint(owner, "ignore to be prefixes, a str or a tuple", repr(ignore), 'Pass ignore="fc."'))
    own = model.state_dict()
    translated = [(_translate(name), value) for name, value in state_dict.items()]
    theirs = {name: value for name, value in translated if not name.startswith(prefixes)}
    wanted = {name for name in own if not name.startswith(prefixes)}
    names = [name for name, _ in translated]
    problems = {
        "missing": sorted(wanted - theirs.keys()),
        "unexpected": sorted(theirs.keys() - own.keys()),
        "twice": sorted(name for name in theirs if names.count(name) > 1),
        "of another shape": sorted(
            f"{name} {list(theirs[name].shape)} for {list(own[name].shape)}"
            for name in wanted & theirs.keys()
            if theirs[name].shape != own[name].shape
        ),
    }
    found = "; ".join(f"{len(which)} {kind}: {', '.join(which)}" for kind, which in problems.items() if which)
    if found:
        remedy = 'Build the network that was saved, or leave parts out with ignore="fc."'
        raise ValueError(complaint(owner, "names and shapes to match the model's", found, remedy))
    own.update(theirs)
    model.load_state_dict(own)


def _translate(name: str) -> str:
    name = f".{name.removeprefix('module.')}"
    for published, ours in (
        (".bn_list.0.", ".clean."),
        (".bn_list.1.", ".adv."),
        (".downsample.conv.", ".downsample.0."),
        (".downsample.bn.", ".downsample.1."),
    ):
        name = name.replace(published, ours)
    return name.removeprefix(".")
