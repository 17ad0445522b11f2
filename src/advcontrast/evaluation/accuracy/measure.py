"""Clean and robust accuracy with a verdict for each sample; model and random state are restored."""

import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from ..._checks import check_shape, complaint
from ...attacks import ClassificationObjective
from .. import inputs

_NON_FINITE = 2  # a verdict; 0 is wrong and 1 is correct


@dataclass(frozen=True, eq=False)
class Accuracy:
    r"""Verdicts of an evaluation and their mean.

    The standard error of an accuracy a on N images is :math:`\sqrt{a (1 - a) / N}`: 0.5 % for N = 10,000, a = 0.5.

    Attributes:
        correct: whether each sample was classified correctly, bool ``[N]`` on the CPU, in the order of the batches.
        branch: active branch of the dual norms, ``None`` for a network without.

    Example:
        >>> Accuracy(torch.tensor([True, True, False, True])).accuracy
        0.75
    """

    correct: Tensor
    branch: str | None = field(default=None, kw_only=True)

    @property
    def accuracy(self) -> float:
        """The fraction of samples classified correctly, in [0, 1]."""
        return int(self.correct.sum()) / len(self.correct)

    def __repr__(self) -> str:
        branch = "" if self.branch is None else f", branch {self.branch!r}"
        return f"Accuracy({int(self.correct.sum())} of {len(self.correct)}, {self.accuracy:.2%}{branch})"


def accuracy(model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]) -> Accuracy:
    """Return which images a classifier classifies correctly.

    The model is in eval mode during the call; the branch of dual norms and autocast are those around it. Modes,
    gradients, buffers and all global random states are restored afterwards, also after an exception: an evaluation
    between two epochs does not change the training. Plain attributes and weights that a pass changes are not restored.

    Args:
        model: a classifier of images in [0, 1], the normalisation inside, that returns logits ``[N, C]``.
        batches: pairs of images ``[N, ...]``, floating point in [0, 1], and labels ``[N]``, int64 in [0, C); for
            example a ``DataLoader``. They are moved to the device of the model.

    Raises:
        ValueError: no image; a shape does not fit; logits are not finite; on the CPU, images or labels out of range.
        TypeError: an argument has the wrong type, such as uint8 images, or images in another precision than the model.

    Example:
        Images of two pixels, and a model that takes the brighter pixel for the class.

        >>> images = torch.tensor([[0.9, 0.1], [0.4, 0.6], [0.7, 0.3], [0.2, 0.8]])
        >>> accuracy(torch.nn.Flatten(), [(images, torch.tensor([0, 1, 1, 1]))]).accuracy
        0.75
    """
    correct = verdicts_on("accuracy", model, batches, lambda _x, y, logits, _source: [verdict(logits, y)])
    return Accuracy(correct[0], branch=inputs.branch_in_use(model))


def robust_accuracy(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    attack: Callable[..., Tensor],
    *,
    generator: torch.Generator | None = None,
) -> Accuracy:
    """Return which images a classifier classifies correctly, both without and under attack.

    The attack maximises the cross-entropy of each sample through the model in eval mode. An attack of radius 0 gives
    the result of :func:`accuracy`, which also describes how model and random state are restored. The ACL paper reports
    the robust accuracy under ``PGDAttack(eps=8 / 255, step_size=2 / 255, steps=20)``.

    Args:
        model: as for :func:`accuracy`, differentiable.
        batches: as for :func:`accuracy`, float32 or float64.
        attack: a callable such as ``PGDAttack``, called as ``attack(objective, x, generator=generator)``.
        generator: source of the attack's randomness, on the device of the model; by default one seeded with 0.

    Raises:
        ValueError: as for :func:`accuracy`, the attack returns images of another shape, or it takes no steps.
        TypeError: an argument has the wrong type.

    Warns:
        UserWarning: the attack changed none of the images that are classified correctly, though its ``eps`` is not 0.

    Example:
        Moving both pixels by 1/4 turns the one image whose pixels differ by less than 1/2.

        >>> images = torch.tensor([[0.9, 0.1], [0.4, 0.6], [0.8, 0.2], [0.2, 0.8]])
        >>> attack = PGDAttack(eps=0.25, step_size=0.25, steps=1, random_start=False)
        >>> robust_accuracy(torch.nn.Flatten(), [(images, torch.tensor([0, 1, 0, 1]))], attack).accuracy
        0.75
    """
    owner = "robust_accuracy"
    inputs.check_attack(owner, attack)
    unchanged: list[Tensor] = []

    def judge(x: Tensor, y: Tensor, logits: Tensor, source: torch.Generator) -> list[Tensor]:
        clean = verdict(logits, y)
        adv = inputs.perturbed(owner, attack, ClassificationObjective(model, y), x, source)
        unchanged.append(torch.stack([clean == 1, (adv == x).reshape(len(x), -1).all(1)]))
        return [torch.where(clean == 1, verdict(inputs.model_output(owner, model, adv), y), clean)]

    correct = verdicts_on(owner, model, batches, judge, generator)[0]
    right, same = torch.cat(unchanged, 1).cpu()
    if getattr(attack, "eps", None) != 0 and bool(right.any()) and bool(same[right].all()):
        remedy = "Look for zero gradients with gradient_masking, and check that the attack takes steps"
        got = f"the same {int(right.sum())} images that are classified correctly"
        warnings.warn(complaint(owner, "attack to change images", got, remedy), UserWarning, stacklevel=2)
    return Accuracy(correct, branch=inputs.branch_in_use(model))


def verdicts_on(
    owner: str,
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    judge: Callable[[Tensor, Tensor, Tensor, torch.Generator], Iterable[Tensor]],
    generator: torch.Generator | None = None,
    *,
    shape: tuple[int, ...] | None = None,
) -> Tensor:
    """Return K verdicts for each image, bool ``[K, N]`` on the CPU; ``judge`` returns K results of :func:`verdict`."""
    found: list[Tensor] = []
    with inputs.prepared_for_evaluation(owner, model) as device:
        source = inputs.generator_or_default(owner, generator, device)
        for x, y, readable_y in inputs.checked_batches(owner, batches, device):
            fits = shape is None or x.shape[1:] == shape
            check_shape(owner, "images", x, f"[N, *{shape}]", fits, remedy="Resize the images")
            logits = inputs.checked_logits(owner, model, x, readable_y)
            if not found:
                inputs.refuse_probabilities(owner, model, x, logits)
            found.append(torch.stack(list(judge(x, y, logits, source))))
    return finite_verdicts(owner, torch.cat(found, 1).cpu())  # the only read from the device


def finite_verdicts(owner: str, verdicts: Tensor) -> Tensor:
    """Return verdicts ``[K, N]`` as bool; refuse those of non-finite logits."""
    if bad := int((verdicts == _NON_FINITE).any(0).sum()):
        remedy = "Look for a division by zero in the model, or evaluate without half precision"
        got = f"non-finite ones for {bad} of {verdicts.shape[1]} images"
        raise ValueError(complaint(owner, "finite logits", got, remedy))
    return verdicts.bool()


def verdict(logits: Tensor, y: Tensor) -> Tensor:
    """Return 1 for samples that are classified correctly, 0 for others and 2 for non-finite logits, uint8 ``[N]``."""
    right = (logits.argmax(1) == y).to(torch.uint8)
    return torch.where(logits.isfinite().all(1), right, _NON_FINITE)
