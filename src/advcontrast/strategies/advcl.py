"""AdvCL: adversarial contrastive learning with high frequencies and pseudo-labels (Fan et al., NeurIPS 2021)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .. import distributed
from .._checks import check_iterable, check_one_device, check_real, check_tensor, check_type, check_within, complaint
from .contrast import four_views, view_losses
from .learner import ContrastiveLearner, Part, Weight
from .step import Step


class AdvCL(ContrastiveLearner):
    r"""Contrast attacked images with clean views and their high frequencies, and predict pseudo-labels under attack.

    With an image x, two views :math:`x_1, x_2` and its high frequencies h
    (:func:`~advcontrast.functional.high_frequency`) on the clean branch, the attacked :math:`x'` on the adversarial
    branch, :math:`x''` on the branch ``"adv_ce"``, and K heads :math:`g_k` that predict pseudo-labels :math:`y_k`,

    .. math::

        L &= \frac{0.5}{0.07} \mathrm{SupCon}(z', z_1, z_2, z_h) \\
        &\quad + \frac{w}{K} \sum_k \mathrm{CE}\big(g_k(z''), y_k\big)

    where SupCon, at temperature 0.5, averages over all ordered pairs of the four views of an image, whose anchors have
    all other embeddings of the batch in the denominator. :math:`x'` maximises the first term through the adversarial
    branch, the other three views being fixed, and :math:`x''` the second one through ``"adv_ce"``, both in eval mode.
    In training each of the five has its own forward pass. The adversarial branch is the one to export. The
    learner is called with images or views, and pseudo-labels ``[N, K]``, int64, of which -1 is ignored.

    The paper's settings for CIFAR-10: pad-and-crop and flip for x, SimCLR's views for the others,
    ``MultiView(ContrastivePairAugment(32, min_area=0.2), CropFlip())``; PGD with 5 steps of 2/255 in 8/255; clusters of
    the features of a network trained on ImageNet, K = 5 with 2, 10, 50, 100 and 500 of them; batches of 512, SGD with
    rate 0.5, momentum 0.9 and weight decay 1e-4, 1000 epochs with 10 epochs of warm-up and a cosine. The released code
    attacks in train mode, which changes running statistics, and does not clamp to [0, 1] at the start of an attack; its
    heads see the features before a projection head, which has a single norm. A step costs 38 forward passes per image.
    Reference: Fan et al., NeurIPS 2021.

    Args:
        model: network from images ``[N, C, H, W]`` to embeddings ``[N, D]``; dual norms need the branches ``"clean"``,
            ``"adv"`` and ``"adv_ce"``.
        heads: K modules from embeddings to logits, at least one; they are trained.
        weight: the weight w, at least 0, or a function of the training step.
        radius: radius of the low frequencies that h lacks.
        attack: ``attack(objective, x)`` returns perturbed images, by default ``PGDAttack()``.
        augment: ``augment(images)`` returns :math:`x_1, x_2` and x; without it the learner is called with these.
        terms: as for :class:`~advcontrast.strategies.ContrastiveLearner`.

    Raises:
        ValueError: there are no heads, a number is out of range, a dual norm lacks a branch, or, in use,
            pseudo-labels of another shape or, on the CPU, out of the range of their head.
        TypeError: an argument has the wrong type.

    Example:
        If all embeddings are equal, so are the 7 candidates of each anchor of four views of two images.

        >>> from advcontrast.strategies import AdvCL
        >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Threshold(2.0, 1.0))  # returns ones
        >>> learner = AdvCL(model, [torch.nn.Linear(48, 3)], weight=0, attack=lambda objective, x: x)
        >>> x, labels = torch.rand(2, 3, 4, 4), torch.tensor([[0], [2]])
        >>> round(learner(x, x, x, labels).loss.item(), 3) == round(0.5 / 0.07 * math.log(7), 3)
        True
    """

    views, labelled, normalised = 3, True, False
    branches = ("clean", "adv", "adv_ce")

    def __init__(
        self,
        model: nn.Module,
        heads: Iterable[nn.Module],
        *,
        weight: Weight = 0.2,
        radius: float = 8,
        attack: Callable[..., Tensor] | None = None,
        augment: Callable[..., Any] | None = None,
        terms: Iterable[nn.Module] = (),
    ) -> None:
        remedy = "Pass modules such as [nn.Linear(128, 10)]"
        check_iterable("AdvCL", "heads", heads, remedy=remedy)
        heads = [*heads]
        if not heads:
            raise ValueError(complaint("AdvCL", "at least one of heads", "none", remedy))
        for head in heads:
            check_type("AdvCL", "each of heads", head, nn.Module, remedy=remedy)
        check_real("AdvCL", "radius", radius, low=0, remedy="The paper uses 8")
        super().__init__(model, attack=attack, augment=augment, terms=terms)
        self.heads = nn.ModuleList(heads)
        self.require_branches(self.heads)
        self.label_weight = self.weight("weight", weight, remedy="The paper uses 0.2")
        self.radius = radius

    def parts(self, step: Step) -> Iterator[Part]:
        """Yield the contrast of four views, and the cross-entropy of the pseudo-labels."""
        labels = self._checked_labels(step)

        def contrast(*z: Tensor) -> Tensor:
            return 0.5 / 0.07 * view_losses(*step.gather(*z)).sum() / 12

        def cross_entropy(z: Tensor) -> Tensor:
            losses = [self._cross_entropy(step, z, *pair) for pair in zip(self.heads, labels.unbind(1), strict=True)]
            return torch.stack(losses).mean()

        _, z = four_views(step, self.radius, contrast)
        yield Part("contrast", contrast(*z))
        (x_ce,) = step.perturb(cross_entropy, "adv_ce", step.views[2])
        (z_ce,) = step.embed("adv_ce", x_ce)
        yield Part("labels", cross_entropy(z_ce), self.label_weight)

    def _cross_entropy(self, step: Step, z: Tensor, head: nn.Module, labels: Tensor) -> Tensor:
        """Return the mean over the images with a pseudo-label, which may be few in one of several processes."""
        (logits,) = step.embed("adv_ce", z, by=head)
        (labelled,) = step.gather((labels >= 0).to(logits))
        count = labelled.sum().clamp(min=1) / distributed.world_size()
        return F.cross_entropy(logits, labels, ignore_index=-1, reduction="sum") / count

    def _checked_labels(self, step: Step) -> Tensor:
        labels: Tensor = step.targets  # type: ignore[assignment]
        x, k = step.views[2], len(self.heads)
        remedy = f"Pass a column for each of the {k} heads, with classes from 0, or -1 where unknown"
        check_tensor("AdvCL", "pseudo-labels", labels, (torch.int64,), remedy=remedy)
        if labels.shape != (len(x), k):
            expected, got = f"pseudo-labels of shape {[len(x), k]}", f"{list(labels.shape)}"
            raise ValueError(complaint("AdvCL", expected, got, remedy))
        check_one_device("AdvCL", **{"images": x, "pseudo-labels": labels})
        (z,) = step.still("adv_ce", x[:1])
        for i, head in enumerate(self.heads):
            (logits,) = step.still("adv_ce", z, by=head)
            check_within("AdvCL", f"pseudo-labels[:, {i}]", labels[:, i], (-1, logits.shape[1] - 1), remedy=remedy)
        return labels

    def _branches_of(self, part: nn.Module) -> Iterable[str]:
        return ("adv_ce",) if part is self.heads else self.branches
