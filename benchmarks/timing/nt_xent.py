"""The NT-Xent loss of N pairs, forward and backward: the formula of the ACL reference code, two libraries, and ours.

Every candidate gets the same float32 embeddings of 128 features at temperature 0.5. Before the timing its loss and its
gradients, without TF32, are compared with a float64 evaluation of the definition, in row blocks, and must agree to 2e-6
of the loss and 2e-5 of the largest entry of the gradient; the table shows both deviations.

The reference formula divides all products of the rows by the products of their lengths, exponentiates, takes
exp(1 / temperature) off each row's sum for the row itself, and averages over the 2N anchors. The cost of
pytorch-metric-learning's loss grows with the cube of N, that of the others with the square. Only the tiled form needs
less memory than that.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from advcontrast import NTXentLoss
from advcontrast._modes import without_tf32
from benchmarks.timing.sidebyside import Candidate, Settings, Table, agree

FEATURES = 128
TEMPERATURE = 0.5
PAIRS = (256, 512, 1024, 4096, 32768)
QUICK = (16, 64)
MOST_DENSE = 4096  # pairs whose similarities fit into the memory of a small machine, several times
MOST_CUBIC = 256
MOST_REPEATS = 3  # where N is above MOST_DENSE
TILES = (256, 512)
Loss = Callable[[Tensor, Tensor], Tensor]


def tables(settings: Settings) -> list[Table]:
    """Return the one table, a setting for each number of pairs."""
    about = (
        f"D = {FEATURES} features in float32, temperature {TEMPERATURE}. One repetition is the loss of N "
        "pairs and its gradient. Agreement: deviation of the loss and of the gradient from the definition in float64, "
        "relative to the largest entry. Speed is relative to lightly, or to the first candidate if lightly is left out."
    )
    table = Table("NT-Xent, forward and backward", about, "pairs")
    losses = peers(table)
    table.skipped.append(f"pytorch-metric-learning up to N = {MOST_CUBIC}, dense candidates up to N = {MOST_DENSE}")
    for pairs in QUICK if settings.quick else PAIRS:
        large = pairs > MOST_DENSE
        most = {"pytorch-metric-learning": MOST_CUBIC}
        dense = {name: loss for name, loss in losses.items() if pairs <= most.get(name, MOST_DENSE)}
        tiles = TILES[-1:] if large else TILES
        tiled = {f"advcontrast, tile={tile}": NTXentLoss(TEMPERATURE, tile=tile) for tile in tiles}
        z1, z2 = views(pairs, settings.device)
        expected = definition(z1, z2)
        candidates = []
        for name, loss in (dense | tiled).items():
            step = partial(value_and_slopes, loss, z1, z2)
            with without_tf32():
                value, *slopes = step()
            off = agree(name, value, expected[0], 2e-6), agree(name, slopes, expected[1:], 2e-5)
            candidates.append(Candidate(name, step, ", ".join(off)))
        repeats = min(settings.repeats, MOST_REPEATS) if large else settings.repeats
        table.race(candidates, replace(settings, repeats=repeats), items=pairs, setting=f"N = {pairs}")
    return [table]


def views(pairs: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return embeddings whose partners have a cosine of about 0.7, the same in each run."""
    generator = torch.Generator().manual_seed(0)
    z1, noise = torch.randn(2, pairs, FEATURES, generator=generator).to(device)
    z2 = z1 + noise
    return z1.requires_grad_(), z2.requires_grad_()


def peers(table: Table) -> dict[str, Loss]:
    """Return the losses to compare by name, dense ones only."""
    losses: dict[str, Loss] = {}
    if lightly := table.peer("lightly.loss", "lightly"):
        losses["lightly"] = lightly.NTXentLoss(temperature=TEMPERATURE)
    losses["reference formula"] = reference
    if metric := table.peer("pytorch_metric_learning.losses", "pytorch-metric-learning"):
        losses["pytorch-metric-learning"] = metric.SelfSupervisedLoss(metric.NTXentLoss(temperature=TEMPERATURE))
    losses["advcontrast, dense"] = NTXentLoss(TEMPERATURE)
    return losses


def reference(z1: Tensor, z2: Tensor) -> Tensor:
    """Evaluate the formula of the reference code, whose pairs lie next to each other."""
    rows = torch.stack([z1, z2], 1).flatten(0, 1)
    lengths = rows.norm(dim=1)
    similarity = (rows @ rows.T) / (lengths[:, None] * lengths[None, :]).clamp_min(1e-8)
    exponentials = torch.exp(similarity / TEMPERATURE)
    partner = torch.arange(len(rows), device=rows.device) ^ 1
    positives = exponentials.gather(1, partner[:, None]).squeeze(1)
    others = exponentials.sum(1) - math.exp(1 / TEMPERATURE)
    return -torch.log(positives / others).mean()


def value_and_slopes(loss: Loss, z1: Tensor, z2: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the loss and its gradient with respect to both views."""
    value = loss(z1, z2)
    return value.detach(), *torch.autograd.grad(value, (z1, z2))


def definition(z1: Tensor, z2: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Evaluate the definition in float64, a few anchors at a time, and its gradient with it."""
    wide = torch.cat([z1, z2]).detach().double().requires_grad_()
    unit = F.normalize(wide)
    rows = unit.detach().requires_grad_()
    numbers = torch.arange(len(rows), device=rows.device)
    partner = numbers.roll(len(z1))
    total = rows.new_zeros(())
    for block in numbers.split(1024):
        logits = (rows[block] @ rows.T / TEMPERATURE).scatter(1, block[:, None], -math.inf)
        part = F.cross_entropy(logits, partner[block], reduction="sum") / len(rows)
        part.backward()
        total += part.detach()
    unit.backward(rows.grad)
    return total, *wide.grad.chunk(2)
