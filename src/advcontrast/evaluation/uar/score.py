"""Unforeseen attack robustness: the attacks of Kang et al. at their calibrated sizes for CIFAR-10."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from ..._checks import check_choice, check_int, check_shape, check_tensor
from ..._types import Norm
from ...attacks import ClassificationObjective, PGDAttack
from ..accuracy.measure import verdict, verdicts_on
from ..inputs import model_output, perturbed
from .elastic import ElasticAttack
from .frank_wolfe import FrankWolfeAttack
from .jpeg import JPEGAttack

_OWNER = "uar"


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """Six sizes of an attack, and the accuracies of networks trained against it.

    Attributes:
        attack: returns the attack, given ``eps``, ``steps`` and ``minimize``.
        published: the sizes of Kang et al., ascending, for pixels on the scale 0 to 255.
        scale: factor from these sizes to the ``eps`` of the attack here.
        ata: for each size the accuracy, in [0, 1], of the best network adversarially trained against the attack.
    """

    attack: Callable[..., Callable[..., Tensor]]
    published: tuple[float, ...]
    scale: float
    ata: tuple[float, ...]

    @property
    def eps(self) -> tuple[float, ...]:
        """The sizes in the units of the attack here."""
        return tuple(size * self.scale for size in self.published)


def _pgd(*, eps: float, steps: int, norm: Norm, minimize: bool) -> PGDAttack:
    return PGDAttack(eps=eps, step_size=eps / math.sqrt(steps), steps=steps, norm=norm, minimize=minimize)


_ATTACKS: dict[str, Callable[..., Callable[..., Tensor]]] = {
    "pgd_linf": partial(_pgd, norm="linf"),
    "pgd_l2": partial(_pgd, norm="l2"),
    "fw_l1": FrankWolfeAttack,
    "jpeg_linf": partial(JPEGAttack, norm="linf"),
    "jpeg_l2": partial(JPEGAttack, norm="l2"),
    "jpeg_l1": partial(JPEGAttack, norm="l1"),
    "elastic": ElasticAttack,
}
_PUBLISHED = {
    "pgd_linf": ((1, 2, 4, 8, 16, 32), 1 / 255, (0.9095, 0.8780, 0.8159, 0.7134, 0.4650, 0.2311)),
    "pgd_l2": ((40, 80, 160, 320, 640, 2560), 1 / 255, (0.9006, 0.8640, 0.7960, 0.6726, 0.4989, 0.1727)),
    "fw_l1": ((195, 390, 780, 1560, 6240, 24960), 1 / 255, (0.9223, 0.9002, 0.8324, 0.7383, 0.4736, 0.3533)),
    "jpeg_linf": ((0.03125, 0.0625, 0.125, 0.25, 0.5, 1), 1, (0.8975, 0.8703, 0.8312, 0.7856, 0.6971, 0.3542)),
    "jpeg_l2": ((0.25, 0.5, 1, 2, 4, 8), 1, (0.9218, 0.9100, 0.8842, 0.8584, 0.8125, 0.7198)),
    "jpeg_l1": ((2, 8, 64, 256, 512, 1024), 1, (0.9142, 0.8806, 0.8021, 0.6886, 0.5633, 0.3768)),
    # Their pixel is 1/32 of the distance between the centres of the outermost pixels, 31.
    "elastic": ((0.125, 0.25, 0.5, 1, 2, 8), 31 / 32, (0.8738, 0.8126, 0.7209, 0.5822, 0.4545, 0.2785)),
}
CALIBRATIONS: Mapping[str, Calibration] = {
    name: Calibration(attack=_ATTACKS[name], published=sizes, scale=scale, ata=ata)
    for name, (sizes, scale, ata) in _PUBLISHED.items()
}


@dataclass(frozen=True, eq=False)
class UAR:
    """Robustness of a classifier to one attack at six sizes.

    Attributes:
        name: the family of attacks.
        correct: whether each sample was classified correctly at each size, ascending, bool ``[6, N]`` on the CPU.

    Raises:
        ValueError: an unknown name, or ``correct`` of another shape.

    Example:
        A model without errors; the accuracy of the best trained networks is 66.875 % on average.

        >>> UAR("pgd_linf", torch.ones(6, 10, dtype=torch.bool))
        UAR(pgd_linf 149.5 at 1.0000 1.0000 1.0000 1.0000 1.0000 1.0000)
    """

    name: str
    correct: Tensor

    def __post_init__(self) -> None:
        check_choice("UAR", "name", self.name, tuple(CALIBRATIONS))
        remedy = "Pass one row of verdicts for each size of the attack"
        check_tensor("UAR", "correct", self.correct, (torch.bool,), remedy=remedy)
        fits = self.correct.dim() == 2 and len(self.correct) == 6 and self.correct.shape[1] > 0
        check_shape("UAR", "correct", self.correct, "[6, N]", fits, remedy=remedy)

    @property
    def accuracies(self) -> tuple[float, ...]:
        """The fraction of samples classified correctly at each size, in [0, 1]."""
        return tuple(int(right) / self.correct.shape[1] for right in self.correct.sum(1))

    @property
    def uar(self) -> float:
        """The sum of the accuracies relative to that of networks trained against the attack; it may exceed 1."""
        return sum(self.accuracies) / sum(CALIBRATIONS[self.name].ata)

    def __repr__(self) -> str:
        accuracies = " ".join(f"{accuracy:.4f}" for accuracy in self.accuracies)
        return f"UAR({self.name} {100 * self.uar:.1f} at {accuracies})"


def calibrated_attacks(name: str, *, steps: int = 200) -> tuple[Callable[..., Tensor], ...]:
    """Return the six attacks of a family for images ``[N, 3, 32, 32]`` in [0, 1], from the smallest to the largest.

    They are targeted: they minimize the objective, which should be the loss of a wrong class. Step sizes, in the
    families that have one, are eps / sqrt(steps).

    Args:
        name: ``"pgd_linf"``, ``"pgd_l2"``, ``"fw_l1"``, ``"jpeg_linf"``, ``"jpeg_l2"``, ``"jpeg_l1"`` or ``"elastic"``.
        steps: number of steps of each attack, at least 1.

    Raises:
        ValueError: an unknown name, or ``steps`` below 1.
        TypeError: an argument has the wrong type.

    Example:
        >>> [attack.eps for attack in calibrated_attacks("jpeg_linf")]
        [0.03125, 0.0625, 0.125, 0.25, 0.5, 1]
    """
    check_choice("calibrated_attacks", "name", name, tuple(CALIBRATIONS))
    check_int("calibrated_attacks", "steps", steps, low=1, remedy="The calibration is for 200")
    calibration = CALIBRATIONS[name]
    return tuple(calibration.attack(eps=eps, steps=steps, minimize=True) for eps in calibration.eps)


def uar(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    name: str,
    *,
    steps: int = 200,
    generator: torch.Generator | None = None,
) -> UAR:
    r"""Return the unforeseen attack robustness of a classifier on CIFAR-10 against one family of attacks.

    .. math:: \mathrm{UAR} = 100 \; \frac{\sum_{k=1}^6 \mathrm{Acc}(\varepsilon_k)}
              {\sum_{k=1}^6 \mathrm{ATA}(\varepsilon_k)}

    with Acc the accuracy under the attack of size :math:`\varepsilon_k`, and ATA that of the best network adversarially
    trained against it, a ResNet-56 of Kang et al. At each size, the target of each image is drawn uniformly from the
    wrong classes. Two differences from their program can only lower the result: as in :func:`robust_accuracy`, an image
    counts only if it is classified correctly without attack too; and in ``"jpeg_l1"`` the range of a coefficient does
    not depend on its changes so far. The attacks fog, gabor and snow have no calibration for CIFAR-10, and are omitted.
    The cost is ``6 * steps`` forward and backward passes per image. Errors are those of :func:`robust_accuracy`.
    Reference: Kang et al., "Testing Robustness Against Unforeseen Adversaries", 2019.

    Args:
        model: as for :func:`robust_accuracy`, and restored as there.
        batches: as for :func:`robust_accuracy`, with images ``[N, 3, 32, 32]``.
        name: the family, as for :func:`~advcontrast.evaluation.uar.calibrated_attacks`.
        steps: number of steps of each attack, at least 1; the calibration is for 200.
        generator: source of targets and random starts, on the device of the model; by default one seeded with 0.

    Example:
        A model that ignores the pixels cannot be attacked.

        >>> class Constant(torch.nn.Module):
        ...     def forward(self, x):
        ...         return 0 * x.flatten(1)[:, :2] + torch.tensor([2.0, 0.0])
        >>> uar(Constant(), [(torch.rand(4, 3, 32, 32), torch.tensor([0, 0, 0, 1]))], "fw_l1", steps=1).accuracies
        (0.75, 0.75, 0.75, 0.75, 0.75, 0.75)
    """
    attacks = calibrated_attacks(name, steps=steps)

    def judge(x: Tensor, y: Tensor, logits: Tensor, source: torch.Generator) -> Iterator[Tensor]:
        clean, classes = verdict(logits, y), logits.shape[1]
        for attack in attacks:
            offset = torch.randint(1, classes, y.shape, generator=source, device=y.device)
            adv = perturbed(_OWNER, attack, ClassificationObjective(model, (y + offset) % classes), x, source)
            yield torch.where(clean == 1, verdict(model_output(_OWNER, model, adv), y), clean)

    return UAR(name, verdicts_on(_OWNER, model, batches, judge, generator, shape=(3, 32, 32)))
