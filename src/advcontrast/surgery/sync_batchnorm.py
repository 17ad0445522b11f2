"""Batch norms with the statistics of the whole batch, over all processes."""

import inspect
from functools import cache
from typing import Any

import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.nn.modules import _functions as functions
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import TorchFunctionMode

from .._checks import complaint
from .modules import check_surgery

_OWNER = "convert_sync_batchnorm"
_PLAIN = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_SIGNATURE = inspect.signature(F.batch_norm)


def convert_sync_batchnorm(model: nn.Module, process_group: dist.ProcessGroup | None = None) -> nn.Module:
    """Synchronise the statistics of every batch norm of ``model`` over all processes, and return ``model``.

    ``torch.nn.SyncBatchNorm.convert_sync_batchnorm`` drops what a subclass adds, such as the activation of timm's
    ``BatchNormAct2d``. This function keeps the modules, with their hooks, and changes their class: a plain batch norm
    becomes a ``torch.nn.SyncBatchNorm``; a subclass keeps its ``forward``, in which the call of
    ``torch.nn.functional.batch_norm`` is synchronised.

    Call it before or after :func:`~advcontrast.convert_to_dual_bn`, and before wrapping in DDP or ``torch.compile``. In
    eval mode, and in a single process, outputs stay bit-identical.

    Args:
        model: any network. It is changed in place.
        process_group: the processes that share statistics; by default all.

    Raises:
        TypeError: ``model`` is not a module, or is wrapped, scripted, or lazy and not yet initialised.
        ValueError: a batch norm has a ``forward`` on the instance.
        RuntimeError: raised in a later forward pass in train mode with several processes, if a subclass does not call
            ``torch.nn.functional.batch_norm`` exactly once.

    Example:
        >>> model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8))
        >>> type(convert_sync_batchnorm(model)[1]).__name__
        'SyncBatchNorm'
    """
    check_surgery(_OWNER, model)
    found = ((name, norm) for name, norm in model.named_modules() if isinstance(norm, _BatchNorm))
    norms = {name: norm for name, norm in found if not isinstance(norm, (nn.SyncBatchNorm, SynchronisedNorm))}
    for name, norm in norms.items():
        if "forward" in vars(norm):
            remedy = "Define it in a subclass of the batch norm"
            raise ValueError(complaint(_OWNER, "forward methods of classes", f"one set on the norm {name!r}", remedy))
    for norm in norms.values():
        kind: Any = type(norm)
        norm.__class__ = nn.SyncBatchNorm if kind in _PLAIN else _synchronised(kind)  # type: ignore[assignment]
        vars(norm)["process_group"] = process_group
    return model


class SynchronisedNorm(nn.Module):
    """Base of batch norms that keep their own ``forward`` and use the statistics of the whole batch."""

    process_group: dist.ProcessGroup | None

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the ``forward`` of the subclass, with a synchronised batch norm inside."""
        if not (self.training and dist.is_available() and dist.is_initialized()):
            return super().forward(*args, **kwargs)
        group = self.process_group or dist.group.WORLD
        world = dist.get_world_size(group)
        if world == 1:
            return super().forward(*args, **kwargs)
        with _Synchronise(group, world) as mode:
            output = super().forward(*args, **kwargs)
        if mode.calls != 1:
            owner, expected = type(self).__name__, "its forward method to call torch.nn.functional.batch_norm once"
            remedy = "Its statistics cannot be synchronised: use another norm, or leave convert_sync_batchnorm out"
            raise RuntimeError(complaint(owner, expected, f"{mode.calls} calls", remedy))
        return output

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        # The class is created at run time, so that pickle cannot find it by name.
        return _new, (type(self).__bases__[1],), vars(self)


@cache
def _synchronised(kind: type[nn.Module]) -> type[nn.Module]:
    return type(f"Sync{kind.__name__}", (SynchronisedNorm, kind), {"__module__": __name__})


def _new(kind: Any) -> nn.Module:
    synchronised = _synchronised(kind)
    return synchronised.__new__(synchronised)


class _Synchronise(TorchFunctionMode):
    """Context in which ``torch.nn.functional.batch_norm`` uses the whole batch of all processes."""

    def __init__(self, group: Any, world: int) -> None:
        super().__init__()
        self.group, self.world, self.calls = group, world, 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is not F.batch_norm:
            return func(*args, **kwargs)
        self.calls += 1
        call = _SIGNATURE.bind(*args, **kwargs)
        call.apply_defaults()
        if not call.arguments["training"]:
            return func(*args, **kwargs)
        return _normalise(call.arguments, self.group, self.world)


def _normalise(arguments: dict[str, Any], group: Any, world: int) -> Any:
    if arguments["input"].device.type == "cpu":
        remedy = "PyTorch does not synchronise batch norms on a CPU"
        raise ValueError(complaint("SyncBatchNorm", "input on an accelerator", "cpu", remedy))
    names = "input", "weight", "bias", "running_mean", "running_var", "eps", "momentum"
    return functions.SyncBatchNorm.apply(*(arguments[name] for name in names), group, world)
