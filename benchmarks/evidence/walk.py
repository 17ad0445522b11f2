"""List the library's files that a batch crosses in ``fit(acl, images)``, from the call to the updated weights.

Command: ``python -m benchmarks.evidence.walk``. Seconds on a CPU. Prints each file at its first call, with the floor of
its room (docs of the layout: ``tests/test_layering.py``), then every call from a lower floor to a higher one. The
objective that a learner passes to its attack is such a call by design; any other one is a fault.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from types import FrameType

import torch
from torch import nn

import advcontrast
from advcontrast import ACLTrainer, ContrastivePairAugment, PGDAttack, convert_to_dual_bn
from advcontrast.engine import fit

ROOT = Path(advcontrast.__file__).parent
FLOORS = [["distributed"], ["functional", "data", "models"], ["attacks", "augment", "losses", "norm", "optim"]]
FLOORS += [["surgery"], ["strategies", "engine"], ["evaluation"], ["adapters"]]


def floor(name: str) -> int:
    """Return the floor of a file, 0 for the private modules of the root."""
    room = name.split("/")[0].removesuffix(".py")
    return next((number for number, rooms in enumerate(FLOORS, 1) if room in rooms), 0)


def walk() -> tuple[list[str], set[tuple[str, str]]]:
    """Train one step; return the files in the order of their first call, and the calls from a lower floor."""
    encoder = nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    model = convert_to_dual_bn(encoder)
    acl = ACLTrainer(model, attack=PGDAttack(steps=2), augment=ContrastivePairAugment(16))
    images = torch.randint(0, 256, (8, 3, 16, 16), dtype=torch.uint8)
    names = {str(path): str(path.relative_to(ROOT)) for path in ROOT.rglob("*.py")}
    crossed: dict[str, None] = {}
    upwards: set[tuple[str, str]] = set()

    def note(frame: FrameType, event: str, _: object) -> None:
        name = names.get(frame.f_code.co_filename)
        if event != "call" or name is None:
            return
        crossed[name] = None
        caller = frame.f_back
        while caller is not None and caller.f_code.co_filename not in names:
            caller = caller.f_back
        if caller is not None:
            above = names[caller.f_code.co_filename]
            if floor(above) < floor(name):
                upwards.add((f"{above}:{caller.f_code.co_name}", f"{name}:{frame.f_code.co_name}"))

    sys.setprofile(note)
    try:
        fit(acl, images, epochs=1, progress=False)
    finally:
        sys.setprofile(None)
    return list(crossed), upwards


def main() -> None:
    """Print the files that a batch crosses."""
    argparse.ArgumentParser(description=__doc__.split("\n")[0]).parse_args()
    files, upwards = walk()
    for number, name in enumerate(files, 1):
        print(f"{number:2} {floor(name)} {name}")
    print("\n".join(f"upwards: {caller} -> {callee}" for caller, callee in sorted(upwards)) or "no call upwards")


if __name__ == "__main__":
    main()
