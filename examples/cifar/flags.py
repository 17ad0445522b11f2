"""The flags that every script has, presets, and how a script ends when its user made a mistake."""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist

_OURS = re.compile(r"^[^\n]+: expected [^\n]+, got [^\n]+\.$")
Settings = TypeVar("Settings", bound="Common")


def flag(default: Any, text: str, *choices: str) -> Any:
    """Return a dataclass field that becomes a flag."""
    return field(default=default, metadata={"help": text, "choices": choices or None})


@dataclass(kw_only=True)
class Common:
    """What every script can be told. Each field is a flag of the same name."""

    data: str = flag("cifar10", "images", "cifar10", "cifar100", "folder", "embedded")
    data_dir: str = flag(
        "data", "where CIFAR is or is downloaded to; or PATH with PATH/train/<class>/*, PATH/test/<class>/*"
    )
    out: str = flag("", "folder of this run (required)")
    seed: int = flag(1, "of weights, splits, order and noise")
    epochs: int = flag(0, "passes over the training images")
    batch_size: int = flag(0, "images a step, of all processes together")
    arch: str = flag(
        "resnet18", "network: resnet18, resnet34, resnet50, wide_resnet34_10, or a torchvision or timm name"
    )
    width: int = flag(0, "channels of the network's first stage; 0 for the usual number")
    limit: int = flag(0, "use the first so many training images of a seeded shuffle; 0 for all")
    test_limit: int = flag(0, "likewise for the test images")
    eps: float = flag(0.0, "radius of all attacks; 0 for 8/255, or 0.1 with the embedded images of 16 x 16 pixels")
    device: str = flag("auto", "auto, cpu, cuda, ...")
    amp: str = flag("off", "half precision", "off", "bf16")
    compile: bool = flag(False, "compile the network")
    tensorboard: bool = flag(False, "write metrics for TensorBoard too")
    save_every: int = flag(0, "steps between checkpoints beside those after each epoch; 0 for none")
    preset: str = flag("", "settings as a whole; other flags override it")

    @property
    def radius(self) -> float:
        """Return the radius of all attacks."""
        return self.eps or (0.1 if self.data == "embedded" else 8 / 255)


class Parser(argparse.ArgumentParser):
    """A parser whose complaints take one line."""

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
            options |= {"type": type(f.default), "choices": choices}
        parser.add_argument(f"--{f.name.replace('_', '-')}", **options)
    given = {name: value for name, value in vars(parser.parse_args(argv)).items() if value is not MISSING}
    preset = given.get("preset", next(iter(presets)))
    settings = kind(**{**presets[preset], **given, "preset": preset})
    for name in ("seed", "epochs", "batch_size", "width", "limit", "test_limit", "save_every"):
        least = 1 if name == "epochs" else 0
        if getattr(settings, name) < least:
            parser.error(f"expected --{name.replace('_', '-')} of at least {least}, got {getattr(settings, name)}.")
    if not 0 <= settings.eps <= 1:
        meant = f" Did you mean {settings.eps:g}/255 = {settings.eps / 255:.4f}?" if settings.eps > 1 else ""
        parser.error(f"expected --eps from 0 to 1, the range of the pixels, got {settings.eps:g}.{meant}")
    if not settings.out:
        parser.error("expected --out DIR, got nothing. Pass a folder for the results.")
    return settings


def start(main: Callable[[Settings], None], kind: type[Settings], presets: Mapping[str, Mapping[str, Any]]) -> None:
    """Run a script. A mistake of its user ends it with one line and status 2."""
    settings = parse(kind, presets, sys.modules[main.__module__].__doc__ or "", sys.argv[1:])
    try:
        if "WORLD_SIZE" in os.environ:  # started by torchrun
            dist.init_process_group()
        torch.manual_seed(settings.seed)
        main(settings)
    except Exception as error:
        # The library and these scripts word a mistake of the user in one way. Anything else is a bug with a traceback.
        if not _OURS.match(str(error)):
            raise
        print(f"{Path(sys.argv[0]).name}: {error}", file=sys.stderr)
        sys.exit(2)
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def device_of(settings: Common) -> torch.device:
    """Return the device to run on; each process of ``torchrun`` has its own."""
    name = settings.device
    if name == "auto":
        name = torch.accelerator.current_accelerator().type if torch.accelerator.is_available() else "cpu"
    try:
        device = torch.device(name)
        if device.type != "cpu" and device.index is None:
            device = torch.device(device.type, int(os.environ.get("LOCAL_RANK", "0")))
            torch.accelerator.set_device_index(device.index)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, ImportError) as error:
        reason = str(error).partition("\n")[0].rstrip(".")
        raise ValueError(
            f"--device: expected a device of this machine, got {name!r} ({reason}). Try --device cpu."
        ) from error
    return device
