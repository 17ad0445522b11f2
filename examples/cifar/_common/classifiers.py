"""Classifiers on an encoder: the flags of supervised training, the protocol that they describe, and a quick probe."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from advcontrast.attacks import APGDAttack
from advcontrast.evaluation import Accuracy, Protocol, ProtocolResult, protocol, robust_accuracy
from advcontrast.optim import MultiStep

from .flags import Common, flag
from .images import Images
from .load_models import BATCH, join

ACL = protocol("acl2020", "AFF")


def preset_of(protocol: Protocol) -> dict[str, Any]:
    """Return the numbers of a protocol as flags. The scripts test the best epoch, whatever the protocol does."""
    names = ("epochs", "batch_size", "lr", "weight_decay", "nesterov", "beta", "attack_steps")
    found = {name: getattr(protocol, name) for name in names}
    given = {name: value for name, value in found.items() if value is not None}
    return {**given, "milestones": ",".join(map(str, protocol.milestones))}


@dataclass(kw_only=True)
class Supervised(Common):
    """Flags of the scripts that train a classifier."""

    encoder: str = flag("random", "final.safetensors of pretrain.py, name of an encoder of the package, or random")
    branch: str = flag("adv", "whose norms to use", "clean", "adv")
    labels: float = flag(1.0, "fraction of the training images to use, equally many of each class")
    lr: float = flag(ACL.lr, "learning rate of SGD with momentum 0.9")
    nesterov: bool = flag(ACL.nesterov, "whether the momentum is Nesterov's")
    weight_decay: float = flag(ACL.weight_decay, "weight decay")
    milestones: str = flag("", "epochs after which the rate falls to a tenth, such as 15,20")
    beta: float = flag(ACL.beta, "weight of the divergence of TRADES")
    evaluate_every: int = flag(1, "epochs between validations; the first and the last epoch have one too")
    attack_steps: int = flag(ACL.attack_steps, "steps of the training attack, a quarter of the radius each")
    apgd: int = flag(0, "steps of Auto-PGD on the difference of logits ratio, on the test images; 0 for none")

    @property
    def options(self) -> dict[str, Any]:
        """Return the arguments of ``run_protocol`` that do not belong to the protocol."""
        names = ("seed", "evaluate_every", "amp", "compile", "tensorboard")
        return {name: getattr(self, name) for name in names} | {"save_every": self.save_every or None}


def protocol_of(settings: Any, kind: str, loss: str, **more: Any) -> Protocol:
    """Return the protocol of a kind (see ``Protocol``) with the numbers of the flags."""
    adversarial = loss != "ce"
    numbers = ("epochs", "batch_size", "lr", "nesterov", "weight_decay", "branch", "labels")
    return Protocol(
        **{name: getattr(settings, name) for name in numbers}
        | {"preset": settings.preset, "kind": kind, "source": "flags", "loss": loss, "frozen": kind in ("SLF", "ALF")}
        | {"eps": settings.radius, "attack_steps": settings.attack_steps if adversarial else None}
        | {"beta": settings.beta if loss in ("trades", "semi") else None}
        | {"milestones": epochs_of("milestones", settings.milestones, settings.epochs)}
        | {"select": "val_ra" if adversarial else "val_ta"}
        | more
    )


def epochs_of(name: str, text: str, epochs: int) -> tuple[int, ...]:
    """Return the epochs that a flag lists, without those after the end of the training."""
    try:
        milestones = MultiStep([int(epoch) for epoch in text.split(",") if epoch]).milestones
    except ValueError:
        expected = "ascending epochs such as 15,20"
        raise ValueError(f"--{name}: expected {expected}, got {text!r}. Separate them by commas.") from None
    return tuple(epoch for epoch in milestones if epoch < epochs)


def evaluated(settings: Any, result: ProtocolResult, images: Images) -> dict[str, Any]:
    """Return the outcomes on the test images, and the attacks, as arguments of ``Run.finish``."""
    verdicts, attacks = {"TA": result.ta, "RA": result.ra}, {"RA": result.protocol.test_attack}
    return with_apgd(settings, result.model, images, verdicts, attacks)


def with_apgd(
    settings: Any, model: nn.Module, images: Images, verdicts: dict[str, Accuracy], attacks: dict[str, Any]
) -> dict[str, Any]:
    """Return outcomes and attacks as arguments of ``Run.finish``, with those of ``--apgd``."""
    if settings.apgd:
        attacks = attacks | {"APGD": APGDAttack(eps=settings.radius, steps=settings.apgd, loss="dlr")}
        verdicts = verdicts | {"APGD": robust_accuracy(model, images.test.batches(BATCH), attacks["APGD"])}
    return {"verdicts": verdicts, "attacks": attacks}


def selected(result: ProtocolResult) -> dict[str, float]:
    """Return the selected epoch, and its accuracy on the validation images."""
    select = result.protocol.select
    return {"epoch": result.epoch, select: result.history[result.epoch - 1][select]}


def linear_probe(encoder: nn.Module, features: int, images: Images) -> nn.Sequential:
    """Return the encoder, unchanged, with a linear classifier trained on the features of the clean training images.

    The features are computed once, in eval mode and without augmentation; the classifier is the minimum of the
    cross-entropy plus a little weight decay. linear.py is the paper's way to do this, and takes longer.
    """
    head = nn.Linear(features, images.classes)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    model = join(encoder, head).to(images.train.x.device).eval()
    with torch.no_grad():
        x = torch.cat([model.encoder(batch) for batch, _ in images.train.batches(BATCH)])
    optimizer = torch.optim.LBFGS(head.parameters(), max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        value = F.cross_entropy(head(x), images.train.y) + 1e-4 * head.weight.square().sum()
        value.backward()
        return value

    optimizer.step(loss)
    return model
