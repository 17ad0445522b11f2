"""Flags of ``quickstart.py``, and the images that they name."""

from __future__ import annotations

import argparse
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from advcontrast import PGDAttack
from advcontrast.data import ImageSet, cifar10, image_folder

DATA = ("embedded", "cifar10 [DIR]", "folder PATH")
CACHE = Path("~/.cache/advcontrast")  # for decoded images
CLASSES = ("T-shirt", "trousers", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")


@dataclass
class Settings:
    """Every field is a flag of the same name."""

    data: list[str] = field(default_factory=lambda: ["embedded"], metadata={"help": " | ".join(DATA)})
    out: str = field(default="runs/quickstart", metadata={"help": "folder for the results"})
    seeds: int = field(default=1, metadata={"help": "repetitions, each with its own weights, labels and noise"})
    epochs: int = field(default=8, metadata={"help": "epochs of pre-training"})
    batch_size: int = field(default=125, metadata={"help": "images per step of pre-training"})
    limit: int = field(default=5000, metadata={"help": "training images to use, without labels"})
    labels: int = field(default=100, metadata={"help": "training images whose labels are used, equally many per class"})
    steps: int = field(default=100, metadata={"help": "steps of fine-tuning; half as many for linear classifiers"})
    device: str = field(default="auto", metadata={"help": "auto | cpu | cuda | ..."})
    jobs: int = field(default=0, metadata={"help": "encoders to train at a time; 0: one per CPU core or accelerator"})


@dataclass
class Task:
    """The images of a run, and the radius of the attacks on them."""

    train: ImageSet
    test: ImageSet
    eps: float

    @property
    def size(self) -> tuple[int, int]:
        """Return height and width of the images."""
        return self.train.x.shape[2], self.train.x.shape[3]

    def attack(self, steps: int) -> PGDAttack:
        """Return PGD with the paper's ratio of step size to radius, or longer steps if there are few."""
        return PGDAttack(eps=self.eps, step_size=self.eps * max(1 / 4, 1.5 / steps), steps=steps)

    def few_labels(self, count: int, seed: int) -> ImageSet:
        """Return a random subset of training images whose labels are used, with equally many of each class."""
        y, classes = self.train.y.cpu(), range(len(self.train.classes))
        order = torch.randperm(len(y), generator=torch.Generator().manual_seed(seed))
        return self.train.subset(torch.cat([order[y[order] == c][: count // len(classes)] for c in classes]))


def parse(text: str | None) -> Settings:
    """Return the flags of the command line; ``text`` is printed by ``--help``."""
    parser = argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    for f in fields(Settings):
        default = f.default_factory() if f.default is MISSING else f.default
        kind = {"nargs": "+"} if isinstance(default, list) else {"type": type(default)}
        parser.add_argument(f"--{f.name.replace('_', '-')}", default=default, **kind, **f.metadata)
    return Settings(**vars(parser.parse_args()))


def load_task(settings: Settings) -> Task:
    """Read the images that ``--data`` names.

    Raises:
        ValueError: a flag is out of its range, or training and test images have different classes.
    """
    for name, least in {"seeds": 1, "epochs": 1, "limit": 1, "steps": 1, "jobs": 0}.items():
        require(getattr(settings, name) >= least, f"--{name} of at least {least}", getattr(settings, name))
    kind, *where = settings.data
    known = (kind, len(where)) in {("embedded", 0), ("cifar10", 0), ("cifar10", 1), ("folder", 1)}
    require(known, f"--data {' or '.join(DATA)}", " ".join(settings.data))
    if kind == "embedded":
        train, test = embedded()
    elif kind == "cifar10":
        train, test = (cifar10(where[0] if where else "data", train=split) for split in (True, False))
    else:
        train, test = (image_folder(Path(where[0]) / split, cache=CACHE) for split in ("train", "test"))
        test = test.subset(shuffled(len(test))[: max(settings.limit // 5, 1)])
    same = train.classes == test.classes
    require(same, "the same classes in train and test", f"{train.classes}, {test.classes}")
    train = train.subset(shuffled(len(train))[: settings.limit])
    size, labels, classes = settings.batch_size, settings.labels, len(train.classes)
    require(2 <= size <= len(train), f"--batch-size from 2 to {len(train)} images", size)
    most = classes * int(torch.bincount(train.y, minlength=classes).min())
    require(classes <= labels <= most, f"--labels from {classes} to {most}", labels)
    device = settings.device
    if device == "auto":
        device = str(torch.accelerator.current_accelerator() or "cpu") if torch.accelerator.is_available() else "cpu"
    return Task(train.to(device), test.to(device), eps=0.1 if kind == "embedded" else 8 / 255)


def require(valid: bool, expected: str, got: object) -> None:
    """Raise a ``ValueError`` for a flag that is not valid."""
    if not valid:
        raise ValueError(f"expected {expected}, got {got}.")


def shuffled(n: int) -> Tensor:
    """Return the numbers below n in a fixed random order."""
    return torch.randperm(n, generator=torch.Generator().manual_seed(0))


def embedded() -> list[ImageSet]:
    """Return 5,000 training and 1,000 test images of Fashion-MNIST, halved to 14 x 14 pixels."""
    with np.load(Path(__file__).parent / "data" / "fashion-mini.npz") as file:
        arrays = {name: torch.from_numpy(file[name]) for name in file.files}
    x = {name: F.avg_pool2d(arrays[f"{name}_images"][:, None].float(), 2).round() for name in ("train", "test")}
    return [ImageSet(x[name].to(torch.uint8), arrays[f"{name}_labels"].long(), CLASSES) for name in x]
