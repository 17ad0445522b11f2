"""Signs that an attack fails because the model hides its gradient: verdicts on what attacks achieved.

Where the gradient shows the way, more steps, a larger ball and knowledge of the gradient never hurt the attacker. That
must hold of the attacks that are compared, whoever ran them. An alarm says that robust accuracy is likely overstated,
or in the case of :func:`incomplete_search` that the attack was too short. Silence is no proof.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

from torch import Tensor

from ..._checks import check_tensor, complaint, type_name
from ..accuracy.measure import Accuracy

# How far a comparison must go wrong to count, in standard errors of the difference over paired images. Chance alone
# does that once in 700 comparisons of equals; it is 3 / sqrt(n) at most, and mostly far less.
SLACK = 3.0
# Relative; a last iterate may lie a step beyond the maximum.
LOSS_DROP = 0.01
# What a converged search may still lose when it goes on, as a fraction of the images.
STEPS_MATTER = 0.01
# The fraction of images by which another loss may do better: cross-entropy misses a few of any classifier, most if its
# logits are small. Chance rarely exceeds this allowance, so two standard errors beyond it are enough.
LOSS_MATTERS = 0.05
LOSS_SLACK = 2.0
# Every image can become any other, also one of another class, so what survives is what the search missed.
SURVIVORS = 0.05


@dataclass(frozen=True, eq=False)
class Alarm:
    """A verdict and what it rests on.

    Attributes:
        name: what was looked at.
        raised: whether it looks as if the gradient were masked.
        reason: the observation in words, whether or not the alarm is raised.
        figures: the numbers behind it.
        advice: what to do if it is raised; printed only then.

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


def falling_loss(losses: Mapping[float, Tensor], *, parameter: str) -> Alarm:
    """Check whether an attack achieves less when it may do more.

    Args:
        losses: the loss of each image under attack, ``[N]``, for at least two values of a setting that strengthens the
            attack, such as the number of steps or the radius.
        parameter: the name of that setting.

    Returns:
        The alarm, raised where from a value to the next larger one the mean loss falls by more than a hundredth of its
        size and three standard errors of the difference over the images.

    Raises:
        ValueError: fewer than two values, or losses of different or other shapes.
        TypeError: an argument of the wrong kind.

    Example:
        >>> one, twenty = torch.tensor([2.0, 3.0, 4.0]), torch.tensor([1.0, 2.0, 3.0])
        >>> falling_loss({1: one, 20: twenty}, parameter="steps").raised
        True
    """
    _check_losses(losses)
    values = sorted(losses)
    means = {value: losses[value].double().mean().item() for value in values}
    raised = False
    for weaker, stronger in pairwise(values):
        drop = losses[weaker].double() - losses[stronger].double()
        error = drop.std().item() / len(drop) ** 0.5
        raised |= drop.mean().item() > LOSS_DROP * abs(means[weaker]) + SLACK * error
    reason = "mean loss " + ", ".join(f"{mean:.3g} at {value:.3g}" for value, mean in means.items())
    figures = {f"{value:g}": mean for value, mean in means.items()}
    advice = "A stronger attack should achieve more: try smaller steps, and report a gradient-free attack too."
    return Alarm(f"loss against {parameter}", raised, reason, figures, advice)


def incomplete_search(once: Accuracy, twice: Accuracy) -> Alarm:
    r"""Check whether twice as many steps break more images: the attack was stopped early, whatever the model.

    Args:
        once: the verdicts under an attack.
        twice: those under the same attack with twice the steps, on the same images, best from the same start.

    Returns:
        The alarm, raised where :math:`b - a - N / 100 > 3 \sqrt{a + b}`, for b of N images broken only with twice the
        steps and a only without.

    Raises:
        ValueError: verdicts on different numbers of images.
        TypeError: an argument of the wrong kind.

    Example:
        >>> once, twice = Accuracy(torch.ones(20).bool()), Accuracy(torch.zeros(20).bool())
        >>> incomplete_search(once, twice).raised
        True
    """
    lost, won = _only("incomplete_search", once, twice)
    excess = lost - won - STEPS_MATTER * len(once.correct)
    reason = f"doubling the steps takes accuracy from {once.accuracy:.1%} to {twice.accuracy:.1%}"
    figures = {"once": once.accuracy, "twice": twice.accuracy}
    advice = "Take more steps, until accuracy no longer falls."
    return Alarm("incomplete search", excess > SLACK * (lost + won) ** 0.5, reason, figures, advice)


def unbounded_attack(unbounded: Accuracy) -> Alarm:
    """Check whether images survive an attack that may change them into any other.

    Args:
        unbounded: the verdicts under an attack whose ball holds every image, best of images that are classified
            correctly without it.

    Returns:
        The alarm, raised where more than a twentieth survive.

    Raises:
        TypeError: an argument of the wrong kind.

    Example:
        >>> unbounded_attack(Accuracy(torch.zeros(20).bool())).raised
        False
    """
    _check_accuracy("unbounded_attack", unbounded)
    left = unbounded.accuracy
    reason = f"{left:.1%} survive in the largest ball"
    advice = "In this ball any image can become any other: the attack fails, or the gradient misleads it."
    return Alarm("unbounded attack", left > SURVIVORS, reason, {"accuracy": left}, advice)


