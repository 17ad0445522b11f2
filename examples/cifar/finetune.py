"""Fine-tune a pre-trained or random encoder as a classifier: TRADES or standard training (Tables 1 and 3, Fig. 3).

    python examples/cifar/finetune.py --encoder runs/DS/final.safetensors --branch adv --out runs/DS-trades
    python examples/cifar/finetune.py --encoder random --out runs/RI-trades
    python examples/cifar/finetune.py --encoder runs/DS/final.safetensors --labels 0.01 --out runs/DS-1percent
    python examples/cifar/finetune.py --encoder resnet18w16-cifar10-ds --width 16 --labels 0.01 --out runs/few

Trains on 90 % of the training images, selects the epoch with the best robust accuracy on the other 10 % (standard
accuracy for standard training), and tests it on the test images. ``metrics.csv`` has the curve.

Presets: ``paper`` has the 25 epochs of the ACL paper, with decays after 15 and 20, ``code`` the 100 epochs of its
code's README, with decays at the start of epochs 40 and 60, ``fast`` 10 epochs. ``robustssl`` and ``dynacl2023`` have
the settings of the RobustSSL benchmark and of the DynACL paper, except that these train on all images and take the
last epoch. See ``advcontrast.evaluation.protocol`` for sources. Wall time and accuracy at full size have not been
measured.
"""

from __future__ import annotations

from dataclasses import dataclass

from _common.classifiers import ACL, Supervised, evaluated, preset_of, protocol_of, selected
from _common.flags import flag, start
from _common.images import load
from _common.load_models import encoder_from, network_of
from _common.run_folder import begin
from advcontrast.data import labelled_subset
from advcontrast.evaluation import protocol, run_protocol

PAPER = preset_of(ACL)
CODE = {**PAPER, "epochs": 100, "milestones": "39,59"}
FAST = {**PAPER, "epochs": 10, "milestones": "6,8"}
OTHERS = {name: preset_of(protocol(name, "AFF")) for name in ("robustssl", "dynacl2023")}
PRESETS = {"paper": PAPER, "code": CODE, "fast": FAST, **OTHERS}


@dataclass(kw_only=True)
class Settings(Supervised):
    """Flags of fine-tuning."""

    train: str = flag("trades", "what to train with", "trades", "standard")


def main(settings: Settings) -> None:
    """Fine-tune the whole network."""
    images = load(settings)
    encoder = encoder_from(settings, images)
    kind, loss = ("AFF", "trades") if settings.train == "trades" else ("SFF", "ce")
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
