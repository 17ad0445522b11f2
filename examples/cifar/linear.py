"""Train a linear classifier on a frozen encoder, on clean or on adversarial images (Table 5).

    python examples/cifar/linear.py --encoder runs/DS/final.safetensors --branch adv --out runs/DS-linear
    python examples/cifar/linear.py --encoder runs/DS/final.safetensors --branch clean --train adversarial --out runs/x

The encoder stays in eval mode: neither its weights nor its running statistics move. ``adversarial`` is the TRADES loss,
as in the authors' runs, unless ``--loss`` or the preset says otherwise. Epochs are selected and reported as by
finetune.py.

Presets: ``paper`` decays after epochs 15 and 20, ``code`` at their start, ``fast`` has 10 epochs. ``robustssl`` and
``dynacl2023`` have the numbers that this benchmark and this paper use for CIFAR-10 (with ``--lr 0.05`` for CIFAR-100);
they train on all images and take the last epoch, which is not done here. See ``advcontrast.evaluation.protocols``
for sources. Wall time and accuracy at full size: not yet run.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from classify import Supervised, preset_of, train_classifier
from flags import flag, start

from advcontrast.evaluation.protocols.presets import protocol


def preset(name: str) -> dict[str, Any]:
    """Return the numbers of linear evaluation, which are the same for clean and for adversarial images."""
    adversarial = protocol(name, "ALF")
    return {**preset_of(adversarial), "loss": adversarial.loss}


PAPER = preset("acl2020")
CODE = {**PAPER, "milestones": "14,19"}
FAST = {**PAPER, "epochs": 10, "milestones": "6,8"}
PRESETS = {"paper": PAPER, "code": CODE, "fast": FAST} | {name: preset(name) for name in ("robustssl", "dynacl2023")}


@dataclass(kw_only=True)
class Settings(Supervised):
    """What linear evaluation can be told beside the common flags."""

    train: str = flag("standard", "images to train on", "standard", "adversarial")
    loss: str = flag("trades", "what adversarial training minimises", "trades", "adversarial-ce")


def main(settings: Settings) -> None:
    """Train the last layer."""
    train_classifier(settings, loss=settings.loss if settings.train == "adversarial" else "ce", frozen=True)


if __name__ == "__main__":
    start(main, Settings, PRESETS)
