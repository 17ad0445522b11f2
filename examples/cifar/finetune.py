"""Fine-tune a pre-trained encoder, or a random one, to classify: TRADES or standard training (Tables 1 and 3, Fig. 3).

    python examples/cifar/finetune.py --encoder runs/DS/final.safetensors --branch adv --out runs/DS-trades
    python examples/cifar/finetune.py --encoder random --out runs/RI-trades
    python examples/cifar/finetune.py --encoder runs/DS/final.safetensors --labels 0.01 --out runs/DS-1percent

Trains on 90 % of the training images, keeps the epoch with the best robust accuracy on the other 10 % (standard
accuracy for standard training), and reports that one on the test images. ``metrics.csv`` has the curve.

Presets: ``paper`` is the text's 25 epochs with decays after 15 and 20, ``code`` the README's 100 epochs with decays at
the start of epochs 40 and 60, ``fast`` 10 epochs. Wall time and accuracy at full size: not yet run.
"""

from __future__ import annotations

from dataclasses import dataclass

from classify import FAST, PAPER, Supervised, train_classifier
from flags import flag, start

CODE = {"epochs": 100, "batch_size": 128, "milestones": "39,59"}


@dataclass(kw_only=True)
class Settings(Supervised):
    """What fine-tuning can be told beside the common flags."""

    train: str = flag("trades", "what to train with", "trades", "standard")


def main(settings: Settings) -> None:
    """Fine-tune the whole network."""
    train_classifier(settings, adversarial=settings.train == "trades", frozen=False)


if __name__ == "__main__":
    start(main, Settings, {"paper": PAPER, "code": CODE, "fast": FAST})
