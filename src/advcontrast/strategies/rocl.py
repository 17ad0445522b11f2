"""RoCL: robust contrastive learning (Kim et al., NeurIPS 2020)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from torch import Tensor, nn

from .._checks import check_bool
from .contrast import view_losses
from .learner import ContrastiveLearner, Part, Weight
from .step import Step


class RoCL(ContrastiveLearner):
    r"""Contrast two views of each image and an attacked one.

    With the embeddings :math:`z_1, z_2` of the views, :math:`z'_1` of the attacked first view, and
    :math:`\ell(a, b)` the cross-entropy of NT-Xent for anchors a with partners b among the embeddings of all views
    that its loss has,

    .. math::

        L &= \frac13 \sum_{a \ne b \in \{z_1, z_2, z'_1\}} \ell(a, b) + e\, \mathrm{NTX}(z'_1, z_2) \\
        x'_1 &= \arg\max_{x'_1} \mathrm{NTX}(z'_1, z_2)

    so an anchor has two partners, whose losses are added. The attack runs through the network in eval mode, with
    :math:`z_2` fixed. All three views pass through it in one forward pass and share batch statistics. A dual network
    uses only its adversarial branch.

    The paper's settings for CIFAR-10: SimCLR's views, 7 steps of 0.007 in 0.0314, temperature 0.5, batches of 512,
    LARS with rate 1.5 and weight decay 1e-6, 1000 epochs with 10 epochs of warm-up and a cosine, and a head without
    batch norms. The released code detaches the partners and negatives in every similarity, adds 1e-8 to norms and
    within logarithms, and embeds the views of the last term once more. A step costs 20 forward passes per image with
    the default attack. Reference: Kim et al., NeurIPS 2020.

    Args:
        model: network from images ``[N, C, H, W]`` to embeddings ``[N, D]``.
        extra: the weight e, at least 0, or a function of the training step.
        released: whether to detach partners and negatives, also in the attack.
        attack: ``attack(objective, x)`` returns perturbed images, by default ``PGDAttack()``.
        augment: ``augment(images)`` returns two views; without it the learner is called with views.
        terms: as for :class:`~advcontrast.strategies.ContrastiveLearner`.

    Raises:
        ValueError: ``extra`` < 0.
        TypeError: an argument has the wrong type.

    Example:
        If all embeddings are equal, each of the 6 pairs of three views of two images costs log 5.

        >>> from advcontrast.strategies import RoCL
        >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Threshold(2.0, 1.0))  # returns ones
        >>> x = torch.rand(2, 3, 4, 4)
        >>> learner = RoCL(model, extra=0, attack=lambda objective, x: x)
        >>> round(learner(x, x).loss.item(), 4) == round(2 * math.log(5), 4)
        True
    """

    normalised = False
    branches = ("adv",)

    def __init__(
        self,
        model: nn.Module,
        *,
        extra: Weight = 1 / 256,
        released: bool = False,
        attack: Callable[..., Tensor] | None = None,
        augment: Callable[..., Any] | None = None,
        terms: Iterable[nn.Module] = (),
    ) -> None:
        check_bool("RoCL", "released", released, remedy="True detaches partners and negatives")
        super().__init__(model, attack=attack, augment=augment, terms=terms)
        self.extra = self.weight("extra", extra, remedy="The paper uses 1 / 256")
        self.released = released

    def parts(self, step: Step) -> Iterator[Part]:
        """Yield the loss of all three views, and that of the attacked one with its partner."""
        x1, x2 = step.views
        (fixed,) = step.still("adv", x2)
        (x_adv,) = step.perturb(lambda z: self._contrast(step, z, fixed), "adv", x1)
        z1, z2, z_adv = step.embed("adv", x1, x2, x_adv)
        step.z["clean"] = z1, z2
        yield Part("views", self._contrast(step, z1, z2, z_adv))
        yield Part("adv", self._contrast(step, z_adv, z2), self.extra)

    def _contrast(self, step: Step, *z: Tensor) -> Tensor:
        return view_losses(*step.gather(*z), detach_keys=self.released).sum() / len(z)
