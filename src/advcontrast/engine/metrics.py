"""Metrics of an epoch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from .. import distributed

Row = dict[str, float]


class Means:
    """Means of scalars over the samples of an epoch. They stay on the device until they are read."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.samples = 0

    def add(self, terms: Mapping[str, Tensor], samples: int) -> None:
        """Add the means over a batch of so many samples."""
        for name, value in terms.items():
            self.sums[name] = self.sums.get(name, 0) + value.detach().float() * samples
        self.samples += samples

    def count(self, name: str, samples: int) -> None:
        """Count samples among those added: the mean is their share."""
        one = torch.full((), float(samples), device=next(iter(self.sums.values())).device)
        self.sums[name] = self.sums.get(name, 0) + one

    def loss(self) -> float:
        """Return the mean loss in this process."""
        return self.sums["loss"].item() / self.samples

    def state(self) -> dict[str, Any]:
        """Return the sums of this process, as plain data."""
        return {"sums": {name: value.cpu() for name, value in self.sums.items()}, "samples": self.samples}

    @classmethod
    def of(cls, states: Sequence[Mapping[str, Any]], device: torch.device) -> Means:
        """Continue from the states of all processes; rank 0 adds those of processes that are gone."""
        means, rank, world = cls(), distributed.rank(), distributed.world_size()
        mine = [state for i, state in enumerate(states) if i == rank or (rank == 0 and i >= world)]
        for name in states[0]["sums"]:
            total = sum((state["sums"][name] for state in mine), torch.zeros(()))
            means.sums[name] = total.to(device)
        means.samples = sum(state["samples"] for state in mine)
        return means

    def result(self) -> Row:
        """Return the means over all processes."""
        if not self.sums:
            return {}
        totals = torch.stack([*self.sums.values()])
        counts = torch.full_like(totals, self.samples)
        if distributed.world_size() > 1:
            dist.all_reduce(totals)
            dist.all_reduce(counts)
        return dict(zip(self.sums, (totals / counts).tolist(), strict=True))
