"""Count the messages between the processes of a step of ACL, and time the step on one process and on two.

    python -m benchmarks.evidence.scale                                # ResNet-18 of width 64 on CIFAR's size, PGD-5
    python -m benchmarks.evidence.scale --quick                        # tiny sizes, to check that everything runs
    python -m benchmarks.evidence.scale --out benchmarks/results/scale # the tables of docs/guides/scale.rst

The counts are exact and hold for any network of processes: every call of ``torch.distributed`` in the forward and the
backward pass of ``DistributedDataParallel(ACLTrainer)`` is recorded by a dispatch mode, with the bytes
that a process sends. The times were measured on this machine with two processes of one thread each,
and a network of a quarter of the width. A simulation computes the share of computation in the time of a step, if the
step takes COMPUTE seconds and all messages travel around a ring of processes without overlap.
"""

from __future__ import annotations

import argparse
import csv
import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils._python_dispatch import TorchDispatchMode

from advcontrast import ACLTrainer, NTXentLoss, PGDAttack, convert_to_dual_bn
from advcontrast.models import acl_head, backbone
from benchmarks.common import in_group

MODES = ("S2S", "A2A", "A2S", "DS")
COMPUTE, WORLDS, BANDWIDTHS = 0.5, (2, 8, 64), (1, 10, 100)  # s, processes, Gbit/s
LATENCY = 50e-6  # s a call and hop
IMAGES, FEATURES, WEIGHTS = 64, 512, 11_971_520  # of a process of the simulation, of ACL's head, of ResNet-18 with it
FLOAT, COUNTED = 4, 4  # bytes; images of a process that are enough to count with
Counts = dict[str, tuple[int, int]]


class Wire(TorchDispatchMode):
    """Counts calls of collectives by name, and the bytes that this process sends."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()
        self.bytes: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Count a collective, and run it."""
        if func.namespace == "c10d":
            name = func._schema.name.removeprefix("c10d::").strip("_")
            sent = args[1] if name == "allgather" else args[0]  # the first argument of a gather is its output
            self.calls[name] += 1
            self.bytes[name] += sum(tensor.nbytes for tensor in _tensors(sent))
        return func(*args, **(kwargs or {}))


def _tensors(value: Any) -> Iterable[Tensor]:
    return [value] if isinstance(value, Tensor) else [tensor for part in value for tensor in _tensors(part)]


def trainer(mode: str, *, steps: int, width: int, model: nn.Module | None = None) -> ACLTrainer:
    """Return a trainer for images of CIFAR's size, whose loss has negatives of all processes."""
    if model is None:
        encoder, features = backbone("resnet18", width=width)
        model = convert_to_dual_bn(nn.Sequential(encoder, acl_head(features)))
    return ACLTrainer(model, mode=mode, loss=NTXentLoss(gather=True), attack=PGDAttack(steps=steps))


def counted(acl: ACLTrainer, images: int, side: int = 32) -> Counts:
    """Return calls and bytes of each collective in a step, for a number of images in this process."""
    wrapped = DistributedDataParallel(acl)
    x1, x2 = torch.rand(2, images, 3, side, side)
    wrapped(x1, x2).loss.backward()  # DDP settles its buckets in the first step
    with Wire() as wire:
        wrapped(x1, x2).loss.backward()
    return {name: (wire.calls[name], wire.bytes[name]) for name in sorted(wire.calls)}


def seconds(acl: ACLTrainer, images: int, repeats: int) -> float:
    """Return the median time of a step."""
    wrapped = DistributedDataParallel(acl) if dist.get_world_size() > 1 else acl
    x1, x2 = torch.rand(2, images, 3, 32, 32)
    times = []
    for _ in range(repeats + 1):
        started = time.monotonic()
        wrapped(x1, x2).loss.backward()
        times.append(time.monotonic() - started)
    return median(times[1:])


def expected(world: int, images: int, features: int, losses: int, weights: int) -> Counts:
    """Return the counts of a step for a number of losses, including those of the attack's steps, and one bucket."""
    embeddings = 2 * images * features * FLOAT
    sums = losses * world * embeddings + weights * FLOAT
    return {"allgather": (losses, losses * embeddings), "allreduce": (losses + 1, sums)}


def efficiency(counts: Counts, world: int, bandwidth: float) -> float:
    """Return the share of computation in a step, if its messages went around a ring of processes."""
    hops = {"allreduce": 2 * (world - 1) / world, "allgather": world - 1}
    sent = sum(hops[name] * size for name, (_, size) in counts.items())
    calls = sum(n for n, _ in counts.values())
    return COMPUTE / (COMPUTE + 8 * sent / (1e9 * bandwidth) + LATENCY * calls * (world - 1))


def measured(given: argparse.Namespace) -> tuple[dict[str, Counts], dict[str, float]]:
    """Return the counts and the seconds of every mode, in a process of a group."""
    world = dist.get_world_size()
    share = given.batch // world
    counts = {}
    if world > 1:
        counts = {mode: counted(trainer(mode, steps=given.steps, width=given.width), COUNTED) for mode in MODES}
    narrow = {mode: trainer(mode, steps=given.steps, width=max(1, given.width // 4)) for mode in MODES}
    return counts, {mode: seconds(acl, share, given.repeats) for mode, acl in narrow.items()}


def main() -> None:
    """Count, time, and write both."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=32, help="images of all processes together")
    parser.add_argument("--width", type=int, default=64, help="channels of the network's first stage")
    parser.add_argument("--steps", type=int, default=5, help="of the attack")
    parser.add_argument("--repeats", type=int, default=3, help="steps that are timed")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to see that everything runs")
    parser.add_argument("--out", type=Path, help="folder for the tables; by default they are only printed")
    given = parser.parse_args()
    if given.quick:
        given.batch, given.width, given.repeats = 8, 4, 1
    found = {world: in_group(world, measured, given) for world in (1, 2)}
    names = sorted({name for counts in found[2][0].values() for name in counts})
    calls = [["Mode", *(f"{name}, calls" for name in names), *(f"{name}, kB" for name in names)]]
    speed = [["Mode", "1 process, ms", "2 processes, ms", "speed"]]
    for mode in MODES:
        row = [found[2][0][mode].get(name, (0, 0)) for name in names]
        calls.append([mode, *(str(n) for n, _ in row), *(f"{size / 1e3:,.1f}" for _, size in row)])
        one, two = (found[world][1][mode] for world in (1, 2))
        speed.append([mode, f"{1e3 * one:,.0f}", f"{1e3 * two:,.0f}", f"{one / two:.2f}"])
    ideal = [["Processes", *(f"{bandwidth} Gbit/s" for bandwidth in BANDWIDTHS)]]
    for world in WORLDS:
        step = expected(world, IMAGES, FEATURES, 5 + 2, WEIGHTS)
        shares = (efficiency(step, world, bandwidth) for bandwidth in BANDWIDTHS)
        ideal.append([str(world), *(f"{share:.0%}" for share in shares)])
    for name, table in (("collectives", calls), ("speed", speed), ("simulated", ideal)):
        print("\n".join(" | ".join(row) for row in table), end="\n\n")
        if given.out is not None:
            given.out.mkdir(parents=True, exist_ok=True)
            with (given.out / f"{name}.csv").open("w", newline="") as file:
                csv.writer(file).writerows(table)


if __name__ == "__main__":
    main()
