"""FARE: unsupervised adversarial fine-tuning of vision encoders such as that of CLIP (Schlarmann et al., ICML 2024)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from .._checks import check_real, complaint
from ..attacks import PGDAttack
from .blocks import check_teacher_output, frozen_teacher
from .learner import ContrastiveLearner, Part, Weight
from .step import Step

#: The attack of FARE, SimCLIP and TeCoA.
CLIP_ATTACK = PGDAttack(eps=4 / 255, step_size=1 / 255, steps=10)


class FARE(ContrastiveLearner):
    r"""Fine-tune an encoder so that attacked images keep the original embeddings of the clean images.

    With the encoder f, the frozen original :math:`f_0`, an image x and the attacked image x',

    .. math::

        L &= \lVert f(x') - f_0(x) \rVert^2 \\
        &\quad + c\, \max\big(0, \lVert f(x) - f_0(x) \rVert^2 - \rho\big) \\
        x' &= \arg\max_{x'} \lVert f(x') - f_0(x) \rVert^2

    averaged over the batch, with sums over the dimensions of embeddings that are not normalised. The paper has c = 0.
    With c > 0 the loss also penalises clean images whose embedding drifts by more than :math:`\rho`, which does not
    bound the drift; the mean of the squared drift is logged. The attack runs through f in eval mode. Attacked and clean
    images pass through f in one forward pass. A dual network, such as
    ``convert_to_dual_bn(vit, norms=nn.LayerNorm)``, uses only its adversarial branch. The encoder usually starts as a
    copy of the original, where the attack needs its random start: at the image the distance has no gradient.

    The paper's settings for CLIP on ImageNet: PGD with 10 steps of 1/255 in 2/255 or 4/255, batches of 128, AdamW with
    rate 1e-5 and weight decay 1e-4 on all parameters, 20,000 steps with 1,400 of warm-up and a cosine. The attack of
    the released code has momentum, which makes no difference to the sign of a nonzero gradient, and does not clamp to
    [0, 1] at its start. A radius that grows over the first half of the training, for encoders that are not robust, is
    ``attack=Scheduled(lambda e: PGDAttack(eps=e, step_size=e / 4, steps=10), Staircase(1/255, 4/255, steps // 2))``. A
    step costs 24 forward passes per image, with c > 0 27. Reference: Schlarmann et al., ICML 2024.

    Args:
        model: f, from images ``[N, C, H, W]`` in [0, 1] to embeddings ``[N, D]``; it contains the normalisation.
        teacher: :math:`f_0`, a network with outputs of the same size, in eval mode; it is frozen.
        clean: the weight c, at least 0, or a function of the training step. The number 0 skips the clean pass.
        drift: the limit :math:`\rho`, at least 0, in squared units of the embedding; it needs ``clean``.
        attack: ``attack(objective, x)`` returns perturbed images, by default that of the paper with 4/255.
        augment: ``augment(images)`` returns one view; without it the learner is called with views.
        terms: as for :class:`~advcontrast.strategies.ContrastiveLearner`.

    Raises:
        ValueError: the teacher is in train mode, on another device or shares parameters with the encoder; a convolution
            has the teacher's weights and another stride or padding; or a number is out of range.
        TypeError: an argument has the wrong type.

    Example:
        An attack that moves a pixel by 0.5 moves the embedding of an encoder that equals the original by 0.25.

        >>> from advcontrast.strategies import FARE
        >>> attack = PGDAttack(eps=0.5, step_size=0.5, steps=1)
        >>> learner = FARE(torch.nn.Flatten(), torch.nn.Flatten().eval(), attack=attack)
        >>> learner(torch.full((4, 1, 1, 1), 0.5)).loss.item()
        0.25
    """

    views, normalised = 1, False
    branches = ("adv",)
    couples_samples = False

    def __init__(
        self,
        model: nn.Module,
        teacher: nn.Module,
        *,
        clean: Weight = 0.0,
        drift: float = 0.0,
        attack: Callable[..., Tensor] | None = None,
        augment: Callable[..., Any] | None = None,
        terms: Iterable[nn.Module] = (),
    ) -> None:
        check_real("FARE", "drift", drift, low=0, remedy="0 penalises every drift")
        super().__init__(model, attack=CLIP_ATTACK if attack is None else attack, augment=augment, terms=terms)
        self.clean = self.weight("clean", clean, remedy="The paper uses 0")
        if drift and clean == 0:
            raise ValueError(complaint("FARE", "clean > 0 with a limit of the drift", repr(clean), "Pass clean=1"))
        self.drift = drift
        self.teacher = frozen_teacher("FARE", teacher, model)

    def parts(self, step: Step) -> Iterator[Part]:
        """Yield the distance of attacked images from the teacher, and that of clean ones."""
        (x,) = step.views
        target = self.teacher(x)
        (x_adv,) = step.perturb(lambda z: squared_distances("FARE", z, target), "adv", x)
        z_adv, *z = step.embed("adv", x_adv) if self.clean == 0 else step.embed("adv", x_adv, x)
        step.z["adv"] = (z_adv,)
        yield Part("adv", squared_distances("FARE", z_adv, target).mean())
        if z:
            step.z["clean"] = tuple(z)
            drifts = squared_distances("FARE", z[0], target)
            yield Part("clean", (drifts - self.drift).relu().mean(), self.clean, {"drift": drifts.detach().mean()})


def squared_distances(owner: str, z: Tensor, target: Tensor) -> Tensor:
    """Return the squared distance of each embedding from that of the teacher."""
    check_teacher_output(owner, z, target)
    dtype = torch.promote_types(z.dtype, torch.float32)
    return (z.to(dtype) - target.to(dtype)).square().sum(1)
