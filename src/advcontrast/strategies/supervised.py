"""Supervised training of a classifier, on clean or attacked images."""

import math
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import Self

from .. import _deprecated
from .._checks import (
    check_bool,
    check_callable,
    check_logits,
    check_module,
    check_one_device,
    check_shape,
    check_tensor,
    check_type,
    check_within,
    complaint,
)
from .._memory_format import warn_of_channels_last
from .._modes import buffers_kept
from ..attacks import PGDAttack, under_attack
from ..norm import DualNorm
from .acl import ACLOutput

_FLOATS = "Pass float images in [0, 1], or uint8 ones to a trainer with augment=CropFlip()"


class StandardTrainer(nn.Module):
    """Standard training: cross-entropy on clean images.

    Like :class:`~advcontrast.ACLTrainer` it is a module whose forward pass returns the loss of a step, and owns no
    optimizer, loop, device or log. A frozen encoder stays bit-identical: its parameters get no gradients, and it stays
    in eval mode when the trainer is in train mode, so that its running statistics do not change.

    Args:
        model: a classifier that returns logits ``[N, C]``; ``frozen`` needs a part ``model.encoder``.
        augment: ``augment(images)`` returns float images in [0, 1], for example ``CropFlip()``; ``None`` leaves them
            unchanged.
        frozen: whether to train all but ``model.encoder``, normally ``model.head``.

    Raises:
        ValueError: ``frozen`` for a model without a part ``encoder``.
        TypeError: an argument has the wrong type.

    Example:
        Logits of zero give each of two classes the probability 1/2.

        >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 2))
        >>> _ = torch.nn.init.zeros_(model[1].weight), torch.nn.init.zeros_(model[1].bias)
        >>> out = StandardTrainer(model)(torch.rand(4, 3, 2, 2), torch.tensor([0, 1, 0, 0]))
        >>> round(out.loss.item(), 4) == round(math.log(2), 4), out.terms["train_ta"].item()
        (True, 0.75)
    """

    model: nn.Module

    def __init__(
        self, model: nn.Module, *, augment: Callable[[Tensor], Tensor] | None = None, frozen: bool = False
    ) -> None:
        owner = type(self).__name__
        check_module(owner, model)
        check_bool(owner, "frozen", frozen, remedy="True trains only the head")
        if augment is not None:
            check_callable(owner, "augment", augment, remedy="Pass CropFlip(), or None")
        if frozen and not isinstance(getattr(model, "encoder", None), nn.Module):
            remedy = "Build it as nn.Sequential(OrderedDict(encoder=..., head=...))"
            raise ValueError(complaint(owner, "a model with a part named encoder", type(model).__name__, remedy))
        if any(isinstance(module, DualNorm) for module in model.modules()):
            got, remedy = "dual norms, of which one branch is trained", 'Pass export_branch(model, "adv")'
            warnings.warn(complaint(owner, "a network with single norms", got, remedy), UserWarning, stacklevel=2)
        super().__init__()
        self.model, self.augment, self.frozen = model, augment, frozen
        if frozen:
            model.get_submodule("encoder").requires_grad_(False)

    def train(self, mode: bool = True) -> Self:
        """Change the mode; a frozen encoder stays in eval mode."""
        super().train(mode)
        if self.frozen:
            self.model.get_submodule("encoder").eval()
        return self

    def forward(self, images: Tensor, labels: Tensor) -> ACLOutput:
        """Return the loss of a batch.

        Args:
            images: images for ``augment``, for example uint8 ``[N, C, H, W]``; without it floats in [0, 1].
            labels: classes of the images, int64 ``[N]`` in [0, C).

        Returns:
            The loss, and the accuracy of this batch in [0, 1]: ``"train_ta"`` on clean images, ``"train_ra"`` on
            attacked ones, for those that the loss uses.

        Raises:
            ValueError: shapes do not fit, devices differ or, on the CPU, a label is out of range.
            TypeError: an argument has the wrong type.
        """
        logits = self._logits(self._augmented(images, labels))
        self._check_labels(logits, labels)
        return ACLOutput(F.cross_entropy(logits, labels), {"train_ta": batch_accuracy(logits, labels)})

    def extra_repr(self) -> str:
        """Show the settings, which must match when a run is resumed."""
        settings = {name: value for name, value in vars(self).items() if not name.startswith("_")}
        return ", ".join(f"{name}={value!r}" for name, value in settings.items() if name != "training")

    def _logits(self, x: Tensor) -> Tensor:
        """Return the output of the model, with the buffers of a frozen encoder restored."""
        with buffers_kept(self.model.get_submodule("encoder")) if self.frozen else nullcontext():
            logits: Tensor = self.model(x)
        return logits

    def _augmented(self, images: Tensor, labels: Tensor, *, lowest: int = 0) -> Tensor:
        owner, remedy = type(self).__name__, "Pass one class index per image"
        check_type(owner, "images", images, Tensor, remedy=_FLOATS)
        check_tensor(owner, "labels", labels, (torch.int64,), remedy=remedy)
        if labels.dim() != 1 or labels.shape != images.shape[:1] or len(labels) == 0:
            expected = "images of shape [N, ...] and labels of shape [N] with N >= 1"
            raise ValueError(complaint(owner, expected, f"{list(images.shape)} and {list(labels.shape)}", remedy))
        check_within(owner, "labels", labels, (lowest, math.inf), remedy=remedy)
        if self.augment is not None:
            images = self.augment(images)
        check_tensor(owner, "images", images, remedy=_FLOATS)
        warn_of_channels_last(self.model, images)
        return images

    def _check_labels(self, logits: Tensor, labels: Tensor) -> None:
        owner, remedy = type(self).__name__, "Pass a classifier whose output is its logits"
        check_logits(owner, {"the output of the model": logits}, remedy=remedy)
        fits, shape = len(logits) == len(labels), f"[{len(labels)}, C], a row per label"
        check_shape(owner, "the output of the model", logits, shape, fits, remedy=remedy)
        check_one_device(owner, logits=logits, labels=labels)
        check_within(owner, "labels", labels, (0, logits.shape[1] - 1), remedy="Pass one class index per image")


