"""DeACL: decoupled adversarial contrastive learning (Zhang et al., ECCV 2022)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from torch import Tensor, nn

from ..functional import cosine
from .blocks import away_from, frozen_teacher
from .learner import ContrastiveLearner, Part, Weight
from .step import Step


class DeACL(ContrastiveLearner):
    r"""Distil a standard self-supervised teacher into a robust student.

    With the student S, the frozen teacher T, a view x of each image and the attacked view x',

    .. math::

        L &= -\cos\big(S(x), T(x)\big) - w \cos\big(S(x'), S(x)\big) \\
        x' &= \arg\max_{x'} -\cos\big(S(x'), T(x)\big)

    averaged over the batch. The attack runs through the student in eval mode. Both views pass through it in one forward
    pass and share batch statistics; gradients flow through both arguments of the second term. A dual network uses only
    its adversarial branch. The student usually starts as a copy of the teacher.

    The paper's settings for CIFAR-10: pad-and-crop and flip (:class:`~advcontrast.augment.CropFlip`), PGD with 5 steps
    of 2/255 in 8/255, batches of 256, SGD with rate 0.5, momentum 0.9 and weight decay 5e-4, 100 epochs with 10 epochs
    of warm-up and a cosine. The released code has a first convolution with padding 2, has w = 3 if its class is used
    directly, and does not clamp to [0, 1] at the start of an attack. A step costs 17 forward passes per image,
    against 32 for :class:`~advcontrast.ACLTrainer`. Reference: Zhang et al., ECCV 2022.

    Args:
        model: the student, from images ``[N, C, H, W]`` to embeddings ``[N, D]``.
        teacher: a network with outputs of the same size, in eval mode; it is frozen.
        robust: the weight w, at least 0, or a function of the training step.
        attack: ``attack(objective, x)`` returns perturbed images, by default ``PGDAttack()``.
        augment: ``augment(images)`` returns one view; without it the learner is called with views.
        terms: as for :class:`~advcontrast.strategies.ContrastiveLearner`.

    Raises:
        ValueError: the teacher is in train mode, on another device or shares parameters with the student; a convolution
            has the teacher's weights and another stride or padding; ``robust`` < 0.
        TypeError: an argument has the wrong type.

    Example:
        A student that equals the teacher, without an attack, is at the minimum -1 - w.

        >>> from advcontrast.strategies import DeACL
        >>> teacher = torch.nn.Flatten().eval()
        >>> learner = DeACL(torch.nn.Flatten(), teacher, attack=lambda objective, x: x)
        >>> round(learner(torch.rand(4, 3, 4, 4)).loss.item(), 4)
        -3.0
    """

    views, normalised = 1, False
    branches = ("adv",)
    couples_samples = False

    def __init__(
        self,
        model: nn.Module,
        teacher: nn.Module,
        *,
        robust: Weight = 2.0,
        attack: Callable[..., Tensor] | None = None,
        augment: Callable[..., Any] | None = None,
        terms: Iterable[nn.Module] = (),
    ) -> None:
        super().__init__(model, attack=attack, augment=augment, terms=terms)
        self.robust = self.weight("robust", robust, remedy="The paper uses 2")
        self.teacher = frozen_teacher("DeACL", teacher, model)

    def parts(self, step: Step) -> Iterator[Part]:
        """Yield the distance from the teacher, and that of the attacked view from the clean one."""
        (x,) = step.views
        target = self.teacher(x)
        (x_adv,) = step.perturb(away_from("DeACL", target), "adv", x)
        z, z_adv = step.z["clean"], step.z["adv"] = [(each,) for each in step.embed("adv", x, x_adv)]
        yield Part("clean", -cosine(*z, target))
        yield Part("adv", -cosine(*z_adv, *z), self.robust)
