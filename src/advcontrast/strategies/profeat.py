"""ProFeAT: projected feature adversarial training (Addepalli et al., 2024)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from .._checks import check_type
from ..functional import cosine
from .blocks import Frozen, check_teacher_output, frozen_teacher
from .learner import ContrastiveLearner, Part, StepOutput, Weight
from .step import Step


class ProFeAT(ContrastiveLearner):
    r"""Distil a standard self-supervised teacher into a robust student, before and after the teacher's projector.

    With the student S, the frozen teacher T and its frozen projector P, which the student shares, a weak view
    :math:`x_T` of each image for the teacher, a strong view x for the student and the attacked view x',

    .. math::

        L &= d\big(S(x), T(x_T)\big) + \beta\, d\big(S(x'), S(x)\big) \\
        d(z, t) &= -\tfrac12 \cos(z, t) - \tfrac12 \cos(P(z), P(t)) \\
        x' &= \arg\max_{x'} -\cos\big(S(x'), S(x)\big) \\
        &\qquad - \cos\big(P(S(x')), P(T(x_T))\big)

    averaged over the batch. The attack runs through the student in eval mode; its target S(x) is that of the training
    pass, which precedes it. The two views have separate forward passes and batch statistics. Gradients flow through
    both arguments of d, and through P, whose weights are frozen. A dual network uses only its adversarial
    branch. The student usually starts as a copy of the teacher.

    The paper's settings for CIFAR-10: pad-and-crop and flip for the teacher, the same after AutoAugment for the
    student, PGD with 5 steps of 2/255 in 8/255, a projector Linear - ReLU - Linear to 256, batches of 256, SGD with
    rate 0.5, momentum 0.9 and weight decay 3e-4, 100 epochs with 10 epochs of warm-up and a cosine. The released code
    trains 101 epochs and clamps to [0, 1] after a step, not at the start of an attack. A step costs 17 forward passes
    per image, against 32 for :class:`~advcontrast.ACLTrainer`. Reference: Addepalli et al., 2024.

    Args:
        model: the student, from images ``[N, C, H, W]`` to features ``[N, D]``.
        projector: P, features ``[N, D]`` to projections; it is frozen and put into eval mode.
        teacher: a network with features of the same size, in eval mode; it is frozen.
        beta: weight of the attacked view, at least 0, or a function of the training step.
        attack: ``attack(objective, x)`` returns perturbed images, by default ``PGDAttack()``.
        augment: ``augment(images)`` returns a pair, the teacher's views and the student's.
        terms: as for :class:`~advcontrast.strategies.ContrastiveLearner`.

    Raises:
        ValueError: the teacher is in train mode, on another device or shares parameters with the student; a convolution
            has the teacher's weights and another stride or padding; ``beta`` < 0.
        TypeError: an argument has the wrong type.

    Example:
        A student that equals the teacher, without an attack, is at the minimum -1 - beta.

        >>> from advcontrast.strategies import ProFeAT
        >>> teacher, projector = torch.nn.Flatten().eval(), torch.nn.Linear(48, 8)
        >>> learner = ProFeAT(torch.nn.Flatten(), projector, teacher, attack=lambda objective, x: x)
        >>> round(learner(torch.rand(4, 3, 4, 4)).loss.item(), 4)
        -9.0
    """

    normalised = False
    branches = ("adv",)
    couples_samples = False

    def __init__(
        self,
        model: nn.Module,
        projector: nn.Module,
        teacher: nn.Module,
        *,
        beta: Weight = 8.0,
        attack: Callable[..., Tensor] | None = None,
        augment: Callable[..., Any] | None = None,
        terms: Iterable[nn.Module] = (),
    ) -> None:
        check_type("ProFeAT", "projector", projector, nn.Module, remedy="Pass the head of the teacher")
        super().__init__(model, attack=attack, augment=augment, terms=terms)
        self.beta = self.weight("beta", beta, remedy="The paper uses 8")
        self.teacher = frozen_teacher("ProFeAT", teacher, model)
        self.projector = Frozen(projector)

    def forward(self, *batch: Tensor, generator: torch.Generator | None = None) -> StepOutput:
        """Return the loss of a pair of views, or of images, which serve as both views if ``augment`` is ``None``."""
        return super().forward(*(batch * 2 if len(batch) == 1 and self.augment is None else batch), generator=generator)

    def parts(self, step: Step) -> Iterator[Part]:
        """Yield the distance from the teacher, and that of the attacked view from the clean one."""
        weak, strong = step.views
        project = self.projector.model  # not self.projector, which has no gradient
        target = self.teacher(weak)
        (z,) = step.embed("adv", strong)
        check_teacher_output("ProFeAT", z, target)
        fixed, projected_target = z.detach(), project(target)
        (x_adv,) = step.perturb(lambda s: -cosine(s, fixed) - cosine(project(s), projected_target), "adv", strong)
        (z_adv,) = step.embed("adv", x_adv)
        step.z["clean"], step.z["adv"] = (z,), (z_adv,)
        p, p_adv = project(z), project(z_adv)
        yield Part("clean", -(cosine(z, target) + cosine(p, projected_target)) / 2)
        yield Part("adv", -(cosine(z_adv, z) + cosine(p_adv, p)) / 2, self.beta)