class AdversarialTrainer(StandardTrainer):
    """Adversarial training: cross-entropy on attacked images.

    The attack maximises the cross-entropy of each image, through the model in eval mode; running statistics are updated
    once, with the attacked images. With ``frozen`` this is adversarial linear finetuning (ALF). Reference: Madry et
    al., ICLR 2018.

    Args:
        model: as for :class:`StandardTrainer`, with the same errors; differentiable.
        attack: ``attack(objective, x)`` returns perturbed images, by default PGD with 10 steps of 2/255 in an
            L-infinity ball of 8/255.
        augment: as for :class:`StandardTrainer`.
        frozen: as for :class:`StandardTrainer`.

    Example:
        Class 0 leads by the difference of two pixels, 0.4, and under an attack that moves both by 0.1, by 0.2.

        >>> trainer = AdversarialTrainer(torch.nn.Flatten(), attack=PGDAttack(eps=0.1, step_size=0.1, steps=2))
        >>> out = trainer(torch.tensor([[0.7, 0.3]]), torch.tensor([0]))
        >>> round(out.loss.item(), 4) == round(math.log(1 + math.exp(-0.2)), 4)
        True
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        attack: Callable[..., Tensor] | None = None,
        augment: Callable[[Tensor], Tensor] | None = None,
        frozen: bool = False,
    ) -> None:
        if attack is not None:
            remedy = "Pass PGDAttack(...) or a function (objective, x) -> x_adv"
            check_callable(type(self).__name__, "attack", attack, remedy=remedy)
        super().__init__(model, augment=augment, frozen=frozen)
        self.attack = PGDAttack(steps=10) if attack is None else attack

    def forward(self, images: Tensor, labels: Tensor) -> ACLOutput:
        """Return the loss of a batch; arguments and errors are those of :meth:`StandardTrainer.forward`."""
        x = self._augmented(images, labels)
        with under_attack(self.model):
            x_adv = self.attack(_TrainingObjective(self.model, labels, self._errors), x)
        adv = self._logits(x_adv)
        self._check_labels(adv, labels)
        return ACLOutput(F.cross_entropy(adv, labels), {"train_ra": batch_accuracy(adv, labels)})

    def attacked(self, x: Tensor, objective: Callable[[Tensor], Tensor]) -> Tensor:
        """Attack float images ``[N, ...]`` in [0, 1], with the model in eval mode.

        The objective, a function, maps logits ``[N, C]`` to a value for each image, ``[N]``, that the attack maximises.
        """
        remedy = "Pass a function such as lambda logits: loss(logits, y)"
        check_callable(type(self).__name__, "objective", objective, remedy=remedy)
        with under_attack(self.model):
            return self.attack(lambda images: objective(self.model(images)), x)

    def eval_logits(self, x: Tensor) -> Tensor:
        """Return the logits ``[N, C]`` of float images ``[N, ...]`` with the model in eval mode, without a gradient."""
        check_tensor(type(self).__name__, "images", x, remedy=_FLOATS)
        with under_attack(self.model):
            logits: Tensor = self.model(x.clone())  # a model may change its input in place
        return logits

    calm_logits = eval_logits  # the name in earlier versions

    def _errors(self, logits: Tensor, labels: Tensor) -> Tensor:
        self._check_labels(logits, labels)
        return F.cross_entropy(logits, labels, reduction="none")


@dataclass(frozen=True, eq=False)
class _TrainingObjective:
    """The cross-entropy, with the model and the labels for attacks of other libraries."""

    # Not a ClassificationObjective, since an attack on accuracy stops where an image is misclassified.

    model: nn.Module
    y: Tensor
    errors: Callable[[Tensor, Tensor], Tensor]

    def __call__(self, x: Tensor) -> Tensor:
        return self.errors(self.model(x), self.y)


def batch_accuracy(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the accuracy of logits ``[N, C]`` and labels ``[N]`` in [0, 1], a detached float32 scalar on their device.

    Example:
        >>> batch_accuracy(torch.eye(4), torch.tensor([0, 1, 2, 0])).item()
        0.75
    """
    return (logits.detach().argmax(1) == labels).float().mean()


def percent_right(logits: Tensor, labels: Tensor) -> Tensor:
    """Return :func:`batch_accuracy` in percent: the old name, which works for one release."""
    _deprecated.warn("percent_right", "batch_accuracy, a fraction", stacklevel=2)
    return 100 * batch_accuracy(logits, labels)
