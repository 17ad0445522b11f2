"""TARO: targeted adversarial self-supervised learning (Kim et al., NeurIPS 2023)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .. import distributed
from .._checks import check_bool, check_type, complaint
from ..functional import cosine
from ..functional.nt_xent import unit_rows
from .learner import ContrastiveLearner, Part
from .step import Step


class TARO(ContrastiveLearner):
    r"""Attack each view towards another image that is similar and uncertain, with the loss of SimSiam.

    With embeddings :math:`z = f(x)` and predictions :math:`p = h(z)` of the first view and both attacked ones,

    .. math::

        L &= D(x_1, x'_1) + D(x'_1, x'_2) + D(x_1, x'_2) \\
        D(i, j) &= -\tfrac12 \cos(p_i, \mathrm{sg}(z_j)) - \tfrac12 \cos(p_j, \mathrm{sg}(z_i)) \\
        x'_v &= \arg\max_{x'_v} \cos\big(h(f(x'_v)), z_{v,t(v)}\big)

    averaged over the batch, where sg stops the gradient. The target of an image is the other image j of the batch with
    the largest sum of :math:`(1 + \cos(p_i, p_j)) / 2` and the entropy of :math:`\mathrm{softmax}(p_j)`, each scaled so
    that its squares over j add up to 1. Targets are chosen for each view, and attacks run, through network and
    predictor in eval mode; the target is fixed. The three views then share a forward pass and its batch statistics. A
    dual network uses only its adversarial branch.

    The paper's settings for CIFAR-10: SimCLR's views with colour jitter (0.4, 0.4, 0.2, 0.1), PGD with 10 steps of
    2/255 in 8/255, batches of 512, SGD with rate 0.06, constant for the predictor, momentum 0.9 and weight decay 5e-4,
    800 epochs with 5 epochs of warm-up and a cosine. The released code sets the similarity of an image with itself to
    0, so that it can be its own target, and chooses targets in train mode. Its attack also has a term
    :math:`\cos(p_t, \mathrm{sg}(z))`, which has no gradient. A step costs 31 forward passes per image with the default
    attack. Reference: Kim et al., NeurIPS 2023.

    Args:
        model: network from images ``[N, C, H, W]`` to embeddings ``[N, D]``.
        predictor: embeddings ``[N, D]`` in and out; it is trained.
        released: whether an image can be its own target.
        attack: ``attack(objective, x)`` returns perturbed images, by default ``PGDAttack()``.
        augment: ``augment(images)`` returns two views; without it the learner is called with views.
        terms: as for :class:`~advcontrast.strategies.ContrastiveLearner`.

    Raises:
        ValueError: in use, a predictor whose outputs differ in size from its inputs.
        TypeError: an argument has the wrong type.

    Example:
        If all predictions are parallel to all embeddings, each of the three D is at its minimum.

        >>> from advcontrast.strategies import TARO
        >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Threshold(2.0, 1.0))  # returns ones
        >>> learner = TARO(model, torch.nn.Identity(), attack=lambda objective, x: x)
        >>> x = torch.rand(2, 3, 4, 4)
        >>> round(learner(x, x).loss.item(), 4)
        -3.0
    """

    normalised = False
    branches = ("adv",)

    def __init__(
        self,
        model: nn.Module,
        predictor: nn.Module,
        *,
        released: bool = False,
        attack: Callable[..., Tensor] | None = None,
        augment: Callable[..., Any] | None = None,
        terms: Iterable[nn.Module] = (),
    ) -> None:
        check_type("TARO", "predictor", predictor, nn.Module, remedy="Pass a network from embeddings to embeddings")
        check_bool("TARO", "released", released, remedy="True lets an image be its own target")
        super().__init__(model, attack=attack, augment=augment, terms=terms)
        self.require_branches(predictor)
        self.predictor, self.released = predictor, released

    def parts(self, step: Step) -> Iterator[Part]:
        """Yield the distance of the attacked first view from the clean one, and those of the attacked second view."""
        targets = [self._target(step, x) for x in step.views]

        def towards_targets(*z: Tensor) -> Tensor:
            pairs = zip(z, targets, strict=True)
            return torch.stack([cosine(self.predictor(each), target) for each, target in pairs]).sum()

        attacked = step.perturb(towards_targets, "adv", *step.views)
        z = step.embed("adv", step.views[0], *attacked)
        p = step.embed("adv", *z, by=self.predictor)

        def distance(i: int, j: int) -> Tensor:
            return -(cosine(p[i], z[j].detach()) + cosine(p[j], z[i].detach())) / 2

        step.z["clean"], step.z["adv"] = z[:1], z[1:2]
        yield Part("clean", distance(0, 1))
        yield Part("adv", distance(1, 2) + distance(0, 2))

    def _target(self, step: Step, x: Tensor) -> Tensor:
        """Return the embeddings of the targets of a view."""
        (z,) = step.still("adv", x)
        (p,) = step.still("adv", z, by=self.predictor)
        if p.shape != z.shape:
            expected = f"predictor to return shape {list(z.shape)}"
            remedy = "Return embeddings of the shape of its argument"
            raise ValueError(complaint("TARO", expected, f"{list(p.shape)}", remedy))
        z, p = step.gather(z, p)
        found = choose_targets(p, itself=self.released)
        return z[found.chunk(distributed.world_size())[distributed.rank()]]


def choose_targets(p: Tensor, *, itself: bool) -> Tensor:
    """Return the index of the target of each prediction ``[N, D]``, which is another one unless ``itself`` is set."""
    with torch.autocast(p.device.type, enabled=False):
        unit = unit_rows(p)
        similarity = ((unit @ unit.T + 1) / 2).fill_diagonal_(0.5 if itself else 0)
        entropy = torch.special.entr(p.to(unit).softmax(1)).sum(1)
        score = F.normalize(similarity, dim=1) + F.normalize(entropy, dim=0)
        return (score if itself else score.fill_diagonal_(-math.inf)).argmax(1)
