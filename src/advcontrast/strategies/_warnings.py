"""Checks of the contrastive trainer for setups that train without an error but learn something else."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from .._checks import complaint, type_name
from ..norm import DualNorm


def warn_of_single_norms(owner: str, model: nn.Module, loss: nn.Module | None, mode: str) -> None:
    """Warn of norms that clean and perturbed images share, unless the split of the dual ones intends it."""
    dual = [module for module in model.modules() if isinstance(module, DualNorm)]
    single = _single_norms(model)
    of_loss = [] if loss is None else [f"loss.{name}" for name in _single_norms(loss)]
    if not dual:
        got = f"none in {type(model).__name__}"
        remedy = "Call convert_to_dual_bn(model) first, unless this is the single-norm ablation"
    elif (single or of_loss) and any(norm.split != "affine" for norm in dual):
        names = single + of_loss
        got = f"single ones beside them: {', '.join(names[:3])}{', ...' if len(names) > 3 else ''}"
        call = "convert_to_dual_bn(model) once its head is attached" if single else "convert_to_dual_bn(loss) too"
        remedy = f"Call {call}, unless these are meant to be shared"
    else:
        return
    text = complaint(owner, f"dual batch norms for mode {mode!r}", got, remedy)
    warnings.warn(text, UserWarning, stacklevel=3)


def _single_norms(module: nn.Module) -> list[str]:
    parts = _outside_dual_norms(module)
    return [name for name, part in parts if isinstance(part, _BatchNorm) and part.track_running_stats]


@contextmanager
def raise_if_memory_changes(owner: str, loss: nn.Module, mode: str) -> Iterator[None]:
    """Raise if the block changes a memory of a loss that all branches share: images become their own negatives.

    A memory is a buffer of two dimensions or more, a row an embedding; running statistics and counters have fewer.
    Versions are compared, not values: nothing waits for the device.
    """
    before = _memories(loss)
    yield
    after = _memories(loss)
    for name in before.keys() | after.keys():
        (buffer, version), (other, now) = (found.get(name, (None, 0)) for found in (before, after))
        if buffer is not other or version != now:
            expected, got = (
                f"loss to have a memory for each stream of mode {mode!r}",
                f"{type_name(loss)} with one, {name}",
            )
            remedy = "Wrap it, adapters.losses.TrainOnlyMemoryBank(loss), so that no image becomes its own negative"
            raise RuntimeError(complaint(owner, expected, got, remedy))


def _memories(loss: nn.Module) -> dict[str, tuple[Tensor, int]]:
    return {
        f"{name}.{key}".lstrip("."): (buffer, 0 if buffer.is_inference() else buffer._version)
        for name, module in _outside_dual_norms(loss)
        for key, buffer in module._buffers.items()
        if buffer is not None and buffer.dim() >= 2
    }


def _outside_dual_norms(module: nn.Module) -> list[tuple[str, nn.Module]]:
    """Return the modules that are not part of a dual norm, with their names."""
    inside = {part for norm in module.modules() if isinstance(norm, DualNorm) for part in norm.modules()}
    return [(name, part) for name, part in module.named_modules() if part not in inside]
