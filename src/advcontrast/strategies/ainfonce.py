"""A-InfoNCE: asymmetric adversarial contrast (Yu et al., ECCV 2022)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from .._checks import check_bool, check_int, check_real, check_shape, check_tensor, complaint
from ..functional.nt_xent import unit_rows
from .contrast import four_views, pair_means, view_losses
from .learner import Block, ContrastiveLearner, Part, Weight
from .step import Step

_TEMPERATURE = 0.5


class AdaptiveGamma(Block):
    r"""Weight of :class:`AInfoNCE` that grows to 0.5 as attacked images approach clean ones.

    With the mean distance d of a batch between the embeddings of the images and of the attacked ones, both through the
    clean branch in eval mode, and its mean :math:`\bar d` over the first ``after`` training steps, it is
    :math:`\gamma_0` in these steps, and from then on

    .. math:: \gamma = \gamma_0 + (0.5 - \gamma_0) \min\Big(1, \max\Big(0,
        \frac{\bar d - d}{\bar d - d_\mathrm{min}}\Big)\Big)

    The paper has the steps of 30 epochs and :math:`d_\mathrm{min}` = 0.4; the released code measures the features
    before the projection head, in train mode.

    Args:
        start: the weight :math:`\gamma_0`, in [0, 1].
        after: number of training steps with :math:`\gamma_0`, at least 1.
        nearest: the distance :math:`d_\mathrm{min}`, at least 0.

    Raises:
        ValueError: a number is out of range.
        TypeError: an argument has the wrong type.

    Example:
        >>> from advcontrast.strategies import AdaptiveGamma
        >>> gamma = AdaptiveGamma(0.2, after=1, nearest=0.5)
        >>> before = gamma(torch.tensor([1.0, 2.0]))
        >>> gamma.advance()
        >>> [round(weight.item(), 2) for weight in (before, gamma(torch.tensor([1.0])), gamma(torch.tensor([0.5])))]
        [0.2, 0.35, 0.5]
    """

    total: Tensor
    steps: Tensor

    def __init__(self, start: float = 0.2, *, after: int, nearest: float = 0.4) -> None:
        check_real("AdaptiveGamma", "start", start, low=0, high=1, remedy="The paper uses 0.2")
        check_int("AdaptiveGamma", "after", after, low=1, remedy="Pass the steps of 30 epochs for example")
        check_real("AdaptiveGamma", "nearest", nearest, low=0, remedy="The paper uses 0.4")
        super().__init__()
        self.start, self.after, self.nearest = start, after, nearest
        self.register_buffer("total", torch.zeros(()))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        self._distance = self.total

    def forward(self, distances: Tensor) -> Tensor:
        """Return the weight, a scalar, for the distances ``[N]`` of a batch."""
        remedy = "Pass the distance of each image from the attacked one"
        check_tensor("AdaptiveGamma", "distances", distances, remedy=remedy)
        check_shape("AdaptiveGamma", "distances", distances, "[N]", distances.dim() == 1, remedy=remedy)
        self._distance = distances.detach().mean()
        mean = self.total.to(self._distance) / self.steps
        share = ((mean - self._distance) / (mean - self.nearest)).masked_fill(self._distance > mean, 0)
        share = share.masked_fill(self._distance <= self.nearest, 1).masked_fill(self.steps < self.after, 0)
        return self.start + (0.5 - self.start) * share

    def advance(self) -> None:
        """Add the distance of a training step to the mean, if it is one of the first."""
        first = self.steps < self.after
        self.total += self._distance * first
        self.steps += first

    def extra_repr(self) -> str:
        """Show the settings."""
        return f"{self.start}, after={self.after}, nearest={self.nearest}"


class AInfoNCE(ContrastiveLearner):
    r"""Contrast attacked images with clean views, which are pulled only weakly towards the attacked ones.

    The views and their branches are those of :class:`~advcontrast.strategies.AdvCL`, without pseudo-labels: attacked
    images :math:`a` on the adversarial branch, and on the clean one views :math:`c`, high frequencies among them. With
    :math:`\ell(i, j)` the cross-entropy at temperature 0.5 of anchors i with partners j among all other embeddings,

    .. math::

        L &= \frac{0.5}{0.07 \cdot 12} \Big[ \sum_{c \ne c'} \ell(c, c') \\
        &\quad + 2 w \sum_c \big( \gamma\, \ell(c, \mathrm{sg}(a)) + (1 - \gamma)\, \ell(a, \mathrm{sg}(c)) \big) \Big]

    where sg detaches partners and negatives: attacked images are inferior positives, which pull clean views only with
    weight :math:`\gamma`. The attack maximises the plain contrast of :class:`~advcontrast.strategies.AdvCL`.

    With hard negatives, :math:`\ell` is :math:`-\log\big(e_{ij} / (p_i + n_i)\big)` with exponentials e of the
    similarities, :math:`p_i` their mean over the partners of anchor i, and for its M negatives k

    .. math:: n_i = \max\Big( \frac{1}{1 - \tau} \Big[ M \frac{\sum_k e_{ik}^{1 + \beta}}{\sum_k e_{ik}^\beta} -
        \tau M p_i \Big], M e^{-1 / 0.5} \Big)

    The paper's settings for CIFAR-10, beside those of AdvCL: 400 epochs, w = 1.2 and :class:`AdaptiveGamma` from
    :math:`\gamma` = 0.2; or hard negatives (0.12, 1) alone; or both, with w = 0.7. The released code divides by the
    sums of columns, takes the mean of the weights over all columns, whose exponentials are zero for partners and have
    1e-9 added, and bounds :math:`n_i` by M. Without :math:`\gamma`, and in its attack, it takes :math:`\ell(a, c)` in
    both directions. A step costs 25 forward passes per image, with :class:`AdaptiveGamma` 27. Reference: Yu et al.,
    ECCV 2022.

    Args:
        model: network from images ``[N, C, H, W]`` to embeddings ``[N, D]``, normally with dual norms.
        gamma: weight in [0, 1], a function of the training step, or :class:`AdaptiveGamma`; ``None`` makes the contrast
            symmetric, without sg.
        weight: the weight w, at least 0, or a function of the training step.
        hard_negatives: ``None``, or the pair of the prior :math:`\tau` of a negative to be a partner, in [0, 1), and
            the concentration :math:`\beta`, at least 0.
        released: whether to use the forms of the released code in the loss; the attack is the same.
        attack: ``attack(objective, x)`` returns perturbed images, by default ``PGDAttack()``.
        augment: ``augment(images)`` returns two views and the images, such as ``MultiView(ContrastivePairAugment(32),
            CropFlip())``; without it the learner is called with these.
        terms: as for :class:`~advcontrast.strategies.ContrastiveLearner`.

    Raises:
        ValueError: a number is out of range, also one that a schedule returns, or a dual norm without the branches
            ``"clean"`` and ``"adv"``.
        TypeError: an argument has the wrong type.

    Example:
        If all embeddings are equal, each of the 12 pairs of four views of two images costs log 7.

        >>> from advcontrast.strategies import AInfoNCE
        >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Threshold(2.0, 1.0))  # returns ones
        >>> learner = AInfoNCE(model, weight=1, attack=lambda objective, x: x)
        >>> x = torch.rand(2, 3, 4, 4)
        >>> round(learner(x, x, x).loss.item(), 3) == round(0.5 / 0.07 * math.log(7), 3)
        True
    """

    views, normalised = 3, False

    def __init__(
        self,
        model: nn.Module,
        *,
        gamma: Weight | AdaptiveGamma | None = 0.2,
        weight: Weight = 1.2,
        hard_negatives: tuple[float, float] | None = None,
        released: bool = False,
        attack: Callable[..., Tensor] | None = None,
        augment: Callable[..., Any] | None = None,
        terms: Iterable[nn.Module] = (),
    ) -> None:
        check_bool("AInfoNCE", "released", released, remedy="True uses the forms of the released code")
        if hard_negatives is not None:
            remedy = "The paper uses (0.12, 1.0)"
            if not isinstance(hard_negatives, (tuple, list)) or len(hard_negatives) != 2:
                expected = "hard_negatives to be a pair (prior, concentration)"
                raise TypeError(complaint("AInfoNCE", expected, repr(hard_negatives), remedy))
            prior, concentration = hard_negatives
            check_real("AInfoNCE", "the prior of hard_negatives", prior, low=0, high=1, remedy=remedy)
            check_real("AInfoNCE", "1 - the prior of hard_negatives", 1 - prior, low=0, above=True, remedy=remedy)
            check_real("AInfoNCE", "the concentration of hard_negatives", concentration, low=0, remedy=remedy)
        super().__init__(model, attack=attack, augment=augment, terms=terms)
        if gamma is not None and not isinstance(gamma, AdaptiveGamma):
            self.weight("gamma", gamma, remedy="The paper uses 0.2")
        self.gamma = gamma
        self._gamma_now()
        self.adv_weight = self.weight("weight", weight, remedy="The paper uses 1.2")
        self.hard_negatives, self.released = hard_negatives, released

    def parts(self, step: Step) -> Iterator[Part]:
        """Yield the asymmetric contrast of the four views."""
        gamma = self._gamma_now()
        x_adv, z = four_views(step, 8, lambda *z: view_losses(*step.gather(*z)).sum())
        if isinstance(gamma, AdaptiveGamma):
            clean, attacked = step.still("clean", step.views[2], x_adv)
            (distances,) = step.gather((clean - attacked).norm(dim=1))
            gamma = gamma(distances)
        z = step.gather(*z)
        losses = self._losses(*z)
        from_adv, to_adv = losses[0, 1:].sum(), losses[1:, 0].sum()
        if gamma is not None:
            detached = self._losses(*z, detach_keys=True)
            across = 2 * (gamma * detached[1:, 0].sum() + (1 - gamma) * detached[0, 1:].sum())
        else:
            across = 2 * from_adv if self.released else from_adv + to_adv
        total = losses[1:, 1:].sum() + self.now(self.adv_weight) * across
        yield Part("contrast", _TEMPERATURE / 0.07 * total / 12)

    def _gamma_now(self) -> float | AdaptiveGamma | None:
        if self.gamma is None or isinstance(self.gamma, AdaptiveGamma):
            return self.gamma
        gamma = self.now(self.gamma)
        check_real("AInfoNCE", "gamma", gamma, low=0, high=1, remedy="The paper uses 0.2")
        return gamma

    def _losses(self, *z: Tensor, detach_keys: bool = False) -> Tensor:
        """Return the loss of each ordered pair of views, ``[4, 4]``."""
        if self.hard_negatives is None:
            return view_losses(*z, temperature=_TEMPERATURE, detach_keys=detach_keys)
        (prior, concentration), views, n = self.hard_negatives, len(z), len(z[0])
        with torch.autocast(z[0].device.type, enabled=False):
            anchors = torch.cat([unit_rows(each) for each in z])
            logits = anchors @ (anchors.detach() if detach_keys else anchors).T / _TEMPERATURE
            image = torch.arange(n, device=logits.device).repeat(views)
            partner = (image[:, None] == image).fill_diagonal_(False)
            negative = image[:, None] != image
            e = logits.exp()
            positive, count = (e * partner).sum(1) / (views - 1), (n - 1) * views
            if self.released:  # its exponentials are smaller by exp(1 / 0.5)
                weights = (e * negative + 1e-9 * math.exp(1 / _TEMPERATURE)) ** concentration
                negatives = (weights * e * negative / weights.mean(1)).sum(1)
                least, shape = float(count), (1, -1)
            else:
                weights = e**concentration * negative
                negatives = count * (weights * e).sum(1) / weights.sum(1)
                least, shape = count * math.exp(-1 / _TEMPERATURE), (-1, 1)
            sums = positive + ((negatives - prior * count * positive) / (1 - prior)).clamp(min=least)
            return pair_means(sums.log().view(shape) - logits, views)
