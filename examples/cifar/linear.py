"""Train a linear classifier on a frozen encoder, on clean or on adversarial images (Table 5).

    python examples/cifar/linear.py --encoder runs/DS/final.safetensors --branch adv --out runs/DS-linear
    python examples/cifar/linear.py --encoder runs/DS/final.safetensors --branch clean --train adversarial --out runs/x

The encoder stays in eval mode: neither its weights nor its running statistics move. ``adversarial`` is the TRADES loss,
as in the authors' runs. Epochs are selected and reported as by finetune.py.

Presets: ``paper`` decays after epochs 15 and 20, ``code`` at their start, ``fast`` has 10 epochs. Wall time and
accuracy at full size: not yet run.
"""

from __future__ import annotations

from dataclasses import dataclass

from classify import FAST, PAPER, Supervised, train_classifier
from flags import flag, start

CODE = {"epochs": 25, "batch_size": 128, "milestones": "14,19"}


@dataclass(kw_only=True)
class Settings(Supervised):
    """What linear evaluation can be told beside the common flags."""

    train: str = flag("standard", "images to train on", "standard", "adversarial")


def main(settings: Settings) -> None:
    """Train the last layer."""
    train_classifier(settings, adversarial=settings.train == "adversarial", frozen=True)


if __name__ == "__main__":
    start(main, Settings, {"paper": PAPER, "code": CODE, "fast": FAST})
