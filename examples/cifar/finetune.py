"""Fine-tune a pre-trained encoder, or a random one, to classify: TRADES or standard training (Tables 1 and 3, Fig. 3).

    python examples/cifar/finetune.py --encoder runs/DS/final.safetensors --branch adv --out runs/DS-trades
    python examples/cifar/finetune.py --encoder random --out runs/RI-trades
    python examples/cifar/finetune.py --encoder runs/DS/final.safetensors --labels 0.01 --out runs/DS-1percent

Trains on 90 % of the training images, keeps the epoch with the best robust accuracy on the other 10 % (standard
accuracy for standard training), and reports that one on the test images. ``metrics.csv`` has the curve.

Presets: ``paper`` is the text's 25 epochs with decays after 15 and 20, ``code`` the README's 100 epochs with decays at
the start of epochs 40 and 60, ``fast`` 10 epochs. ``robustssl`` and ``dynacl2023`` have the numbers of this benchmark
and of this paper, which train on all images, and both branches, and take the last epoch; that is not done here. See
``advcontrast.evaluation.protocols.presets`` for sources. Wall time and accuracy at full size: not yet run.
"""

from __future__ import annotations

from dataclasses import dataclass

from classify import ACL, Supervised, preset_of, train_classifier
from flags import flag, start

from advcontrast.evaluation.protocols.presets import protocol

PAPER = preset_of(ACL)
CODE = {**PAPER, "epochs": 100, "milestones": "39,59"}
FAST = {**PAPER, "epochs": 10, "milestones": "6,8"}
PRESETS = {"paper": PAPER, "code": CODE, "fast": FAST} | {
    name: preset_of(protocol(name, "AFF")) for name in ("robustssl", "dynacl2023")
}


@dataclass(kw_only=True)
class Settings(Supervised):
    """What fine-tuning can be told beside the common flags."""

    train: str = flag("trades", "what to train with", "trades", "standard")


def main(settings: Settings) -> None:
    """Fine-tune the whole network."""
    train_classifier(settings, loss="trades" if settings.train == "trades" else "ce", frozen=False)


if __name__ == "__main__":
    start(main, Settings, PRESETS)
