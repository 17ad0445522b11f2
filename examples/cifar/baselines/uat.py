"""Training step of UAT, the baseline of ACL's semi-supervised training."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from advcontrast import ACLOutput, PGDAttack
from advcontrast.augment import CropFlip
from advcontrast.functional import kl_divergence
from advcontrast.strategies.semi_supervised import targets_of
from advcontrast.strategies.supervised import AdversarialTrainer, batch_accuracy


class UAT(AdversarialTrainer):
    r"""Unsupervised adversarial training, with online targets, fixed targets, or both (UAT++).

    Online targets (OT) ask an attacked image to be classified as the clean one is, KL(stop-gradient p(x) || p(x')), for
    all images. Fixed targets (FT) ask it to be classified as by a teacher, for images without a label. Labels are
    learned from attacked images. No released code has the weight of the unlabelled terms.

    References:
        Uesato et al., "Are Labels Required for Improving Adversarial Robustness?", NeurIPS 2019.
    """

    def __init__(
        self, model: nn.Module, *, augment: CropFlip, attack: PGDAttack, online: bool, fixed: bool, weight: float
    ) -> None:
        super().__init__(model, augment=augment, attack=attack)
        self.online, self.fixed, self.weight = online, fixed, weight

    def forward(self, images: Tensor, labels: Tensor, teacher_logits: Tensor) -> ACLOutput:
        """Return the loss of a batch."""
        x = self.augment(images)
        labelled = labels >= 0
        calm = self.eval_logits(x)
        targets = targets_of(labels, teacher_logits if self.fixed else calm)
        x_adv = self.attacked(x, lambda logits: F.cross_entropy(logits, targets, reduction="none"))
        clean, adv = self.model(x), self.model(x_adv)
        error = F.cross_entropy(adv, targets, reduction="none")
        loss = torch.where(labelled, error, self.weight * self.fixed * error)
        if self.online:
            loss = loss + self.weight * kl_divergence(clean.detach(), adv)
        terms = {"train_ta": batch_accuracy(clean, targets), "train_ra": batch_accuracy(adv, targets)}
        return ACLOutput(loss.mean(), terms)
