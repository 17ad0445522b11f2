"""CF-AMC: adversarial multi-crop learning with free attacks (CF-AMC-SSL, 2025)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from ..attacks import FreeAttack
from ..functional import coding_rate, cosine
from ..functional.nt_xent import unit_rows
from .learner import ContrastiveLearner, Part
from .step import Step


class CFAMC(ContrastiveLearner):
    r"""Pull the embeddings of many attacked crops of an image together, and push those of all images apart.

    With the embeddings :math:`z_1, \dots, z_V` of the attacked crops, scaled to length one, their mean
    :math:`\bar z` and the coding rate R (:func:`~advcontrast.functional.coding_rate`),

    .. math:: L = -\frac{200}{V} \sum_v \cos(z_v, \bar z) - \frac1V \sum_v R(z_v)

    averaged over the batch in the first term. All crops pass through the network in one forward pass and share batch
    statistics; there is no clean stream, and a dual network uses only its adversarial branch. The attack maximises L.
    By default it is free: the gradient of the crops comes from the training step itself, in train mode, and the
    perturbations are kept for the next batch.

    The paper's settings for CIFAR-10: 16 crops of area 0.08 and more, colour jitter, gray, blur and solarisation,
    ``MultiView(*16 * [SimCLRAugment(32, min_area=0.08)])`` for example; each batch 3 to 5 times in a row, as
    :class:`~advcontrast.augment.Replay` does; steps of 0.01 in 8/255, embeddings of length 1024, batches of 100, SGD
    with LARS, rate 0.3, Nesterov momentum 0.9 and weight decay 1e-4, 10 epochs with a cosine. The released code starts
    from perturbations of zero, does not clamp the images to [0, 1] in the first pass of a batch, and takes as many
    steps of the cosine for a batch as it has passes. A step costs 3 forward passes per crop. Reference: CF-AMC-SSL,
    2025.

    Args:
        model: network from images ``[N, C, H, W]`` to embeddings ``[N, D]``.
        attack: ``attack(objective, x)`` returns perturbed images, by default ``FreeAttack(step_size=0.01)``.
        augment: ``augment(images)`` returns two or more views; without it the learner is called with them.
        terms: as for :class:`~advcontrast.strategies.ContrastiveLearner`.

    Raises:
        TypeError: an argument has the wrong type.

    Example:
        Crops with equal embeddings are at the minimum of the first term; two orthogonal ones have the rate log 6.

        >>> from advcontrast.strategies import CFAMC
        >>> learner = CFAMC(torch.nn.Flatten(), attack=lambda objective, x: x)
        >>> x = torch.eye(2).view(2, 2, 1, 1)
        >>> loss = learner(x, x, x).loss.item()
        >>> round(loss, 3) == round(-200 - math.log(6), 3)
        True
    """

    views, normalised = None, False
    branches = ("adv",)

    def __init__(
        self,
        model: nn.Module,
        *,
        attack: Callable[..., Tensor] | None = None,
        augment: Callable[..., Any] | None = None,
        terms: Iterable[nn.Module] = (),
    ) -> None:
        attack = FreeAttack(step_size=0.01) if attack is None else attack
        super().__init__(model, attack=attack, augment=augment, terms=terms)

    def parts(self, step: Step) -> Iterator[Part]:
        """Yield the distance of the crops from their mean, and the negative coding rate."""

        def loss(*z: Tensor) -> Tensor:
            invariance, coding = self._losses(step, z)
            return 200 * invariance + coding

        step.z["adv"] = step.embed("adv", *step.perturb(loss, "adv", *step.views))
        invariance, coding = self._losses(step, step.z["adv"])
        yield Part("invariance", invariance, 200.0)
        yield Part("coding", coding)

    def _losses(self, step: Step, z: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        z = tuple(unit_rows(each) for each in step.gather(*z))
        mean = torch.stack(z).mean(0)
        invariance = -torch.stack([cosine(each, mean) for each in z]).mean()
        return invariance, -torch.stack([coding_rate(each) for each in z]).mean()
