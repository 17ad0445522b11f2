"""Test a classifier on images that no attack of its training has made: common corruptions (Figure 2).

    python examples/cifar/unforeseen.py --model runs/DS-trades/final.safetensors --out runs/DS-unforeseen
    python examples/cifar/unforeseen.py --model runs/DS-trades/final.safetensors --cifar10c CIFAR-10-C --out runs/DS-c

With ``--cifar10c`` on the 19 files of CIFAR-10-C, which are the paper's "unforeseen attacks". Without, on corruptions
of the test images that can be computed from published constants; they are named for what they are, and are not
CIFAR-10-C. The result is the accuracy in [0, 1], averaged over severities.
"""

from __future__ import annotations

from dataclasses import dataclass

from experiment import EVALUATION_BATCH, begin
from flags import Common, flag, start
from images import load
from networks import about, classifier_from

from advcontrast.data import cifar10_c
from advcontrast.evaluation import corruption_accuracy
from advcontrast.evaluation.accuracy import corrupted

NOISES = ("gaussian_noise", "shot_noise", "impulse_noise", "speckle_noise")
OTHERS = ("gaussian_blur", "contrast", "brightness", "saturate", "pixelate", "jpeg_compression")
SEVERITIES = (1, 3, 5)


@dataclass(kw_only=True)
class Settings(Common):
    """What this test can be told beside the common flags."""

    model: str = flag("", "final.safetensors of a classifier (required)")
    cifar10c: str = flag("", "folder of CIFAR-10-C; empty for computed corruptions")


def main(settings: Settings) -> None:
    """Test, and write one accuracy for each corruption."""
    images = load(settings)
    model = classifier_from(settings, images).to(images.test.x.device).eval()
    files = cifar10_c(settings.cifar10c) if settings.cifar10c else None
    experiment = begin(settings)
    if experiment is None:
        return
    experiment.describe(images)
    if files is not None:
        conditions = ((name, severity, part.batches(EVALUATION_BATCH)) for name, severity, part in files)
    else:
        clean, device = images.test.batches(EVALUATION_BATCH), images.test.x.device
        conditions = corrupted(clean, names=(*NOISES, *OTHERS), severities=SEVERITIES, device=device)
    found = corruption_accuracy(model, conditions)
    experiment.finish(model, about(settings, classes=images.classes), **found.by_corruption, mean=found.mean)


if __name__ == "__main__":
    start(main, Settings, {"default": {"epochs": 1}})
