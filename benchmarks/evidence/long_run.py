"""Train for hours and record memory, open files, live tensors and the cost of a step.

    python -m benchmarks.evidence.long_run --minutes 120 --out benchmarks/results/long_run.md

The run repeats all parts of training: dual-stream steps with their attack, a short last batch, an evaluation under
attack, and a checkpoint and a row of metrics after each epoch. Epochs are small, so that there are thousands. Time is
measured in CPU seconds of this process, which excludes other work on the machine. The run is ended as a scheduler
would end it, by SIGTERM.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import signal
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from advcontrast import ACLTrainer, ContrastivePairAugment, PGDAttack, convert_to_dual_bn
from advcontrast.engine import fit
from advcontrast.evaluation import robust_accuracy
from advcontrast.models import acl_head, resnet18
from advcontrast.optim import LARS
from benchmarks.common import conditions, markdown_table
from benchmarks.evidence import fashion

ROWS = 24
STEPS = 40  # an epoch
WARM = 0.1  # share of the run in which caches and the allocator may still fill


@dataclass(frozen=True)
class Reading:
    """Resources of the process at a moment of the run."""

    minutes: float
    steps: int
    cpu_seconds: float
    resident: float  # MiB
    files: int
    tensors: int


class Watch:
    """The evaluation of the run, which also takes readings, and ends the run when its time is over."""

    def __init__(self, classifier: nn.Module, x: torch.Tensor, y: torch.Tensor, minutes: float) -> None:
        self.classifier = classifier
        self.batch = (x, y)
        self.minutes = minutes
        self.started = time.monotonic()
        self.readings: list[Reading] = []

    def __call__(self, epoch: int) -> dict[str, float]:
        """Test under attack after an epoch."""
        attack = PGDAttack(eps=0.1, step_size=0.05, steps=2)
        accuracy = robust_accuracy(self.classifier, [self.batch], attack)
        passed = (time.monotonic() - self.started) / 60
        if passed >= len(self.readings) * self.minutes / ROWS:
            self.readings.append(read(passed, epoch * STEPS))
        if passed >= self.minutes:
            signal.raise_signal(signal.SIGTERM)
        return {"val_ra": accuracy.accuracy}


def read(minutes: float, steps: int) -> Reading:
    """Take a reading of this process."""
    gc.collect()
    lines = Path("/proc/self/status").read_text().splitlines()
    resident = next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS"))
    tensors = sum(type(thing) in (torch.Tensor, nn.Parameter) for thing in gc.get_objects())
    return Reading(minutes, steps, time.process_time(), resident, len(list(Path("/proc/self/fd").iterdir())), tensors)


def train(minutes: float, folder: Path) -> list[Reading]:
    """Pre-train a small dual network on the embedded images until the time is over; return the readings."""
    train_images, test_images = fashion.images("train"), fashion.images("test")
    encoder = resnet18(num_classes=0, width=4, in_channels=1, normalize=None)
    model = convert_to_dual_bn(nn.Sequential(encoder, acl_head(encoder.num_features)))
    attack = PGDAttack(eps=0.1, step_size=0.05, steps=2)
    acl = ACLTrainer(model, attack=attack, augment=ContrastivePairAugment(16))
    classifier = nn.Sequential(encoder, nn.Linear(encoder.num_features, 10))
    watch = Watch(classifier, test_images.x[:64].float() / 255, test_images.y[:64], minutes)
    try:
        optimizer = LARS(acl.parameters(), lr=0.1)
        fit(
            acl,
            train_images.x[: 32 * STEPS - 6],
            epochs=10**6,
            batch_size=32,
            optimizer=optimizer,
            evaluate=watch,
            folder=folder,
        )
    except SystemExit as end:
        if end.code != 0:
            raise
    return watch.readings


def report(readings: list[Reading]) -> str:
    """Return the readings as Markdown, with the growth of memory and of the cost of a step."""
    if len(readings) < 3:
        raise SystemExit(f"long_run: expected three readings at least, got {len(readings)}. Pass more --minutes.")
    pairs = list(itertools.pairwise(readings))
    costs = [1e3 * (b.cpu_seconds - a.cpu_seconds) / (b.steps - a.steps) for a, b in pairs]
    settled = [reading for reading in readings if reading.minutes >= WARM * readings[-1].minutes]
    slope = statistics.linear_regression([r.minutes / 60 for r in settled], [r.resident for r in settled]).slope
    quarter = max(1, len(costs) // 4)
    first, last = statistics.median(costs[:quarter]), statistics.median(costs[-quarter:])
    head = ["minutes", "steps", "CPU ms/step", "resident MiB", "open files", "live tensors"]
    rows = [
        [f"{r.minutes:.0f}", f"{r.steps:,}", f"{cost:.1f}", f"{r.resident:,.1f}", str(r.files), str(r.tensors)]
        for r, cost in zip(readings[1:], costs, strict=True)
    ]
    summary = (
        f"{readings[-1].steps:,} steps in {readings[-1].minutes:.0f} minutes, with an evaluation and a checkpoint "
        f"every {STEPS} steps. After the first {WARM:.0%} of the run resident memory changed by {slope:+.2f} MiB per "
        f"hour. A step took {first:.1f} CPU ms in the first quarter and {last:.1f} in the last "
        f"({last / first - 1:+.1%})."
    )
    return f"# A long run\n\n{conditions(__spec__.name)}\n\n{summary}\n\n{markdown_table(head, rows)}\n"


def main() -> None:
    """Run, and write the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=120, help="how long to train")
    parser.add_argument("--out", type=Path, help="file for the report; by default it is only printed")
    given = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        readings = train(given.minutes, Path(folder))
    text = report(readings)
    print(text)
    if given.out is not None:
        given.out.parent.mkdir(parents=True, exist_ok=True)
        given.out.write_text(text)


if __name__ == "__main__":
    main()
