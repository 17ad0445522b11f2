"""Train a linear classifier on a frozen encoder, on clean or on adversarial images (Table 5).

    python examples/cifar/linear.py --encoder runs/DS/final.safetensors --branch adv --out runs/DS-linear
    python examples/cifar/linear.py --encoder runs/DS/final.safetensors --branch clean --train adversarial --out runs/x

The encoder stays in eval mode: its weights and running statistics do not change. ``adversarial`` is the TRADES loss,
as in the authors' runs, unless ``--loss`` or the preset changes it. Epochs are selected and reported as by
finetune.py.

Presets: ``paper`` decays after epochs 15 and 20, ``code`` at their start, ``fast`` has 10 epochs. ``robustssl`` and
``dynacl2023`` have the settings of the RobustSSL benchmark and of the DynACL paper for CIFAR-10 (with ``--lr 0.05`` for
CIFAR-100), except that these train on all images and take the last epoch. See ``advcontrast.evaluation.protocol`` for
sources. Wall time and accuracy at full size have not been measured.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from _common.classifiers import Supervised, evaluated, preset_of, protocol_of, selected
from _common.flags import flag, start
from _common.images import load
from _common.load_models import encoder_from, network_of
from _common.run_folder import begin
from advcontrast.data import labelled_subset
from advcontrast.evaluation import protocol, run_protocol


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
    """Flags of linear evaluation."""

    train: str = flag("standard", "images to train on", "standard", "adversarial")
    loss: str = flag("trades", "what adversarial training minimises", "trades", "adversarial-ce")


def main(settings: Settings) -> None:
    """Train the last layer."""
    images = load(settings)
    encoder = encoder_from(settings, images)
    kind, loss = ("ALF", settings.loss) if settings.train == "adversarial" else ("SLF", "ce")
    chosen = protocol_of(settings, kind, loss)
    labelled = labelled_subset(images.train.y, settings.labels, seed=settings.seed).cpu()
    run = begin(settings, images, labelled=images.split["train"][labelled])
    if run is None:
        return
    splits = (images.train, images.validation, images.test)
    result = run_protocol(encoder, chosen, *splits, folder=run.folder, **settings.options)
    run.finish(
        result.model,
        network_of(settings, branch=settings.branch, classes=images.classes),
        images.test,
        **evaluated(settings, result, images),
        training=selected(result),
    )


if __name__ == "__main__":
    start(main, Settings, PRESETS)
