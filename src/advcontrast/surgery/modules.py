"""Checks and replacement of the modules of a network."""

import copy
import gc
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.lazy import LazyModuleMixin

from .._checks import check_module, complaint
from ..norm import DualNorm

_WRAPPERS = dict.fromkeys(("DataParallel", "DistributedDataParallel", "FullyShardedDataParallel"), "model.module")
_WRAPPERS |= {"FSDPModule": "the model before fully_shard", "OptimizedModule": "model._orig_mod"}


def check_surgery(owner: str, model: nn.Module) -> None:
    """Raise if ``model`` contains wrapped, scripted or lazy modules."""
    check_module(owner, model)
    for name, module in model.named_modules():
        here = f" at {name!r}" if name else ""
        wrapper = next((kind.__name__ for kind in type(module).__mro__ if kind.__name__ in _WRAPPERS), None)
        if wrapper:
            verb = "Convert" if owner.startswith("convert") else "Export"
            remedy = f"{verb} {_WRAPPERS[wrapper]}, then wrap it again"
            raise TypeError(complaint(owner, "an unwrapped module", wrapper + here, remedy))
        if isinstance(module, torch.jit.ScriptModule):
            remedy = "Convert the Python module before scripting it"
            raise TypeError(complaint(owner, "an unscripted module", type(module).__name__ + here, remedy))
        if isinstance(module, LazyModuleMixin):
            remedy = "Run one forward pass first, so that its shapes are known"
            raise TypeError(complaint(owner, "an initialised module", type(module).__name__ + here, remedy))


def check_values(owner: str, what: str, tensors: Mapping[str, Any], *, remedy: str) -> None:
    """Require tensors with values, which those on the meta device do not have."""
    name = next((name for name, tensor in tensors.items() if isinstance(tensor, Tensor) and tensor.is_meta), None)
    if name is not None:
        raise ValueError(complaint(owner, f"{what} to hold values", f"{name!r} on the meta device", remedy))


def slots(root: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield every module with its full name, a shared one once for each parent, and none inside of dual norms."""
    yield "", root
    for prefix, parent in list(root.named_modules(remove_duplicate=False)):
        for name, child in parent._modules.items():
            if child is not None and not isinstance(parent, DualNorm):
                yield f"{prefix}.{name}" if prefix else name, child


def become(module: nn.Module, other: nn.Module, kept: Mapping[int, Any]) -> None:
    """Give ``module`` the class and state of ``other``, so that references to ``module`` need no change.

    References of ``other`` to itself, such as a bound method set as ``forward``, become references to ``module``.
    ``kept`` holds the objects that must not be copied, by their ids.
    """
    memo = {**kept, id(other): module}
    state = vars(other)
    for values in (state, *(hooks for name, hooks in state.items() if name.endswith("_hooks"))):
        for name, value in list(values.items()):
            if value is other or any(referent is other for referent in gc.get_referents(value)):
                values[name] = copy.deepcopy(value, dict(memo))
    object.__setattr__(module, "__class__", type(other))
    object.__setattr__(module, "__dict__", state)
