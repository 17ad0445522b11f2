"""Semi-supervised training of ACL: few labels, and a teacher for every image."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from .._checks import check_classes, check_logits, check_type
from ..losses import SemiSupervisedLoss
from .acl import ACLOutput
from .supervised import AdversarialTrainer, batch_accuracy


class SemiSupervisedTrainer(AdversarialTrainer):
    """Step iii of ACL: adversarial training with few labels and a teacher's logits.

    The attack maximises the cross-entropy of each image with its label or, if it has none, with the teacher's class.
    The loss is :class:`~advcontrast.losses.SemiSupervisedLoss`, equation 3 of the paper; clean images pass through the
    model before the attacked ones. Reference: Jiang et al., NeurIPS 2020.

    Args:
        model: as for :class:`AdversarialTrainer`, like ``attack``, ``augment`` and the errors.
        loss: ``loss(clean_logits, adv_logits, labels, teacher_logits)``, by default ``SemiSupervisedLoss()``.

    Example:
        >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 2))
        >>> trainer = SemiSupervisedTrainer(model, attack=PGDAttack(steps=1))
        >>> out = trainer(torch.rand(2, 3, 2, 2), torch.tensor([1, -1]), torch.zeros(2, 2))
        >>> sorted(out.terms)
        ['train_ra', 'train_ta']
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        loss: nn.Module | None = None,
        attack: Callable[..., Tensor] | None = None,
        augment: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        if loss is not None:
            check_type(type(self).__name__, "loss", loss, nn.Module, remedy="Pass SemiSupervisedLoss(...), or None")
        super().__init__(model, attack=attack, augment=augment)
        self.loss = SemiSupervisedLoss() if loss is None else loss

    # One more argument than the trainers with labels only: a learner receives all tensors of the data set.
    def forward(self, images: Tensor, labels: Tensor, teacher_logits: Tensor) -> ACLOutput:  # type: ignore[override]
        """Return the loss of a batch.

        Args:
            images: images for ``augment``, for example uint8 ``[N, C, H, W]``; without it floats in [0, 1].
            labels: classes of the images, int64 ``[N]`` in [0, C), and -1 for an image without a label.
            teacher_logits: a standard-trained classifier's logits of the images without augmentation, ``[N, C]``.

        Returns:
            The loss, and the accuracies of :meth:`StandardTrainer.forward`, on labels or the teacher's classes.
        """
        targets = targets_of(labels, teacher_logits)
        x = self._augmented(images, labels, lowest=-1)
        x_adv = self.attacked(x, lambda logits: self._errors(logits, targets))
        clean, adv = self._logits(x), self._logits(x_adv)
        terms = {"train_ta": batch_accuracy(clean, targets), "train_ra": batch_accuracy(adv, targets)}
        return ACLOutput(self.loss(clean, adv, labels, teacher_logits), terms)


def targets_of(labels: Tensor, logits: Tensor) -> Tensor:
    """Return the int64 labels ``[N]``, with the class of the largest logit of a teacher, ``[N, C]``, in place of -1.

    Example:
        >>> targets_of(torch.tensor([0, -1]), torch.tensor([[1.0, 2.0], [1.0, 2.0]])).tolist()
        [0, 1]
    """
    remedy = "Pass one class index per image, -1 for none, and a row of logits per image"
    check_logits("targets_of", {"logits": logits}, remedy=remedy)
    check_classes("targets_of", "labels", labels, logits, low=-1, remedy=remedy)
    return torch.where(labels >= 0, labels, logits.argmax(1))
