"""Alarms from the results of attacks.

If gradients guide an attack well, more steps, a larger ball and knowledge of the gradient never make it weaker. An
alarm means that robust accuracy is likely overstated, or for :func:`attack_not_converged` that the attack was too
short. The absence of alarms proves nothing.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import pairwise

from torch import Tensor

from ..._checks import check_tensor, check_type, complaint
from ..accuracy.measure import Accuracy

SLACK = 3.0  # in standard errors of the difference over paired images
LOSS_DROP = 0.01  # relative; a last iterate may lie a step beyond the maximum
STEPS_MATTER = 0.01  # the fraction of images that a converged attack may still break with more steps
# The fraction of images by which another loss may do better: cross-entropy misses a few images of any classifier, more
# if its logits are small. Chance rarely exceeds this allowance, so two standard errors beyond it are enough.
LOSS_MATTERS, LOSS_SLACK = 0.05, 2.0
SURVIVORS = 0.05  # the fraction of images that an unbounded search may miss


@dataclass(frozen=True, eq=False)
class Alarm:
    """Result of one check for gradient masking.

    Attributes:
        name: name of the check.
        raised: whether the observation suggests gradient masking.
        reason: the observation in words, whether or not the alarm is raised.
        figures: the numbers behind it.
        advice: remedy; printed only if the alarm is raised.

    Example:
        >>> print(Alarm("zero gradients", True, "12.0% are zero", {"zero": 0.12}, "Attack without gradients too."))
        RAISED  zero gradients        12.0% are zero
                                      Attack without gradients too.
    """

    name: str
    raised: bool
    reason: str
    figures: dict[str, float]
    advice: str = ""

    def __str__(self) -> str:
        verdict = f"{'RAISED' if self.raised else 'clear':<8}{self.name:<22}{self.reason}"
        return f"{verdict}\n{'':30}{self.advice}" if self.raised and self.advice else verdict


def loss_decreases_with_strength(losses: Mapping[float, Tensor], *, parameter: str) -> Alarm:
    """Raise an alarm if the mean loss decreases from one strength of an attack to the next larger one.

    It must fall by more than a hundredth of its size and three standard errors of the difference over the images.

    Args:
        losses: the loss of each attacked image, ``[N]``, for two or more strengths, such as numbers of steps or radii.
        parameter: the name of that setting.

    Raises:
        ValueError: fewer than two values, or losses of different or other shapes.
        TypeError: an argument has the wrong type.

    Example:
        >>> one, twenty = torch.tensor([2.0, 3.0, 4.0]), torch.tensor([1.0, 2.0, 3.0])
        >>> loss_decreases_with_strength({1: one, 20: twenty}, parameter="steps").raised
        True
    """
    owner, remedy = "loss_decreases_with_strength", "Pass {20: losses, 40: losses}, one loss per image"
    check_type(owner, "losses", losses, Mapping, remedy=remedy)
    for loss in losses.values():
        check_tensor(owner, "each of losses", loss, remedy=remedy)
    shapes = {tuple(loss.shape) for loss in losses.values()}
    if len(losses) < 2 or len(shapes) != 1 or len(min(shapes)) != 1 or min(shapes)[0] < 2:
        got = ", ".join(str(list(loss.shape)) for loss in losses.values()) or "none"
        raise ValueError(complaint(owner, "two or more losses of one shape [N] with N >= 2", got, remedy))
    ordered = {value: losses[value].cpu().double() for value in sorted(losses)}  # MPS has no float64
    means = {value: loss.mean().item() for value, loss in ordered.items()}
    raised = False
    for weaker, stronger in pairwise(ordered.values()):
        drop = weaker - stronger
        error = drop.std().item() / len(drop) ** 0.5
        raised |= drop.mean().item() > LOSS_DROP * abs(weaker.mean().item()) + SLACK * error
    reason = "mean loss " + ", ".join(f"{mean:.3g} at {value:.3g}" for value, mean in means.items())
    figures = {f"{value:g}": mean for value, mean in means.items()}
    advice = "A stronger attack should achieve more: try smaller steps, and report a gradient-free attack too."
    return Alarm(f"loss against {parameter}", raised, reason, figures, advice)


def attack_not_converged(once: Accuracy, twice: Accuracy) -> Alarm:
    r"""Raise an alarm if twice as many steps break more images, so that the attack was stopped too early.

    It is raised if :math:`b - a > N / 100 + 3 \sqrt{a + b}`, for b of N images broken only with twice the steps and a
    only without.

    Args:
        once: the verdicts under an attack.
        twice: those under the same attack with twice the steps, on the same images, best from the same start.

    Raises:
        ValueError: verdicts on different numbers of images.
        TypeError: an argument has the wrong type.

    Example:
        >>> attack_not_converged(Accuracy(torch.ones(20).bool()), Accuracy(torch.zeros(20).bool())).raised
        True
    """
    advice = "Take more steps, until accuracy no longer falls."
    found = _beaten("attack_not_converged", once, twice, "incomplete search", advice, allowance=STEPS_MATTER)
    reason = f"doubling the steps takes accuracy from {once.accuracy:.1%} to {twice.accuracy:.1%}"
    return replace(found, reason=reason, figures={"once": once.accuracy, "twice": twice.accuracy})


def unbounded_attack(unbounded: Accuracy) -> Alarm:
    """Raise an alarm if more than a twentieth of the images survive an attack that may turn them into any image.

    Args:
        unbounded: the verdicts under an attack whose ball holds every image, on correctly classified images.

    Raises:
        TypeError: an argument has the wrong type.

    Example:
        >>> unbounded_attack(Accuracy(torch.zeros(20).bool())).raised
        False
    """
    check_type("unbounded_attack", "unbounded", unbounded, Accuracy, remedy="Pass what robust_accuracy returns")
    left = unbounded.accuracy
    reason = f"{left:.1%} survive in the largest ball"
    advice = "In this ball any image can become any other: the attack fails, or the gradient misleads it."
    return Alarm("unbounded attack", left > SURVIVORS, reason, {"accuracy": left}, advice)


def loss_beaten(white: Accuracy, other: Accuracy, *, by: str) -> Alarm:
    r"""Raise an alarm if an attack breaks many more images when it maximises another loss.

    Cross-entropy is flat where all logits are close together and where one is much larger than the others. A function
    of the logits that changes no decision, such as a division by 1000, can therefore mislead the attack. The alarm is
    raised if :math:`b - a > N / 20 + 2 \sqrt{a + b}`, for b of N images broken only with the other loss and a only
    without. Errors are those of :func:`attack_not_converged`.

    Args:
        white: the verdicts under an attack.
        other: those with the other loss, in the same ball around the same images, best from the same start.
        by: the name of the other loss.

    Example:
        >>> loss_beaten(Accuracy(torch.ones(20).bool()), Accuracy(torch.zeros(20).bool()), by="DLR loss").raised
        True
    """
    advice = "Evaluate with APGDAttack(loss='dlr') and autoattack(), or without the function applied to the logits."
    return _beaten("loss_beaten", white, other, by, advice, allowance=LOSS_MATTERS, slack=LOSS_SLACK)


def weaker_attack_wins(white: Accuracy, other: Accuracy, *, by: str) -> Alarm:
    r"""Raise an alarm if a weaker attack breaks more images than an iterated white-box attack.

    One step, random noise, a gradient-free search and images made for another network cannot win if the gradient is
    informative. Arguments and errors are those of :func:`loss_beaten`, with the weaker attack as the other. The alarm
    is raised if :math:`b - a > 3 \sqrt{a + b}`, for b images broken only by the weaker attack and a only by ``white``.
    For equal attacks chance raises it in about one of 700 comparisons.

    Example:
        >>> weaker_attack_wins(Accuracy(torch.ones(20).bool()), Accuracy(torch.zeros(20).bool()), by="noise").raised
        True
    """
    advice = "Robust accuracy is lower than under the attack: report the worst case over both, or autoattack()."
    return _beaten("weaker_attack_wins", white, other, by, advice)


def _beaten(
    owner: str, white: Accuracy, other: Accuracy, by: str, advice: str, *, allowance: float = 0.0, slack: float = SLACK
) -> Alarm:
    """Raise an alarm if the other attack breaks more images, by ``allowance * N`` and ``slack`` standard errors."""
    for given in (white, other):
        check_type(owner, "the verdicts", given, Accuracy, remedy="Pass what robust_accuracy returns")
    a, b = white.correct, other.correct
    if a.shape != b.shape:
        remedy = "Run both attacks on the same batches"
        raise ValueError(complaint(owner, "verdicts on the same images", f"{len(a)} and {len(b)}", remedy))
    more, fewer = int((a & ~b).sum()), int((b & ~a).sum())
    raised = more - fewer - allowance * len(a) > slack * (more + fewer) ** 0.5
    reason = f"breaks {more} images that the attack does not, misses {fewer} that it breaks"
    figures = {"only": more, "only white box": fewer, "accuracy": other.accuracy, "white box": white.accuracy}
    return Alarm(by, raised, reason, figures, advice)
