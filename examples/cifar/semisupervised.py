"""Train with few labels: the three steps of ACL, or UAT (Table 2).

    python examples/cifar/semisupervised.py --encoder runs/DS/final.safetensors --labels 0.1 --out runs/DS-10percent
    python examples/cifar/semisupervised.py --encoder random --method uat++ --labels 0.01 --out runs/UAT-1percent

Step i is pre-training (pretrain.py). Step ii fine-tunes the encoder, through the norms of ``--teacher-branch``, with
standard training on the labelled images; its logits are the pseudo-labels of all images. Step iii trains the encoder,
through the norms of ``--branch``, with Eq. 3 on labels and pseudo-labels, selects the epoch with the best robust
accuracy on the validation images, and reports that one. The validation images have labels, as in the paper: with 1 %
there are eleven times as many of them as of labelled training images.

Presets: ``code`` (the paper does not give these settings) and ``fast``. RobustSSL has no semi-supervised
protocol, and DynACL uses that of ACL. Wall time and accuracy at full size have not been measured.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from _common.classifiers import Supervised, epochs_of, preset_of, protocol_of, selected
from _common.flags import flag, start
from _common.images import load
from _common.load_models import BATCH, encoder_from, network_of
from _common.run_folder import begin, save
from advcontrast.augment import CropFlip
from advcontrast.data import labelled_subset
from advcontrast.evaluation import Protocol, protocol, run_protocol
from baselines.uat import UAT

ACL = protocol("acl2020", "semi")
TEACHER = protocol("acl2020", "SFF")
TEACHER_PRESET = {f"teacher_{name}": preset_of(TEACHER)[name] for name in ("epochs", "milestones")}
CODE = {**preset_of(ACL), **TEACHER_PRESET, "batch_size": 0}  # which depends on the labels
FAST = {**CODE, "epochs": 8, "milestones": "4,6", "teacher_epochs": 40, "teacher_milestones": "16,24"}
PRESETS = {"code": CODE, "fast": FAST}


@dataclass(kw_only=True)
class Settings(Supervised):
    """Flags of semi-supervised training."""

    method: str = flag(
        "acl", "acl; or UAT with online targets (ot), fixed targets (ft) or both", "acl", "ot", "ft", "uat++"
    )
    labels: float = flag(ACL.labels, "fraction of the training images with labels, such as 0.1 or 0.01")
    weight_decay: float = flag(ACL.weight_decay, f"weight decay of step iii; step ii has {TEACHER.weight_decay}")
    alpha: float = flag(ACL.alpha, "weight of the labels beside the teacher's logits, on labelled images")
    temperature: float = flag(ACL.temperature, "temperature of the distillation")
    uat_weight: float = flag(1.0, "weight of UAT's unlabelled terms")
    teacher_branch: str = flag(TEACHER.branch, "whose norms step ii starts from", "clean", "adv")
    teacher_epochs: int = flag(CODE["teacher_epochs"], "epochs of step ii")
    teacher_milestones: str = flag(CODE["teacher_milestones"], "its decays")


def main(settings: Settings) -> None:
    """Train a teacher on the labels, and a robust student on the labels and on the outputs of the teacher."""
    images = load(settings)
    encoder = encoder_from(settings, images)
    teacher_protocol, student_protocol = protocols(settings)
    labelled = labelled_subset(images.train.y, settings.labels, seed=settings.seed)
    run = begin(settings, images, labelled=images.split["train"][labelled.cpu()])
    if run is None:
        return

    few = (images.train.subset(labelled), images.validation, images.test)
    teacher = run_protocol(encoder, teacher_protocol, *few, folder=run.folder / "teacher", **settings.options)
    with torch.no_grad():
        logits = torch.cat([teacher.model(x) for x, _ in images.train.batches(BATCH)])
    save({"logits": logits}, run.folder / "teacher" / "logits.safetensors", {})
    unlabelled = torch.ones(len(images.train), dtype=torch.bool, device=logits.device).index_fill(0, labelled, False)
    right = (logits.argmax(1) == images.train.y)[unlabelled]

    # The same teacher is a part of this protocol, which finds it finished in the folder.
    splits = (images.train, images.validation, images.test)
    learner = None if settings.method == "acl" else partial(uat, settings, student_protocol, images.size)
    result = run_protocol(encoder, student_protocol, *splits, folder=run.folder, learner=learner, **settings.options)
    found = {
        "teacher_ta": teacher.ta.accuracy,
        "pseudo_label_accuracy": right.float().mean().item() if len(right) else None,
    }
    run.finish(
        result.model,
        network_of(settings, branch=settings.branch, classes=images.classes),
        images.test,
        {"TA": result.ta, "RA": result.ra},
        attacks={"RA": student_protocol.test_attack},
        training=selected(result) | found,
    )


def protocols(settings: Settings) -> tuple[Protocol, Protocol]:
    """Return the protocols of steps ii and iii."""
    changes: dict[str, Any] = {"batch_size": TEACHER.batch_size, "weight_decay": TEACHER.weight_decay, "labels": 1.0}
    changes |= {"epochs": settings.teacher_epochs, "branch": settings.teacher_branch, "nesterov": False}
    changes["milestones"] = epochs_of("teacher-milestones", settings.teacher_milestones, settings.teacher_epochs)
    teacher = protocol_of(settings, "SFF", "ce", **changes)
    # Of the 45,000 images these are 25 labelled ones in each batch for 10 %, and 2 for 1 %.
    batch_size = settings.batch_size or (ACL.batch_size if settings.labels >= ACL.labels else 200)
    numbers = {"batch_size": batch_size, "alpha": settings.alpha, "temperature": settings.temperature}
    return teacher, protocol_of(settings, "semi", "semi", teacher=teacher, **numbers)


def uat(settings: Settings, protocol: Protocol, size: int, model: nn.Module) -> UAT:
    """Return the learner of step iii for UAT."""
    online, fixed = settings.method in ("ot", "uat++"), settings.method in ("ft", "uat++")
    common = {"augment": CropFlip(size // 8), "attack": protocol.attack}
    return UAT(model, online=online, fixed=fixed, weight=settings.uat_weight, **common)


if __name__ == "__main__":
    start(main, Settings, PRESETS)
