"""Distillation of the predictions of one classifier into another."""

from torch import Tensor
from torch.nn import functional as F

from .._checks import check_logits, check_temperature


def distillation(logits: Tensor, teacher_logits: Tensor, temperature: float = 1.0) -> Tensor:
    r"""Return the cross-entropy of each sample with the softened prediction of a teacher, ``[N]`` in nats.

    .. math::

        H_i &= -\sum_c p_{ic} \log q_{ic} \\
        p_i &= \mathrm{softmax}(t_i / T) \\
        q_i &= \mathrm{softmax}(z_i / T)

    for logits :math:`z` and teacher's logits :math:`t`. The minimum, reached where both predictions agree, is the
    entropy of the teacher's prediction. Value and gradients are finite at any scale of the logits. The gradient shrinks
    with the square of the temperature: multiply by :math:`T^2` to keep the balance with other terms, as in
    :func:`semi_supervised`. The gradient flows to both arguments: detach the teacher. Reference: Hinton et al., 2015.

    Args:
        logits: logits of the student, ``[N, C]``.
        teacher_logits: logits of the teacher, ``[N, C]``.
        temperature: the temperature T, at least 1e-30; more than 1 softens both predictions.

    Raises:
        ValueError: shapes or devices differ, shapes are not ``[N, C]`` with C at least 2, or temperature < 1e-30.
        TypeError: an argument has the wrong type.

    Example:
        The teacher predicts 3/4 and 1/4, and at a temperature of 1/2 their normalised squares, 9/10 and 1/10.

        >>> teacher = torch.tensor([[3.0, 1.0]]).log()
        >>> entropy = -(0.9 * math.log(0.9) + 0.1 * math.log(0.1))
        >>> round(distillation(teacher, teacher, temperature=0.5).item(), 4) == round(entropy, 4)
        True
    """
    check_temperature("distillation", temperature)
    remedy = "Pass the outputs of both classifiers, before any softmax"
    check_logits("distillation", {"logits": logits, "teacher_logits": teacher_logits}, remedy=remedy)
    return F.cross_entropy(logits / temperature, (teacher_logits / temperature).softmax(1), reduction="none")
