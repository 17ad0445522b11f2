"""Time a training step with glibc's default settings, and with settings that keep freed memory in the process.

    python -m benchmarks.evidence.allocator                                # ResNet-18 of width 16, 256 images, PGD-5
    python -m benchmarks.evidence.allocator --quick                        # a tiny size, to check that it runs
    python -m benchmarks.evidence.allocator --out benchmarks/results/allocator.md

Both settings take turns, each time in a new process, since glibc reads them when a process starts. Linux only.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import nn

from advcontrast import ACLTrainer, ContrastivePairAugment, NTXentLoss, PGDAttack, convert_to_dual_bn
from advcontrast._digest import digest
from advcontrast.models import resnet18, simclr_head
from benchmarks.common import conditions, markdown_table

KEEP = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(16 * 2**30),
    "MALLOC_TOP_PAD_": str(256 * 2**20),
}
ROUNDS = 3
HEAD = ("settings", "s/step", "page faults/step", "weights")


def steps(images: int, count: int) -> dict[str, Any]:
    """Return seconds and page faults of a step, measured after the first, and a digest of the weights."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = nn.Sequential(encoder := resnet18(0, width=16), simclr_head(encoder.num_features))
    augment = ContrastivePairAugment(32)
    acl = ACLTrainer(convert_to_dual_bn(model), loss=NTXentLoss(0.3), attack=PGDAttack(steps=5), augment=augment)
    optimizer = torch.optim.Adam(acl.parameters())
    x = torch.randint(0, 256, (images, 3, 32, 32), dtype=torch.uint8)
    seconds = []
    faults = 0
    for step in range(count + 1):
        if step == 1:
            faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        started = time.perf_counter()
        optimizer.zero_grad()
        acl(x).loss.backward()
        optimizer.step()
        seconds.append(time.perf_counter() - started)
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults
    weights = digest(*(weight.detach() for weight in acl.parameters()))
    return {"seconds": median(seconds[1:]), "faults": faults / count, "weights": weights}


def main() -> None:
    """Measure both settings in turn and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="8 images, one step")
    parser.add_argument("--out", type=Path, help="file for the table; by default it is only printed")
    given = parser.parse_args()
    images, count = (8, 1) if given.quick else (256, 3)
    default = {key: value for key, value in os.environ.items() if key not in KEEP}
    found: dict[str, list[dict[str, Any]]] = {"default": [], "keep freed memory": []}
    code = f"import json; from {__spec__.name} import steps; print(json.dumps(steps({images}, {count})))"
    for _ in range(ROUNDS):
        for name, environment in zip(found, (default, default | KEEP), strict=True):
            output = subprocess.run([sys.executable, "-c", code], env=environment, check=True, stdout=subprocess.PIPE)
            found[name].append(json.loads(output.stdout))
    first = found["default"][0]["weights"]
    rows = []
    for name, runs in found.items():
        equal = all(run["weights"] == first for run in runs)
        seconds, faults = (sorted(run[key] for run in runs) for key in ("seconds", "faults"))
        span = f"{median(seconds):.2f} ({seconds[0]:.2f}-{seconds[-1]:.2f})"
        rows.append((name, span, f"{median(faults):,.0f}", "bit-identical" if equal else "different"))
    torch.set_num_threads(1)  # as in the measured processes
    about = f"Images: {images}. Steps: {count} after the first. Median (range) of {ROUNDS} processes with each setting."
    text = f"# The allocator\n\n{conditions(__spec__.name)}\n\n{about}\n\n{markdown_table(HEAD, rows)}\n"
    print(text)
    if given.out is not None:
        given.out.write_text(text)


if __name__ == "__main__":
    main()
