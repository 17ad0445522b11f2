"""accelerate: a training loop for any learner of this library, on what accelerate was configured for."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable

import torch

from .._checks import check_path, complaint, type_name
from ._epochs import epoch, rates
from ._progress import parts, progress
from ._state import load, save
from ._training import check, check_functions

try:
    from accelerate import Accelerator
except ImportError as error:
    raise ImportError(
        complaint(__name__, "accelerate", str(error), "Install it with pip install accelerate")
    ) from error


def pretrain(
    learner: torch.nn.Module,
    batches: Iterable[object],
    *,
    optimizer: torch.optim.Optimizer,
    epochs: int,
    schedule: Callable[[int], float] = lambda _: 1.0,
    accelerator: Accelerator | None = None,
    folder: str | os.PathLike[str] | None = None,
    report: Callable[[int, float], object] = lambda *_: None,
) -> list[float]:
    """Train a learner, and return the mean loss of each epoch over all processes.

    A batch is a tensor, or a tuple of what the learner takes; ``schedule(step)`` is the fraction of the learning rate.
    With a ``folder`` a run that was cut off goes on after its last epoch; ``report(epoch, loss)`` is called after each.
    """
    check(learner, batches, optimizer, epochs)
    check_functions("pretrain", schedule=schedule, report=report)
    if not isinstance(accelerator, Accelerator | None):
        raise TypeError(complaint("pretrain", "an Accelerator", type_name(accelerator), "Leave it out, or pass yours"))
    ours = parts(learner, optimizer)
    remedy = "Pass a string or a Path, or None"
    place = None if folder is None else check_path("pretrain", "folder", folder, remedy=remedy)
    losses, updates = ([], 0) if place is None else progress(place, ours)
    accelerator = accelerator or Accelerator(cpu=not torch.accelerator.is_available())
    prepared = accelerator.prepare(learner, optimizer, batches)
    with rates(optimizer, schedule) as take_rate:
        if place is not None and losses:
            load(accelerator, place, len(losses))
        while len(losses) < epochs:
            loss, updates = epoch(accelerator, prepared, take_rate, updates)
            losses.append(loss)
            if place is not None:
                save(accelerator, place, losses, updates, ours)
            report(len(losses), loss)
    return losses
