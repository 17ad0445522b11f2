"""Plan of the batches: a function of the seed and the step, so that a resume needs no state.

The number of processes affects which process gets a sample, but not the samples of a batch.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import chain

import torch
from torch import Tensor

from ... import distributed
from ..._checks import check_int
from ..._digest import digest
from ...data import interleave

_OWNER = "steps_per_epoch"


def steps_per_epoch(samples: int, batch_size: int) -> int:
    """Return the number of steps in an epoch of :func:`fit`, for schedules that count steps.

    Args:
        samples: length of the data, at least 1.
        batch_size: samples per step, of all processes together, at least 1.

    Returns:
        The number of batches that contain every sample once, for any number of processes.

    Raises:
        ValueError: a number below 1.
        TypeError: an argument is not an int.

    Example:
        >>> from advcontrast.engine import steps_per_epoch
        >>> steps_per_epoch(8, 4), steps_per_epoch(9, 4)
        (2, 3)
    """
    check_int(_OWNER, "samples", samples, low=1, remedy="Pass the length of the data")
    check_int(_OWNER, "batch_size", batch_size, low=1, remedy="Pass the samples of all processes in a step")
    return -(-samples // batch_size)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Indices of the batches of every epoch; ``batch_size``, ``seed`` and ``groups`` are those of :func:`fit`.

    Every epoch is a permutation of all samples that depends only on the seed and the epoch, divided into batches of
    equal size. The last batch is filled up with the first samples of the permutation; data smaller than a batch are one
    batch. Processes take turns within a batch, so that all of them get the same number of samples.
    """

    samples: int
    batch_size: int
    seed: int
    groups: Tensor | None = None
    chosen: Tensor | None = None  # indices of the samples; None for all of the data

    def subset(self, chosen: Tensor) -> Plan:
        """Return the plan of some of the samples."""
        groups = None if self.groups is None else self.groups[chosen]
        return replace(self, samples=len(chosen), groups=groups, chosen=chosen)

    @property
    def steps(self) -> int:
        """Return the number of steps in an epoch."""
        return -(-self.samples // self.batch_size)

    def order(self, epoch: int) -> Tensor:
        """Return the permutation of an epoch."""
        # The generator takes 32 bits. With seed + epoch, seed 1 would have the orders of seed 0, shifted by an epoch.
        generator = torch.Generator().manual_seed(int(digest(f"{self.seed} {epoch}")[:8], 16))
        if self.groups is None:
            order = torch.randperm(self.samples, generator=generator)
        else:
            order = interleave(self.groups, generator=generator)
        return order if self.chosen is None else self.chosen[order]

    def batches(self, epoch: int, device: torch.device, *, skip: int = 0) -> list[Tensor]:
        """Return the indices that this process takes in each step of an epoch, without the first ``skip`` steps."""
        world, rank = distributed.world_size(), distributed.rank()
        order = self.order(epoch).to(device)  # once, as a copy to an accelerator waits for it
        size = min(self.batch_size, self.samples)
        order = torch.cat([order, order[: self.steps * size - self.samples]])
        return [batch[rank::world] for batch in torch.split(order, size)[skip:]]

    def run(self, epochs: range, device: torch.device, *, skip: int) -> Iterator[Tensor]:
        """Return the indices of several epochs, without the first ``skip`` steps of the first one."""
        return chain.from_iterable(
            self.batches(epoch, device, skip=skip if epoch == epochs.start else 0) for epoch in epochs
        )
