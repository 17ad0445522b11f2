"""Train with few labels: the three steps of ACL, or UAT (Table 2).

    python examples/cifar/semisupervised.py --encoder runs/DS/final.safetensors --labels 0.1 --out runs/DS-10percent
    python examples/cifar/semisupervised.py --encoder random --method uat++ --labels 0.01 --out runs/UAT-1percent

Step i is pre-training (pretrain.py). Step ii fine-tunes the encoder, through the norms of ``--teacher-branch``, with
standard training on the labelled images; its logits are the pseudo-labels of all images. Step iii trains the encoder,
through the norms of ``--branch``, with Eq. 3 on labels and pseudo-labels, selects the epoch with the best robust
accuracy on the validation images, and reports that one. The validation images have labels, in the paper too: with 1 %
they are eleven times as many as those to train with.

Presets: ``code`` (the text of the paper is silent about these settings) and ``fast``. RobustSSL has no semi-supervised
protocol, and DynACL takes ACL's. Wall time and accuracy at full size: not yet run.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from classify import Supervised, best_epoch, epochs_of, preset_of, sgd, supervise, training_attack
from experiment import EVALUATION_BATCH, begin, final_accuracies, first_process, save, validation_accuracies
from flags import flag, start
from images import load
from learners import UAT
from networks import about, encoder_from, zero_classifier
from safetensors.torch import load_file
from torch import Tensor, nn

from advcontrast.augment import CropFlip
from advcontrast.data import ImageSet, labelled_subset
from advcontrast.evaluation.protocols.presets import protocol
from advcontrast.losses import SemiSupervisedLoss
from advcontrast.strategies.semi_supervised import SemiSupervisedTrainer
from advcontrast.strategies.supervised import StandardTrainer

ACL = protocol("acl2020", "semi")
TEACHER = protocol("acl2020", "SFF")
TEACHER_PRESET = {f"teacher_{name}": preset_of(TEACHER)[name] for name in ("epochs", "milestones")}
CODE = {**preset_of(ACL), **TEACHER_PRESET, "batch_size": 0}  # which depends on the labels
FAST = {**CODE, "epochs": 8, "milestones": "4,6", "teacher_epochs": 40, "teacher_milestones": "16,24"}


@dataclass(kw_only=True)
class Settings(Supervised):
    """What semi-supervised training can be told beside the flags of supervised training."""

    method: str = flag(
        "acl", "acl; or UAT with online targets (ot), fixed targets (ft) or both", "acl", "ot", "ft", "uat++"
    )
    labels: float = flag(ACL.labels, "fraction of the training images with labels, such as 0.1 or 0.01")
    weight_decay: float = flag(ACL.weight_decay, f"weight decay of step iii; step ii has {TEACHER.weight_decay}")
    alpha: float = flag(ACL.alpha, "weight of the labels beside the teacher's logits, on labelled images")
    temperature: float = flag(ACL.temperature, "of the distillation")
    uat_weight: float = flag(1.0, "weight of UAT's unlabelled terms")
    teacher_branch: str = flag(TEACHER.branch, "whose norms step ii starts from", "clean", "adv")
    teacher_epochs: int = flag(CODE["teacher_epochs"], "epochs of step ii")
    teacher_milestones: str = flag(CODE["teacher_milestones"], "its decays")


def main(settings: Settings) -> None:
    """Train a teacher on the labels, and a robust student on what the teacher says."""
    images = load(settings)
    device = images.train.x.device
    teacher, student = (
        zero_classifier(*encoder_from(settings, images, branch), images.classes).to(device)
        for branch in (settings.teacher_branch, settings.branch)
    )
    chosen = labelled_subset(images.train.y, settings.labels, seed=settings.seed)
    learner = student_learner(settings, student, CropFlip(images.size // 8))
    decays, teacher_decays = (
        epochs_of("milestones", settings.milestones),
        epochs_of("teacher-milestones", settings.teacher_milestones),
    )
    experiment = begin(settings)
    if experiment is None:
        return
    experiment.describe(images, labelled=images.split["train"][chosen.cpu()])

    labelled = images.train.subset(chosen)
    supervise(
        StandardTrainer(teacher, augment=CropFlip(images.size // 8)),
        (labelled.x, labelled.y),
        settings,
        folder=experiment.folder / "teacher",
        epochs=settings.teacher_epochs,
        batch_size=TEACHER.batch_size,
        optimizer=sgd(teacher, settings.lr, TEACHER.weight_decay),
        decays=teacher_decays,
        evaluate=lambda: validation_accuracies(teacher, images, settings, robust=False),
        evaluate_every=settings.evaluate_every,
        select="val_ta",
    )
    logits = logits_of(teacher, images.train, experiment.folder / "teacher" / "logits.safetensors")
    unlabelled = torch.ones(len(images.train), dtype=torch.bool, device=device)
    unlabelled[chosen] = False
    right = (logits.argmax(1) == images.train.y)[unlabelled]
    experiment.record(pseudo_label_accuracy=right.float().mean().item() if len(right) else None)

    history = supervise(
        learner,
        (images.train.x, torch.where(unlabelled, -1, images.train.y), logits),
        settings,
        folder=experiment.folder,
        epochs=settings.epochs,
        # Of the 45,000 images these are 25 labelled ones in each batch for 10 %, and 2 for 1 %.
        batch_size=settings.batch_size or (ACL.batch_size if settings.labels >= ACL.labels else 200),
        optimizer=sgd(student, settings.lr, settings.weight_decay, nesterov=settings.nesterov),
        decays=decays,
        evaluate=lambda: validation_accuracies(student, images, settings, robust=True),
        evaluate_every=settings.evaluate_every,
        select="val_ra",
        groups=unlabelled.long().cpu(),
    )
    results = final_accuracies(student, images, settings) | best_epoch(history, "val_ra")
    results |= {"teacher_ta": final_accuracies(teacher, images, settings, robust=False)["ta"]}
    results |= {"pseudo_label_accuracy": experiment.card["pseudo_label_accuracy"]}
    experiment.finish(student, about(settings, branch=settings.branch, classes=images.classes), **results)


def student_learner(settings: Settings, student: nn.Sequential, augment: CropFlip) -> nn.Module:
    """Return what step iii trains with."""
    attack = training_attack(settings)
    if settings.method == "acl":
        loss = SemiSupervisedLoss(alpha=settings.alpha, temperature=settings.temperature, beta=settings.beta)
        return SemiSupervisedTrainer(student, loss=loss, attack=attack, augment=augment)
    online, fixed = settings.method in ("ot", "uat++"), settings.method in ("ft", "uat++")
    return UAT(student, augment=augment, attack=attack, online=online, fixed=fixed, weight=settings.uat_weight)


@torch.no_grad()
def logits_of(teacher: nn.Module, images: ImageSet, path: Path) -> Tensor:
    """Return what the teacher says about the images as they are, from the file once it exists."""
    if first_process() and not path.exists():
        teacher.eval()
        save({"logits": torch.cat([teacher(x) for x, _ in images.batches(EVALUATION_BATCH)])}, path)
    if dist.is_initialized():
        dist.barrier()
    return load_file(path, device=str(images.x.device))["logits"]


if __name__ == "__main__":
    start(main, Settings, {"code": CODE, "fast": FAST})
