"""Evaluate a classifier under common corruptions (Figure 2).

    python examples/cifar/corruptions.py --model runs/DS-trades/final.safetensors --out runs/DS-corruptions
    python examples/cifar/corruptions.py --model runs/DS-trades/final.safetensors --cifar10c CIFAR-10-C --out runs/DS-c

``--cifar10c`` uses the 19 files of CIFAR-10-C, the paper's "unforeseen attacks". Otherwise corruptions of the test
images are computed from published constants; these are not the files of CIFAR-10-C. The result is the accuracy in [0,
1], averaged over severities.
"""

from __future__ import annotations

from dataclasses import dataclass

from _common.flags import Common, flag, start
from _common.images import load
from _common.load_models import BATCH, classifier_from, network_of
from _common.run_folder import begin
from advcontrast.data import cifar10_c
from advcontrast.evaluation import accuracy, corruption_accuracy
from advcontrast.evaluation.accuracy import corrupted

NOISES = ("gaussian_noise", "shot_noise", "impulse_noise", "speckle_noise")
OTHERS = ("gaussian_blur", "contrast", "brightness", "saturate", "pixelate", "jpeg_compression")
SEVERITIES = (1, 3, 5)


@dataclass(kw_only=True)
class Settings(Common):
    """Flags of the test on corruptions."""

    model: str = flag("", "final.safetensors of a classifier (required)")
    cifar10c: str = flag("", "folder of CIFAR-10-C; empty for computed corruptions")


def main(settings: Settings) -> None:
    """Test, and write one accuracy for each corruption."""
    images = load(settings)
    model = classifier_from(settings, images)
    files = cifar10_c(settings.cifar10c) if settings.cifar10c else None
    run = begin(settings, images)
    if run is None:
        return
    clean = list(images.test.batches(BATCH))
    if files is not None:
        conditions = ((name, severity, part.batches(BATCH)) for name, severity, part in files)
    else:
        conditions = corrupted(clean, names=(*NOISES, *OTHERS), severities=SEVERITIES, device=images.test.x.device)
    found = corruption_accuracy(model, conditions)
    verdicts, mean = {"TA": accuracy(model, clean)}, {"mean": found.mean}
    network = network_of(settings, classes=images.classes)
    run.finish(model, network, images.test, verdicts, corruptions=found.by_corruption, training=mean)


if __name__ == "__main__":
    start(main, Settings, {"default": {"epochs": 1}})
