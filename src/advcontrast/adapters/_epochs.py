"""An epoch under accelerate."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from .._checks import check_real, complaint


@contextmanager
def rates(optimizer: torch.optim.Optimizer, schedule: Callable[[int], float]) -> Iterator[Callable[[int], None]]:
    """Yield what sets the learning rates of an update; at the end they are what they were."""
    peaks = [group["lr"] for group in optimizer.param_groups]

    def take(update: int) -> None:
        fraction = schedule(update)
        remedy = "Return the fraction of the learning rate, such as 1.0"
        check_real("pretrain", "what schedule returns", fraction, low=0, remedy=remedy)
        for group, peak in zip(optimizer.param_groups, peaks, strict=True):
            group["lr"] = peak * float(fraction)

    try:
        yield take
    finally:
        for group, peak in zip(optimizer.param_groups, peaks, strict=True):
            group["lr"] = peak


def epoch(accelerator: Any, prepared: Any, take_rate: Callable[[int], None], updates: int) -> tuple[float, int]:
    """Train for an epoch; return the mean loss over all processes, and the number of updates there were by then."""
    step, optimizer, loader = prepared
    step.train()
    if order := getattr(loader, "synchronized_generator", None):  # that of several processes, which nobody saves
        order.manual_seed(int(torch.randint(2**62, ())))
    losses = []
    for batch in loader:
        with accelerator.accumulate(step):
            if accelerator.sync_gradients:
                take_rate(updates)
                updates += 1
            out = step(*batch) if isinstance(batch, (tuple, list)) else step(batch)
            accelerator.backward(out.loss)
            optimizer.step()
            optimizer.zero_grad()
        losses.append(out.loss.detach())
    if not losses:
        remedy = "An iterator can be walked only once; pass a DataLoader, with fewer images a batch than there are"
        raise ValueError(complaint("pretrain", "at least one batch an epoch", "none", remedy))
    return float(accelerator.reduce(torch.stack(losses).mean(), "mean")), updates
