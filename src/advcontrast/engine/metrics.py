"""What a run reports: means over an epoch, a CSV file, TensorBoard."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from .. import distributed
from .._atomic_io import replace
from .checkpoint.errors import writing

Row = dict[str, float]


class Means:
    """Means of scalars over the samples of an epoch. They stay on the device until they are asked for."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.samples = 0

    def add(self, terms: Mapping[str, Tensor], samples: int) -> None:
        """Count the means of a batch of so many samples."""
        for name, value in terms.items():
            self.sums[name] = self.sums.get(name, 0) + value.detach().float() * samples
        self.samples += samples

    def count(self, name: str, samples: int) -> None:
        """Count samples, those of the batch at hand or some of them: the mean is their share."""
        one = torch.full((), float(samples), device=next(iter(self.sums.values())).device)
        self.sums[name] = self.sums.get(name, 0) + one

    def loss(self) -> float:
        """Return the mean loss in this process."""
        return self.sums["loss"].item() / self.samples

    def state(self) -> dict[str, Any]:
        """Return what this process has counted, as plain data."""
        return {"sums": {name: value.cpu() for name, value in self.sums.items()}, "samples": self.samples}

    @classmethod
    def of(cls, states: Sequence[Mapping[str, Any]], device: torch.device) -> Means:
        """Go on from what :meth:`state` returned in every process; the first one takes what no process is left for."""
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


def write_csv(path: Path, rows: Sequence[Row]) -> None:
    """Write the rows as a table, whole or not at all. A column that a row lacks stays empty.

    Raises:
        CheckpointWriteError: the disk is full, read-only or failing. The table is what it was before.
    """
    text = io.StringIO(newline="")
    table = csv.DictWriter(text, list(dict.fromkeys(name for row in rows for name in row)))
    table.writeheader()
    table.writerows(rows)
    with writing(path):
        replace(path, text.getvalue().encode(errors="backslashreplace"))
