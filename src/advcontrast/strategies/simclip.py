"""Sim-CLIP: unsupervised Siamese adversarial fine-tuning (Hossain and Imteaj, 2024)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from torch import Tensor, nn

from ..functional import cosine
from .blocks import frozen_teacher
from .fare import CLIP_ATTACK, squared_distances
from .learner import ContrastiveLearner, Part
from .step import Step


class SimCLIP(ContrastiveLearner):
    r"""Fine-tune an encoder so that embeddings of attacked images keep the direction of the original clean ones.

    With the encoder f, the frozen original :math:`f_0`, an image x and the attacked image x',

    .. math::

        L &= -\tfrac12 \cos\big(f(x'), \mathrm{sg}\, f_0(x)\big)
            - \tfrac12 \cos\big(f_0(x), \mathrm{sg}\, f(x')\big) \\
        x' &= \arg\max_{x'} \lVert f(x') - f_0(x) \rVert^2

    averaged over the batch, where sg stops the gradient. Since :math:`f_0` is frozen, the second half has no gradient,
    and the first one half of the usual gradient, which makes no difference to AdamW. The attack runs through f in eval
    mode. A dual network uses only its adversarial branch.

    The released script for CLIP on ImageNet has PGD with 10 steps of 1/255 in 2/255 or 4/255, batches of 64, AdamW with
    rate 1e-3 and weight decay 1e-5, and 10,000 steps. A step costs 24 forward passes per image. Reference: Hossain and
    Imteaj, 2024.

    Args:
        model: f, from images ``[N, C, H, W]`` in [0, 1] to embeddings ``[N, D]``; it contains the normalisation.
        teacher: :math:`f_0`, a network with outputs of the same size, in eval mode; it is frozen.
        attack: ``attack(objective, x)`` returns perturbed images, by default that of the paper with 4/255.
        augment: ``augment(images)`` returns one view; without it the learner is called with views.
        terms: as for :class:`~advcontrast.strategies.ContrastiveLearner`.

    Raises:
        ValueError: the teacher is in train mode, on another device or shares parameters with the encoder; or a
            convolution has the teacher's weights and another stride or padding.
        TypeError: an argument has the wrong type.

    Example:
        >>> from advcontrast.strategies import SimCLIP
        >>> learner = SimCLIP(torch.nn.Flatten(), torch.nn.Flatten().eval(), attack=lambda objective, x: x)
        >>> round(learner(torch.rand(4, 3, 4, 4)).loss.item(), 4)
        -1.0
    """

    views, normalised = 1, False
    branches = ("adv",)
    couples_samples = False

    def __init__(
        self,
        model: nn.Module,
        teacher: nn.Module,
        *,
        attack: Callable[..., Tensor] | None = None,
        augment: Callable[..., Any] | None = None,
        terms: Iterable[nn.Module] = (),
    ) -> None:
        super().__init__(model, attack=CLIP_ATTACK if attack is None else attack, augment=augment, terms=terms)
        self.teacher = frozen_teacher("SimCLIP", teacher, model)

    def parts(self, step: Step) -> Iterator[Part]:
        """Yield the distance of attacked images from the teacher."""
        (x,) = step.views
        target = self.teacher(x)
        (x_adv,) = step.perturb(lambda z: squared_distances("SimCLIP", z, target), "adv", x)
        (z_adv,) = step.z["adv"] = step.embed("adv", x_adv)
        yield Part("adv", -(cosine(z_adv, target) + cosine(target, z_adv.detach())) / 2)
