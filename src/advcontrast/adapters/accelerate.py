"""accelerate: a training loop for any learner of this library, on what accelerate was configured for."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch

from .._checks import check_iterable, check_module, complaint
from ._epochs import Folder, check, load, mean, save

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
    folder: Folder | None = None,
    report: Callable[[int, float], object] = lambda *_: None,
) -> list[float]:
    """Train a learner, and return the mean loss of each epoch over all processes.

    A batch is a tensor, or a tuple of what the learner takes; ``schedule(step)`` is the fraction of the learning rate.
    With a ``folder`` a run that was cut off goes on after its last epoch; ``report(epoch, loss)`` is called after each.
    """
    check_module("pretrain", learner)
    check_iterable("pretrain", "batches", batches, remedy="Pass a DataLoader")
    check(optimizer, epochs, schedule, report, folder)
    accelerator = accelerator or Accelerator(cpu=not torch.accelerator.is_available())
    rates = torch.optim.lr_scheduler.LambdaLR(optimizer, schedule)
    step, update, loader = accelerator.prepare(learner.train(), optimizer, batches)
    losses, rates.last_epoch = ([], 0) if folder is None else load(accelerator, folder)
    while len(losses) < epochs:
        if order := getattr(loader, "synchronized_generator", None):  # that of several processes, which nobody saves
            order.manual_seed(int(torch.randint(2**62, ())))
        found = []
        for batch in loader:
            with accelerator.accumulate(step):
                out = step(*batch) if isinstance(batch, (tuple, list)) else step(batch)
                accelerator.backward(out.loss)
                update.step()
                update.zero_grad()
            found.append(out.loss.detach())
            if accelerator.sync_gradients:
                rates.step()
        losses.append(mean(accelerator, found))
        if folder is not None:
            save(accelerator, folder, losses, rates.last_epoch)
        report(len(losses), losses[-1])
    return losses
