"""Margins of classifications, invariant to shift and scale of the logits."""

import torch
from torch import Tensor

from .._checks import check_classes, check_logits, complaint, readable


def dlr(logits: Tensor, y: Tensor) -> Tensor:
    r"""Return the difference of logits ratio of each sample, ``[N]``, larger for more adversarial samples.

    With the logits in descending order, :math:`z_{\pi_1} \ge z_{\pi_2} \ge \dots`,

    .. math:: \mathrm{DLR} = \frac{\max_{i \ne y} z_i - z_y}{z_{\pi_1} - z_{\pi_3}}

    which is in [-1, 0) for a sample that is classified correctly, and positive for one that is not. Unlike the
    cross-entropy it is invariant to shift and positive scale of the logits, so its gradient does not vanish for
    confident predictions. Where the three largest logits are equal, the numerator is returned, which is 0 if ``y`` is
    one of the three. Reference: Croce and Hein, ICML 2020.

    Args:
        logits: ``[N, C]`` with C at least 3; half precision is computed in float32.
        y: classes of the samples, int64 ``[N]`` in [0, C).

    Raises:
        ValueError: another shape or device, or, on the CPU, a label out of range.
        TypeError: an argument has the wrong type.

    Example:
        The logit of class 0 is the largest. The second largest is 2 below it, the third largest 4.

        >>> dlr(torch.tensor([[5.0, 3.0, 1.0, 0.0]]), torch.tensor([0])).tolist()
        [-0.5]
    """
    logits = _checked("dlr", logits, 3, y=y)
    largest, classes = logits.topk(3)
    rival = torch.where(classes[:, 0] == y, largest[:, 1], largest[:, 0])
    return _ratio(rival - _of_class(logits, y), largest[:, 0] - largest[:, 2])


def targeted_dlr(logits: Tensor, y: Tensor, target: Tensor) -> Tensor:
    r"""Return the targeted difference of logits ratio of each sample, ``[N]``, larger for a closer target class.

    With the logits in descending order and a target class :math:`t`,

    .. math:: \frac{z_t - z_y}{z_{\pi_1} - (z_{\pi_3} + z_{\pi_4}) / 2}

    which is positive only where the sample is misclassified, not necessarily as the target. Invariances and errors are
    those of :func:`dlr`; where the four largest logits are equal, the numerator is returned.

    Args:
        logits: ``[N, C]`` as for :func:`dlr`, but with C at least 4.
        y: classes of the samples, as for :func:`dlr`.
        target: target classes, int64 ``[N]`` in [0, C); on the CPU a target equal to ``y`` raises a ``ValueError``.

    Example:
        Logit 2 is 4 below logit 0, which is 4.5 above the mean of the third and fourth largest logits.

        >>> logits, y, target = torch.tensor([[5.0, 3.0, 1.0, 0.0]]), torch.tensor([0]), torch.tensor([2])
        >>> round(targeted_dlr(logits, y, target).item(), 4) == round(-4 / 4.5, 4)
        True
    """
    logits = _checked("targeted_dlr", logits, 4, y=y, target=target)
    if readable(y) and (same := int((target == y).sum())):
        got = f"the class itself for {same} of {len(y)} samples"
        raise ValueError(complaint("targeted_dlr", "target to differ from y", got, "Pass another class as the target"))
    largest = logits.topk(4).values
    width = largest[:, 0] - (largest[:, 2] + largest[:, 3]) / 2
    return _ratio(_of_class(logits, target) - _of_class(logits, y), width)


def _checked(owner: str, logits: Tensor, least: int, **classes: Tensor) -> Tensor:
    remedy = "Pass the outputs of the classifier, before any softmax"
    check_logits(owner, {"logits": logits}, least=least, remedy=remedy)
    for name, of in classes.items():
        check_classes(owner, name, of, logits, remedy="Pass one class index per sample")
    return logits if logits.dtype == torch.float64 else logits.float()


def _of_class(logits: Tensor, classes: Tensor) -> Tensor:
    return logits.gather(1, classes[:, None])[:, 0]


def _ratio(difference: Tensor, width: Tensor) -> Tensor:
    """Divide, but by 1 where the width is 0: neither the value nor its gradient may become infinite or NaN."""
    return difference / width.masked_fill(width == 0, 1)
