"""What the contrastive trainer warns of: training that runs, and is not what it looks like."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import zip_longest

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from .._checks import complaint, type_name
from ..norm import DualNorm


def warn_of_single_norms(owner: str, model: nn.Module, mode: str) -> None:
    """Warn of norms through which both clean and perturbed images will go, unless they share by design."""
    dual = [module for module in model.modules() if isinstance(module, DualNorm)]
    inside = {part for norm in dual for part in norm.modules()}
    single = [
        name
        for name, module in model.named_modules()
        if isinstance(module, _BatchNorm) and module.track_running_stats and module not in inside
    ]
    if not dual:
        got = f"none in {type(model).__name__}"
        remedy = "Call convert_to_dual_bn(model) first, unless this is the single-norm ablation"
    elif single and any(norm.split != "affine" for norm in dual):
        got = f"single ones beside them: {', '.join(single[:3])}{', ...' if len(single) > 3 else ''}"
        remedy = "Call convert_to_dual_bn(model) once its head is attached, unless these are meant to be shared"
    else:
        return
    text = complaint(owner, f"dual batch norms for mode {mode!r}", got, remedy)
    warnings.warn(text, UserWarning, stacklevel=3)


@contextmanager
def watched(owner: str, loss: Callable[[Tensor, Tensor], Tensor]) -> Iterator[None]:
    """Warn if what happens inside leaves traces in the buffers of a loss, as a memory bank."""
    before = _writes(loss)
    yield
    after = _writes(loss)
    if any(a is not b or n != m for (a, n), (b, m) in zip_longest(before, after, fillvalue=(None, 0))):
        got = f"{type_name(loss)}, whose buffers changed"
        remedy = "Wrap it in adapters.losses.Remembering, so that only the batches that are trained on are remembered"
        text = complaint(owner, "a loss that an attack leaves as it was", got, remedy)
        warnings.warn(text, UserWarning, stacklevel=3)


def _writes(loss: Callable[[Tensor, Tensor], Tensor]) -> list[tuple[Tensor | None, int]]:
    """Return the buffers of a loss and how often each was written to; no device is waited for."""
    buffers = loss.buffers() if isinstance(loss, nn.Module) else ()
    return [(buffer, 0 if buffer.is_inference() else buffer._version) for buffer in buffers]
