"""Supervised training of a classifier: what finetune.py, linear.py and step ii of semisupervised.py have in common."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from experiment import begin, final_accuracies, validation_accuracies
from flags import Common, flag
from images import load
from networks import about, encoder_from, zero_classifier
from torch import Tensor, nn

from advcontrast import PGDAttack
from advcontrast.augment import CropFlip
from advcontrast.data import labelled_subset
from advcontrast.engine import fit, steps_per_epoch
from advcontrast.evaluation.protocols import Protocol
from advcontrast.evaluation.protocols.presets import protocol
from advcontrast.optim import MultiStep
from advcontrast.strategies.supervised import AdversarialTrainer, StandardTrainer
from advcontrast.strategies.trades import TRADESTrainer

ACL = protocol("acl2020", "AFF")


def preset_of(protocol: Protocol) -> dict[str, Any]:
    """Return the numbers of a protocol as flags. Which epoch is tested is up to the scripts: the best one."""
    names = ("epochs", "batch_size", "lr", "weight_decay", "nesterov", "beta", "attack_steps")
    found = {name: getattr(protocol, name) for name in names}
    given = {name: value for name, value in found.items() if value is not None}
    return {**given, "milestones": ",".join(map(str, protocol.milestones))}


@dataclass(kw_only=True)
class Supervised(Common):
    """What every script that takes a pre-trained encoder can be told."""

    encoder: str = flag("random", "final.safetensors of pretrain.py, or random")
    branch: str = flag("adv", "whose norms to use", "clean", "adv")
    labels: float = flag(1.0, "fraction of the training images to use, equally many of each class")
    lr: float = flag(ACL.lr, "learning rate of SGD with momentum 0.9")
    nesterov: bool = flag(ACL.nesterov, "whether the momentum is Nesterov's")
    weight_decay: float = flag(ACL.weight_decay, "weight decay")
    milestones: str = flag("", "epochs after which the rate falls to a tenth, such as 15,20")
    beta: float = flag(ACL.beta, "weight of the divergence of TRADES")
    evaluate_every: int = flag(1, "epochs between validations; the first and the last epoch have one too")
    attack_steps: int = flag(ACL.attack_steps, "steps of the training attack, a quarter of the radius each")


def epochs_of(name: str, text: str) -> tuple[int, ...]:
    """Return the epochs that a flag lists."""
    try:
        return tuple(MultiStep([int(epoch) for epoch in text.split(",") if epoch]).milestones)
    except ValueError:
        expected = "ascending epochs such as 15,20"
        raise ValueError(f"--{name}: expected {expected}, got {text!r}. Separate them by commas.") from None


def train_classifier(settings: Any, *, loss: str, frozen: bool) -> None:
    """Train a classifier, select an epoch on validation images, and test that one."""
    images = load(settings)
    encoder, features = encoder_from(settings, images, settings.branch)
    model = zero_classifier(encoder, features, images.classes).to(images.train.x.device)
    chosen = labelled_subset(images.train.y, settings.labels, seed=settings.seed)
    augment = CropFlip(images.size // 8)
    attack = training_attack(settings)
    adversarial = loss != "ce"
    if loss == "trades":
        learner: nn.Module = TRADESTrainer(model, attack=attack, augment=augment, beta=settings.beta, frozen=frozen)
    elif adversarial:
        learner = AdversarialTrainer(model, attack=attack, augment=augment, frozen=frozen)
    else:
        learner = StandardTrainer(model, augment=augment, frozen=frozen)
    decays = epochs_of("milestones", settings.milestones)
    experiment = begin(settings)
    if experiment is None:
        return
    labelled = images.train.subset(chosen)
    experiment.describe(images, labelled=images.split["train"][chosen.cpu()])
    select = "val_ra" if adversarial else "val_ta"
    history = supervise(
        learner,
        (labelled.x, labelled.y),
        settings,
        folder=experiment.folder,
        epochs=settings.epochs,
        optimizer=sgd(learner, settings.lr, settings.weight_decay, nesterov=settings.nesterov),
        decays=decays,
        evaluate=lambda: validation_accuracies(model, images, settings, robust=adversarial),
        evaluate_every=settings.evaluate_every,
        select=select,
    )
    results = final_accuracies(model, images, settings) | best_epoch(history, select)
    experiment.finish(model, about(settings, branch=settings.branch, classes=images.classes), **results)


def supervise(
    learner: nn.Module,
    data: Sequence[Tensor],
    settings: Common,
    *,
    folder: Path,
    epochs: int,
    batch_size: int | None = None,
    optimizer: torch.optim.Optimizer,
    decays: Sequence[int],
    evaluate: Callable[[], dict[str, float]],
    evaluate_every: int,
    select: str,
    groups: Tensor | None = None,
) -> list[dict[str, float]]:
    """Run the loop for a supervised learner, and leave it with the weights of its best epoch."""
    batch_size = batch_size or settings.batch_size
    steps = steps_per_epoch(len(data[0]), batch_size)
    return fit(
        learner,
        data,
        epochs=epochs,
        batch_size=batch_size,
        optimizer=optimizer,
        schedule=MultiStep(tuple(epoch * steps for epoch in decays)),
        seed=settings.seed,
        groups=groups,
        evaluate=lambda epoch: evaluate() if epoch in (1, epochs) or epoch % evaluate_every == 0 else {},
        select=select,
        folder=folder,
        save_every=settings.save_every or None,
        amp=settings.amp,
        compile=settings.compile,
        tensorboard=settings.tensorboard,
    )


def best_epoch(history: Sequence[Mapping[str, float]], select: str) -> dict[str, float]:
    """Return the number of the epoch that was selected, and why."""
    best = max((row for row in history if select in row), key=lambda row: row[select])
    return {"epoch": int(best["epoch"]), select: best[select]}


def training_attack(settings: Any) -> PGDAttack:
    """Return the attack of supervised training."""
    return PGDAttack(eps=settings.radius, step_size=settings.step, steps=settings.attack_steps)


def sgd(learner: nn.Module, lr: float, weight_decay: float, *, nesterov: bool = False) -> torch.optim.Optimizer:
    """Return the optimizer of all that is to be trained."""
    wanted = [parameter for parameter in learner.parameters() if parameter.requires_grad]
    return torch.optim.SGD(wanted, lr, momentum=ACL.momentum, weight_decay=weight_decay, nesterov=nesterov)
