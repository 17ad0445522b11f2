"""Which samples each step sees: a function of the seed and the number of the step, so that nothing need be kept."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from .. import distributed
from ..data import interleave


def steps_per_epoch(samples: int, batch_size: int) -> int:
    """Return the number of steps in an epoch of :func:`fit`, for schedules that count steps.

    Args:
        samples: length of the data.
        batch_size: samples a step, of all processes together.

    Returns:
        The number of full batches, and one more if the rest has two samples or more for every process.

    Example:
        >>> from advcontrast.engine import steps_per_epoch
        >>> steps_per_epoch(10, 4), steps_per_epoch(9, 4)
        (3, 2)
    """
    full, rest = divmod(samples, batch_size)
    return full + (rest >= 2 * distributed.world_size())


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The batches of every epoch, as indices.

    Every epoch is a permutation of all samples that depends on the seed and the epoch alone. Processes take turns
    within a batch. A last, shorter batch is used too, cut to equal shares of at least two samples.

    Args:
        samples: number of samples.
        batch_size: samples a step, of all processes together.
        seed: of the permutations.
        groups: group of each sample, ``[samples]``: every batch then holds its share of each group.
    """

    samples: int
    batch_size: int
    seed: int
    groups: Tensor | None = None

    @property
    def steps(self) -> int:
        """Return the number of steps in an epoch."""
        return steps_per_epoch(self.samples, self.batch_size)

    def order(self, epoch: int) -> Tensor:
        """Return the permutation of an epoch."""
        # The generator takes 32 bits. A sum of both numbers would give one run the orders of another, an epoch later.
        digest = hashlib.sha256(f"{self.seed} {epoch}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:4], "big"))
        if self.groups is None:
            return torch.randperm(self.samples, generator=generator)
        return interleave(self.groups, generator)

    def batches(self, epoch: int, device: torch.device, *, skip: int = 0) -> Iterator[Tensor]:
        """Yield the indices that this process takes in each step of an epoch, without the first ``skip`` steps."""
        world, rank = distributed.world_size(), distributed.rank()
        order = self.order(epoch).to(device)  # once, as a copy to an accelerator waits for it
        for step in range(skip, self.steps):
            batch = order[step * self.batch_size : (step + 1) * self.batch_size]
            yield batch[rank : len(batch) // world * world : world]
