"""Test a classifier on images that no attack of its training has made: common corruptions (Figure 2).

    python examples/cifar/unforeseen.py --model runs/DS-trades/final.safetensors --out runs/DS-unforeseen
    python examples/cifar/unforeseen.py --model runs/DS-trades/final.safetensors --cifar10c CIFAR-10-C --out runs/DS-c

With ``--cifar10c`` on the 19 files of CIFAR-10-C, which are the paper's "unforeseen attacks". Without, on corruptions
of the test images that can be computed from published constants; they are named for what they are, and are not
CIFAR-10-C. The result is the accuracy in percent, averaged over severities.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from corruptions import cifar10_c, mean_accuracy
from experiment import EVALUATION_BATCH, begin
from flags import Common, flag, start
from images import load
from networks import about, classifier_from
from torch import Tensor

from advcontrast.evaluation import accuracy


@dataclass(kw_only=True)
class Settings(Common):
    """What this test can be told beside the common flags."""

    model: str = flag("", "final.safetensors of a classifier (required)")
    cifar10c: str = flag("", "folder of CIFAR-10-C; empty for computed corruptions")


def main(settings: Settings) -> None:
    """Test, and write one accuracy for each corruption."""
    images = load(settings)
    model = classifier_from(settings, images).to(images.test.x.device).eval()
    corrupted = cifar10_c(settings.cifar10c) if settings.cifar10c else None
    experiment = begin(settings)
    if experiment is None:
        return
    experiment.describe(images)
    if corrupted is not None:
        found = {name: accuracy(model, batches(x, y, images.test.x.device)).accuracy for name, x, y in corrupted}
    else:
        found = mean_accuracy(model, images.test, batch_size=EVALUATION_BATCH)
    results = {name: 100 * value for name, value in found.items()}
    results["mean"] = sum(results.values()) / len(results)
    experiment.finish(model, about(settings, classes=images.classes), **results)


def batches(x: Tensor, y: Tensor, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield batches of images in [0, 1], read from the file as they are needed."""
    for images, labels in zip(x.split(EVALUATION_BATCH), y.split(EVALUATION_BATCH), strict=True):
        yield images.to(device).float() / 255, labels.to(device)


if __name__ == "__main__":
    start(main, Settings, {"default": {"epochs": 1}})
