"""List the files of the library that process a batch in ``fit(acl, images)``, from the data to the weights.

Command: ``python -m benchmarks.evidence.walk``. Seconds on a CPU. Prints the files in the order of their first call,
each with the level of its subpackage (see ``tests/repo/test_layering.py``): those of one step, from a batch to the
next, and those of the whole call with its checks and preparations. Then it prints every call from a lower to a higher
level. Two kinds are intended: the objective that a learner passes to its attack, and methods that modules of the
network override.
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


class Walk:
    """Recorder of the calls into the library.

    Attributes:
        whole: files of the whole call.
        step: files of the second step, from its batch to the next one.
        upwards: calls from a lower to a higher level, as pairs of ``file:function``.
    """

    def __init__(self) -> None:
        self.whole: dict[str, None] = {}
        self.step: dict[str, None] = {}
        self.upwards: set[tuple[str, str]] = set()
        self._in_step = False
        self._names = {str(path): str(path.relative_to(ROOT)) for path in ROOT.rglob("*.py")}

    def schedule(self, step: int) -> float:
        """Record the files from the beginning of step 1 to that of step 2."""
        self._in_step = step == 1
        return 1.0

    def record(self, frame: FrameType, event: str, _: object) -> None:
        """Record a call; for ``sys.setprofile``."""
        name = self._names.get(frame.f_code.co_filename)
        if event != "call" or name is None:
            return
        self.whole[name] = None
        if self._in_step:
            self.step[name] = None
        caller = frame.f_back
        while caller is not None and caller.f_code.co_filename not in self._names:
            caller = caller.f_back
        if caller is not None and floor(above := self._names[caller.f_code.co_filename]) < floor(name):
            self.upwards.add((f"{above}:{caller.f_code.co_name}", f"{name}:{frame.f_code.co_name}"))


def floor(name: str) -> int:
    """Return the level of a file, 0 for the private modules of the root."""
    room = name.split("/")[0].removesuffix(".py")
    return next((number for number, rooms in enumerate(FLOORS, 1) if room in rooms), 0)


def walk() -> Walk:
    """Train three steps and return the record."""
    encoder = nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    acl = ACLTrainer(convert_to_dual_bn(encoder), attack=PGDAttack(steps=2), augment=ContrastivePairAugment(16))
    images = torch.randint(0, 256, (24, 3, 16, 16), dtype=torch.uint8)
    found = Walk()
    sys.setprofile(found.record)
    try:
        fit(acl, images, epochs=1, batch_size=8, schedule=found.schedule, progress=False)
    finally:
        sys.setprofile(None)
    return found


def main() -> None:
    """Print the files and calls."""
    argparse.ArgumentParser(description="Files that a batch crosses in fit(acl, images).").parse_args()
    found = walk()
    for title, files in (("one step", found.step), ("the whole call", found.whole)):
        helpers = sum(floor(name) == 0 for name in files)
        print(f"{title}: {len(files) - helpers} files and {helpers} helpers of the root")
        print("\n".join(f"  {floor(name)} {name}" for name in files))
    for caller, callee in sorted(found.upwards):
        print(f"upwards: {caller} -> {callee}")


if __name__ == "__main__":
    main()
