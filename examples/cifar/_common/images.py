"""Images of a run for training, validation and test, and the device that they are on."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional as F

from advcontrast.data import ImageSet, ImageStream, cifar10, cifar100, image_folder, train_validation_split
from advcontrast.engine import DataReader

from .flags import Common

CACHE = Path("~/.cache/advcontrast").expanduser()
CLASSES = ("T-shirt", "trousers", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")


@dataclass
class Images:
    """Images on the device of a run.

    Pre-training uses ``everything`` without labels. Classifiers train on the first part of it, ``train``, and are
    selected on the rest, ``validation``: the split of the ACL code. ``test`` is used only at the end of a run.
    """

    everything: ImageSet
    train: ImageSet
    validation: ImageSet
    test: ImageSet
    split: dict[str, Tensor]

    @property
    def size(self) -> int:
        """Return the side of the images."""
        return self.everything.x.shape[-1]

    @property
    def classes(self) -> int:
        """Return the number of classes."""
        return len(self.everything.classes)


def load(settings: Common) -> Images:
    """Read the images that the flags ask for."""
    device = device_of(settings)
    # The first process of a machine downloads or decodes what the others then find.
    others = os.environ.get("LOCAL_RANK", "0") != "0"
    if dist.is_initialized() and others:
        dist.barrier()
    train, test = _read(settings.data, Path(settings.data_dir))
    if dist.is_initialized() and not others:
        dist.barrier()
    if train.classes != test.classes:
        odd = sorted(set(train.classes) ^ set(test.classes))
        got = f"{len(train.classes)} in train and {len(test.classes)} in test, only one of which has {odd[0]!r}"
        raise ValueError(
            f"--data-dir: expected the same classes for training and test, got {got}. Compare the folders."
        )
    if len(train.classes) < 2:
        raise ValueError("--data-dir: expected at least 2 classes, got 1. Each class needs its own folder.")
    chosen = first(len(train), settings.limit, settings.seed, "--limit")
    train = train.subset(chosen)
    test = test.subset(first(len(test), settings.test_limit, settings.seed, "--test-limit"))
    if len(train) < 20:
        raise ValueError(f"--limit: expected at least 20 images to split, got {len(train)}. Pass a larger number.")
    ours, theirs = train_validation_split(len(train))
    split = {"train": chosen[ours], "validation": chosen[theirs]}
    parts = (train, train.subset(ours), train.subset(theirs), test)
    return Images(*(part.to(device) for part in parts), split=split)


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


def streamed(settings: Any, size: int) -> Any:
    """Return the reader of the images that ``--stream`` names."""
    return DataReader(ImageStream(settings.stream, size=size, unreadable=settings.unreadable), workers=settings.workers)


def _read(data: str, root: Path) -> tuple[ImageSet, ImageSet]:
    """Return the training and the test images of a data set."""
    if data == "embedded":
        return _embedded("train"), _embedded("test")
    if data == "folder":
        return image_folder(root / "train", cache=CACHE), image_folder(root / "test", cache=CACHE)
    read = cifar10 if data == "cifar10" else cifar100
    return read(root, train=True), read(root, train=False)


def first(n: int, limit: int, seed: int, name: str) -> Tensor:
    """Return the first ``limit`` indices of a seeded shuffle of n, or all n in order."""
    if not limit:
        return torch.arange(n)
    if limit > n:
        raise ValueError(f"{name}: expected at most {n} images, got {limit}. There are no more.")
    return torch.randperm(n, generator=torch.Generator().manual_seed(seed))[:limit]


def _embedded(split: str) -> ImageSet:
    """Return part of Fashion-MNIST: 28 x 28 pixels framed to 32 x 32, halved to 16 x 16, gray as RGB."""
    with np.load(Path(__file__).parents[2] / "data" / "fashion-mini.npz") as file:
        x, y = (torch.from_numpy(file[f"{split}_{name}"]) for name in ("images", "labels"))
    x = F.avg_pool2d(F.pad(x[:, None].float(), [2, 2, 2, 2]), 2).round().to(torch.uint8)
    return ImageSet(x.expand(-1, 3, -1, -1).contiguous(), y.long(), CLASSES)
