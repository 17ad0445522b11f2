"""Flags common to all scripts, presets, and the handling of wrong usage."""

from __future__ import annotations

import argparse
import math
import os
import re
import signal
import sys
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from advcontrast import distributed

_OURS = re.compile(r"^[^\n]+: expected [^\n]+, got [^\n]+\.$")
LEAST = {"epochs": 1, "teacher_epochs": 1, "evaluate_every": 1, "timeout": 1}  # of the flags that must not be 0
Settings = TypeVar("Settings", bound="Common")


def flag(default: Any, text: str, *choices: str) -> Any:
    """Return a dataclass field that becomes a flag."""
    return field(default=default, metadata={"help": text, "choices": choices or None})


@dataclass(kw_only=True)
class Common:
    """Settings of every script. Each field is a flag of the same name."""

    data: str = flag("cifar10", "images", "cifar10", "cifar100", "folder", "embedded")
    data_dir: str = flag(
        "data", "where CIFAR is or is downloaded to; or PATH with PATH/train/<class>/*, PATH/test/<class>/*"
    )
    out: str = flag("", "folder of this run (required)")
    seed: int = flag(1, "seed of weights, splits, order and noise")
    epochs: int = flag(0, "passes over the training images")
    batch_size: int = flag(0, "images per step, of all processes together")
    arch: str = flag(
        "resnet18", "network: resnet18, resnet34, resnet50, wide_resnet34_10, quickstart, or a torchvision or timm name"
    )
    width: int = flag(0, "channels of the network's first stage; 0 for the usual number")
    limit: int = flag(0, "use the first so many training images of a seeded shuffle; 0 for all")
    test_limit: int = flag(0, "likewise for the test images")
    eps: float | None = flag(None, "radius of all attacks; by default 8/255, or 0.1 for the embedded images of 16 x 16")
    device: str = flag("auto", "auto, cpu, cuda, ...")
    amp: str = flag("off", "half precision", "off", "bf16")
    compile: bool = flag(False, "compile the network")
    tensorboard: bool = flag(False, "write metrics for TensorBoard too")
    save_every: int = flag(0, "steps between checkpoints beside those after each epoch; 0 for none")
    timeout: int = flag(1800, "seconds after which processes of torchrun give up waiting for each other")
    preset: str = flag("", "settings as a whole; other flags override it")

    @property
    def radius(self) -> float:
        """Return the radius of all attacks."""
        if self.eps is not None:
            return self.eps
        return 0.1 if self.data == "embedded" else 8 / 255

    @property
    def step(self) -> float:
        """Return the usual length of an attack step, a quarter of the radius: 2/255 for 8/255."""
        return self.radius / 4 or 1 / 255


class Parser(argparse.ArgumentParser):
    """A parser whose errors take one line."""

    def error(self, message: str) -> Any:
        """End with one line instead of the usage."""
        self.exit(2, f"{self.prog}: {message}\n")


def parse(kind: type[Settings], presets: Mapping[str, Mapping[str, Any]], text: str, argv: list[str]) -> Settings:
    """Return the settings of a command line: defaults, overridden by a preset, overridden by flags."""
    parser = Parser(prog=Path(sys.argv[0]).name, description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    for f in fields(kind):
        choices = tuple(presets) if f.name == "preset" else f.metadata["choices"]
        options: dict[str, Any] = {"help": f.metadata["help"], "default": MISSING, "dest": f.name}
        if isinstance(f.default, bool):
            options["action"] = argparse.BooleanOptionalAction
        else:
            options |= {"type": float if f.default is None else type(f.default), "choices": choices}
        parser.add_argument(f"--{f.name.replace('_', '-')}", **options)
    given = {name: value for name, value in vars(parser.parse_args(argv)).items() if value is not MISSING}
    # A method has its own presets.
    names = (f"{given.get('method')}-{given.get('preset', 'paper')}", given.get("preset", next(iter(presets))))
    preset = next(name for name in names if name in presets)
    settings = kind(**{**presets[preset], **given, "preset": preset})
    if settings.batch_size < 2 and settings.batch_size != presets[preset].get("batch_size", 0):
        parser.error(f"expected --batch-size of at least 2, got {settings.batch_size}.")
    for f in fields(kind):
        value, least = getattr(settings, f.name), LEAST.get(f.name, 0)
        if not isinstance(value, str) and f.name != "eps" and not least <= value < math.inf:
            parser.error(f"expected a finite --{f.name.replace('_', '-')} of at least {least}, got {value:g}.")
    if settings.seed >= 2**63:
        parser.error(f"expected --seed below 2^63, got {settings.seed}.")
    if not 0 <= settings.radius <= 1:
        meant = f" Did you mean {settings.eps:g}/255 = {settings.radius / 255:.4f}?" if settings.radius > 1 else ""
        parser.error(f"expected --eps from 0 to 1, the range of the pixels, got {settings.eps:g}.{meant}")
    if not settings.out:
        parser.error("expected --out DIR, got nothing. Pass a folder for the results.")
    return settings


def start(main: Callable[[Settings], None], kind: type[Settings], presets: Mapping[str, Mapping[str, Any]]) -> None:
    """Run a script; wrong usage ends it with a one-line error and status 2."""
    settings = parse(kind, presets, sys.modules[main.__module__].__doc__ or "", sys.argv[1:])
    # The training loop saves before it ends. Elsewhere there is nothing to save.
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    try:
        remedy = "Look for the first message of all, and start all of them again"
        with distributed.explain_lost_peer("torchrun", remedy):
            if "WORLD_SIZE" in os.environ:  # started by torchrun
                distributed.init_from_torchrun(settings.timeout)
            torch.manual_seed(settings.seed)
            main(settings)
            if dist.is_initialized():  # after an error it would wait for the others
                dist.destroy_process_group()
    except Exception as error:
        # The library and these scripts word a mistake of the user in one way. Anything else is a bug with a traceback.
        if not _OURS.match(str(error)):
            raise
        print(f"{Path(sys.argv[0]).name}: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print(f"{Path(sys.argv[0]).name}: interrupted; start it again to go on", file=sys.stderr)
        sys.exit(130)
    finally:
        signal.signal(signal.SIGTERM, before)