def loss_beaten(white: Accuracy, other: Accuracy, *, by: str) -> Alarm:
    r"""Check whether an attack breaks many more images when it maximises another loss.

    Cross-entropy is flat where all logits are close together and where one is far ahead. A change of the logits that
    changes no decision, such as a division by 1000, can therefore mislead an attack that maximises it.

    Args:
        white: the verdicts under an attack.
        other: those under the attack with the other loss, in the same ball around the same images, best from the same
            start.
        by: the name of the other loss.

    Returns:
        The alarm, raised where :math:`b - a > N / 20 + 2 \sqrt{a + b}`, for b of N images broken only with the other
        loss and a only without.

    Raises:
        ValueError: verdicts on different numbers of images.
        TypeError: an argument of the wrong kind.

    Example:
        >>> white, dlr = Accuracy(torch.ones(20).bool()), Accuracy(torch.zeros(20).bool())
        >>> loss_beaten(white, dlr, by="DLR loss").raised
        True
    """
    more, fewer = _only("loss_beaten", white, other)
    excess = more - fewer - LOSS_MATTERS * len(white.correct)
    reason = f"breaks {more} images that the attack does not, misses {fewer} that it breaks"
    figures = {"only": more, "only white box": fewer, "accuracy": other.accuracy, "white box": white.accuracy}
    advice = "Evaluate with APGDAttack(loss='dlr') and autoattack(), or without the function applied to the logits."
    return Alarm(by, excess > LOSS_SLACK * (more + fewer) ** 0.5, reason, figures, advice)


def white_box_beaten(white: Accuracy, other: Accuracy, *, by: str) -> Alarm:
    r"""Check whether an attack that knows less, or does less, breaks more than the white-box attack.

    Such as one step, random noise, a gradient-free search, or images made for another network: none of them can win
    where the gradient shows the way.

    Args:
        white: the verdicts under an iterated white-box attack.
        other: those under the weaker attack, in the same ball around the same images.
        by: the name of the weaker attack.

    Returns:
        The alarm, raised where :math:`b - a > 3 \sqrt{a + b}`, for b images broken only by the weaker attack and a only
        by the white-box attack. Chance raises one comparison of equal attacks in some 700.

    Raises:
        ValueError: verdicts on different numbers of images.
        TypeError: an argument of the wrong kind.

    Example:
        >>> white, noise = Accuracy(torch.ones(20).bool()), Accuracy(torch.zeros(20).bool())
        >>> white_box_beaten(white, noise, by="random noise").raised
        True
    """
    more, fewer = _only("white_box_beaten", white, other)
    reason = f"breaks {more} images that the attack does not, misses {fewer} that it breaks"
    figures = {"only": more, "only white box": fewer, "accuracy": other.accuracy, "white box": white.accuracy}
    advice = "Robust accuracy is lower than under the attack: report the worst case over both, or autoattack()."
    return Alarm(by, more - fewer > SLACK * (more + fewer) ** 0.5, reason, figures, advice)


def _only(owner: str, first: Accuracy, second: Accuracy) -> tuple[int, int]:
    """Return how many images only the second attack breaks, and how many only the first."""
    for given in (first, second):
        _check_accuracy(owner, given)
    if first.correct.shape != second.correct.shape:
        got = f"{len(first.correct)} and {len(second.correct)}"
        raise ValueError(complaint(owner, "verdicts on the same images", got, "Run both attacks on the same batches"))
    return int((first.correct & ~second.correct).sum()), int((second.correct & ~first.correct).sum())


def _check_accuracy(owner: str, given: object) -> None:
    if not isinstance(given, Accuracy):
        remedy = "Pass what robust_accuracy returns"
        raise TypeError(complaint(owner, "an Accuracy", type_name(given), remedy))


def _check_losses(losses: Mapping[float, Tensor]) -> None:
    owner, remedy = "falling_loss", "Pass {20: losses, 40: losses}, one loss an image"
    if not isinstance(losses, Mapping):
        raise TypeError(complaint(owner, "losses to be a mapping", type_name(losses), remedy))
    for loss in losses.values():
        check_tensor(owner, "each of losses", loss, remedy=remedy)
    shapes = {tuple(loss.shape) for loss in losses.values()}
    if len(losses) < 2 or len(shapes) != 1 or len(min(shapes)) != 1 or min(shapes)[0] < 2:
        got = ", ".join(str(list(loss.shape)) for loss in losses.values()) or "none"
        raise ValueError(complaint(owner, "two or more losses of one shape [N] with N >= 2", got, remedy))
