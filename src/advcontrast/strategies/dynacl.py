"""DynACL: dynamic adversarial contrastive learning (Luo et al., ICLR 2023)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor, nn

from .._checks import check_bool, check_int
from .._types import Branch
from ..losses import NTXentLoss
from .acl import ACLTrainer
from .blocks import Momentum, Scheduled, Staircase
from .step import Step


@dataclass(frozen=True)
class Ramp:
    r"""Schedule of DynACL and AIR for the weight ``alpha`` of the adversarial stream.

    At epoch e of E, with :math:`w = \tfrac23 \lfloor (e - 1) / K \rfloor K / E`, it is :math:`(1 + w) / (1 - w)`, so
    that the loss of DS is :math:`\tfrac12 [(1 - w) L_\mathrm{clean} + (1 + w) L_\mathrm{adv}]`. Epochs are counted from
    1 and become training steps here; later steps keep the last value.

    Args:
        steps: length E of the training, at least 1.
        every: steps K between changes, at least 1; the paper's are those of 50 of 1000 epochs.
        released: whether to use :math:`\lfloor e / K \rfloor`, as the code of DynACL does: the weight then changes an
            epoch before the augmentation. An epoch counts as a fiftieth of ``every``, or one step if that is shorter.

    Raises:
        ValueError: a number < 1.
        TypeError: an argument has the wrong type.

    Example:
        >>> from advcontrast.strategies import Ramp
        >>> alpha = Ramp(1000, 250)
        >>> [round(alpha(step), 4) for step in (0, 249, 250, 750)]  # w is 0, 0, 1/6, 1/2
        [1.0, 1.0, 1.4, 3.0]
    """

    steps: int
    every: int
    released: bool = False

    def __post_init__(self) -> None:
        check_int("Ramp", "steps", self.steps, low=1, remedy="Pass the length of the training")
        check_int("Ramp", "every", self.every, low=1, remedy="Pass the steps of 50 epochs for example")
        check_bool("Ramp", "released", self.released, remedy="True uses the index of the released code")

    def __call__(self, step: int) -> float:
        """Return alpha at a training step, which counts from 0."""
        check_int("Ramp", "step", step, low=0, remedy="Steps count from 0")
        count = min(step, self.steps - 1) + self.released * max(1, self.every // 50)
        w = 2 / 3 * (count // self.every * self.every / self.steps)
        return (1 + w) / (1 - w)


class DynACL(ACLTrainer):
    r"""ACL with augmentations that weaken, an adversarial stream whose weight grows, and a momentum encoder.

    With the encoder f, the momentum encoder :math:`\bar f` and views :math:`x_1, x_2` of strength s,

    .. math::

        L &= \tfrac12 \big[(1 - w)\, \mathrm{NTX}\big(f(x_1), \bar f(x_2)\big) \\
            &\quad + (1 + w)\, \mathrm{NTX}\big(f(x_1'), \bar f(x_2')\big)\big] \\
        x_1', x_2' &= \arg\max_{x_1', x_2'} \mathrm{NTX}\big(f(x_1'), \bar f(x_2')\big)

    where the first term is computed on the clean branch of both networks, the second and the attack on the adversarial
    branch. The attack runs through both encoders in eval mode; only the weights of f get gradients. At epoch e of E, K
    = ``every``, :math:`s = 1 - \lfloor (e - 1) / K \rfloor K / E`, and w is that of :class:`Ramp`; epochs become
    training steps here. :math:`\bar f` follows the parameters of f with ``decay`` before the optimizer steps; its
    running statistics are those of its own batches. It is the network that :meth:`~ContrastiveLearner.encoder` returns.

    The paper's settings for CIFAR-10: E = 1000 epochs, K = 50, NT-Xent at temperature 0.5, PGD with 5 steps of 2/255 in
    8/255, batches of 512, LARS with rate 5 and weight decay 1e-6, 10 epochs of warm-up and a cosine. The released code
    uses :math:`\lfloor e / K \rfloor` for w, and after an interruption the strength of the epoch at which it resumes.
    A step costs 28 forward passes per image, against 32 for DS. :doc:`/api/methods` has DynACL++. AIR is
    ``ACLTrainer(model, alpha=Ramp(E, K), augment=Scheduled(make, Staircase(1, 0, E, K)), terms=[Invariance()])``.
    Reference: Luo et al., ICLR 2023.

    Args:
        model: as for :class:`~advcontrast.ACLTrainer`.
        steps: length E of the training in steps, at least 1.
        every: steps K between changes, by default a twentieth of ``steps``, as in the paper.
        decay: decay of the momentum encoder, in [0, 1].
        released: whether to use the index of the released code for w.
        loss: as for :class:`~advcontrast.ACLTrainer`, by default ``NTXentLoss(gather=True)``.
        attack: ``attack(objective, x)`` returns perturbed images, by default ``PGDAttack()``.
        augment: a function that returns a pair augmentation of a given strength, such as
            ``lambda s: ContrastivePairAugment(32, strength=s)``; or a :class:`Scheduled` pair augmentation.
        terms: as for :class:`~advcontrast.strategies.ContrastiveLearner`.

    Raises:
        ValueError: a number is out of range, or a dual norm that lacks one of the two branches.
        TypeError: an argument has the wrong type.
        RuntimeError: ``model`` cannot be copied, as in :func:`advcontrast.export_branch`.

    Warns:
        UserWarning: as for :class:`~advcontrast.ACLTrainer` in mode DS.

    Example:
        >>> from advcontrast.strategies import DynACL
        >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(48, 8), torch.nn.BatchNorm1d(8))
        >>> augment = lambda strength: ContrastivePairAugment(4, strength=strength)
        >>> learner = DynACL(convert_to_dual_bn(model), steps=1000, augment=augment)
        >>> learner(torch.rand(4, 3, 4, 4)).loss.backward()
        >>> round(learner.augment.strength(999), 4), round(learner.alpha(999), 4)  # w is 2/3 * 0.95
        (0.05, 4.4545)
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        steps: int,
        every: int | None = None,
        decay: float = 0.99,
        released: bool = False,
        loss: Callable[[Tensor, Tensor], Tensor] | None = None,
        attack: Callable[..., Tensor] | None = None,
        augment: Callable[..., Any] | None = None,
        terms: Iterable[nn.Module] = (),
    ) -> None:
        check_int("DynACL", "steps", steps, low=1, remedy="Pass the length of the training")
        every = max(1, steps // 20) if every is None else every
        alpha = Ramp(steps, every, released)
        if augment is not None and not isinstance(augment, Scheduled):
            augment = Scheduled(augment, Staircase(1.0, 0.0, steps, every))
        loss = NTXentLoss(gather=True) if loss is None else loss
        super().__init__(model, loss=loss, attack=attack, augment=augment, alpha=alpha, terms=terms)
        self.momentum = Momentum(model, decay)

    def _embeddings(self, step: Step, stream: tuple[Branch, Branch]) -> tuple[Tensor, Tensor]:
        """Return the embeddings of the first views, and those of the second views by the momentum encoder."""
        branch, views = stream[0], step.views

        def both(x1: Tensor, x2: Tensor) -> tuple[Tensor, Tensor]:
            return step.embed(branch, x1)[0], step.embed(branch, x2, by=self.momentum)[0]

        if branch == "adv":
            views = step.perturb(partial(self._contrast, "adv"), "adv", *views, through=both)
        return both(*views)

    def _trained_network(self) -> nn.Module:
        return self.momentum.model
