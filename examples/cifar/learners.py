"""What one training step of a classifier is. A learner is a module whose forward pass returns a loss and its terms."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import Self

from advcontrast import ACLOutput, PGDAttack
from advcontrast.attacks import under_attack
from advcontrast.augment import CropFlip
from advcontrast.functional import kl_divergence
from advcontrast.losses import SemiSupervisedLoss, TRADESLoss


class Standard(nn.Module):
    """Learns to classify clean images, shifted and mirrored at random.

    Args:
        model: the network, with the parts ``encoder`` and ``head``.
        augment: what is done to the images.
        frozen: whether the encoder stays as it is, its running statistics included.
    """

    def __init__(self, model: nn.Sequential, augment: CropFlip, *, frozen: bool = False) -> None:
        super().__init__()
        self.model, self.augment, self.frozen = model, augment, frozen
        if frozen:
            model.encoder.requires_grad_(False)

    def train(self, mode: bool = True) -> Self:
        """Change the mode; a frozen encoder stays in eval mode."""
        super().train(mode)
        if self.frozen:
            self.model.encoder.eval()
        return self

    def extra_repr(self) -> str:
        """Show what a resumed run must have in common with the one before."""
        settings = {name: value for name, value in vars(self).items() if not name.startswith("_")}
        return ", ".join(f"{name}={value!r}" for name, value in settings.items() if name != "training")

    def forward(self, images: Tensor, labels: Tensor) -> ACLOutput:
        """Return the cross-entropy of a batch."""
        logits = self.model(self.augment(images))
        return ACLOutput(F.cross_entropy(logits, labels), {"train_ta": percent_right(logits, labels)})


class Adversarial(Standard):
    """A learner that attacks its network, which is in eval mode meanwhile."""

    def __init__(self, model: nn.Sequential, augment: CropFlip, attack: PGDAttack, *, frozen: bool = False) -> None:
        super().__init__(model, augment, frozen=frozen)
        self.attack = attack

    def attacked(self, x: Tensor, objective: Callable[[Tensor], Tensor]) -> Tensor:
        """Return images near ``x`` whose logits maximise ``objective``."""
        with under_attack(self.model):
            return self.attack(lambda images: objective(self.model(images)), x)

    def calm_logits(self, x: Tensor) -> Tensor:
        """Return what the network says in eval mode."""
        with under_attack(self.model):
            return self.model(x)


class Trades(Adversarial):
    """TRADES: cross-entropy on clean images, and how far an attack moves the prediction.

    The attack starts at random in the ball; the authors of TRADES start it 0.001 N(0, 1) from the image.
    """

    def __init__(
        self, model: nn.Sequential, augment: CropFlip, attack: PGDAttack, *, beta: float, frozen: bool = False
    ) -> None:
        super().__init__(model, augment, attack, frozen=frozen)
        self.loss = TRADESLoss(beta)

    def forward(self, images: Tensor, labels: Tensor) -> ACLOutput:
        """Return the loss of a batch."""
        x = self.augment(images)
        calm = self.calm_logits(x)
        x_adv = self.attacked(x, lambda logits: kl_divergence(calm, logits))
        clean, adv = self.model(x), self.model(x_adv)
        terms = {"train_ta": percent_right(clean, labels), "train_ra": percent_right(adv, labels)}
        return ACLOutput(self.loss(clean, adv, labels), terms)


class SemiSupervised(Adversarial):
    """Step iii of ACL: few labels, and the logits of a teacher for all images.

    Images without label, marked -1, are attacked away from the class that the teacher gives them.
    """

    def __init__(self, model: nn.Sequential, augment: CropFlip, attack: PGDAttack, loss: SemiSupervisedLoss) -> None:
        super().__init__(model, augment, attack)
        self.loss = loss

    def forward(self, images: Tensor, labels: Tensor, teacher_logits: Tensor) -> ACLOutput:
        """Return Eq. 3 of the paper for a batch."""
        x = self.augment(images)
        targets = targets_of(labels, teacher_logits)
        x_adv = self.attacked(x, lambda logits: F.cross_entropy(logits, targets, reduction="none"))
        clean, adv = self.model(x), self.model(x_adv)
        terms = {"train_ta": percent_right(clean, targets), "train_ra": percent_right(adv, targets)}
        return ACLOutput(self.loss(clean, adv, labels, teacher_logits), terms)


class UAT(Adversarial):
    r"""Unsupervised adversarial training, with online targets, fixed targets, or both (UAT++).

    Online targets (OT) ask an attacked image to be classified as the clean one is, KL(stop-gradient p(x) || p(x')), for
    all images. Fixed targets (FT) ask it to be classified as a teacher said, for images without label. The labels that
    there are are learnt from attacked images. The weight of the unlabelled terms is not known from any released code.

    References:
        Uesato et al., "Are Labels Required for Improving Adversarial Robustness?", NeurIPS 2019.
    """

    def __init__(
        self, model: nn.Sequential, augment: CropFlip, attack: PGDAttack, *, online: bool, fixed: bool, weight: float
    ) -> None:
        super().__init__(model, augment, attack)
        self.online, self.fixed, self.weight = online, fixed, weight

    def forward(self, images: Tensor, labels: Tensor, teacher_logits: Tensor) -> ACLOutput:
        """Return the loss of a batch."""
        x = self.augment(images)
        labelled = labels >= 0
        calm = self.calm_logits(x)
        targets = targets_of(labels, teacher_logits if self.fixed else calm)
        x_adv = self.attacked(x, lambda logits: F.cross_entropy(logits, targets, reduction="none"))
        clean, adv = self.model(x), self.model(x_adv)
        error = F.cross_entropy(adv, targets, reduction="none")
        loss = torch.where(labelled, error, self.weight * self.fixed * error)
        if self.online:
            loss = loss + self.weight * kl_divergence(clean.detach(), adv)
        terms = {"train_ta": percent_right(clean, targets), "train_ra": percent_right(adv, targets)}
        return ACLOutput(loss.mean(), terms)


def targets_of(labels: Tensor, logits: Tensor) -> Tensor:
    """Return the labels and, where there is none (-1), the class with the largest logit."""
    return torch.where(labels >= 0, labels, logits.argmax(1))


def percent_right(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the accuracy of a batch in percent, on the device."""
    return 100 * (logits.detach().argmax(1) == labels).float().mean()
