"""How badly one classifier predicts what another one believes."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from .._checks import check_temperature, check_tensor, complaint
from .devices import check_one_device


def distillation(logits: Tensor, teacher_logits: Tensor, temperature: float = 1.0) -> Tensor:
    r"""Return the cross-entropy of each sample with a teacher's softened prediction as target.

    .. math::

        H_i &= -\sum_c p_{ic} \log q_{ic} \\
        p_i &= \mathrm{softmax}(t_i / T) \\
        q_i &= \mathrm{softmax}(z_i / T)

    for logits :math:`z` and teacher's logits :math:`t`. Where both agree this is the entropy of the prediction, which
    is the least it can be; as :math:`T` grows it tends to :math:`\log C`. Value and gradients are finite at any scale
    of the logits.

    The gradient of the value shrinks with the square of the temperature; multiply by :math:`T^2` to keep the balance
    with other terms, as :func:`semi_supervised` does. The gradient flows to both arguments: detach a teacher that
    should not learn.

    Args:
        logits: of the classifier that learns, ``[N, C]``.
        teacher_logits: of the classifier that it learns from, ``[N, C]``.
        temperature: T above, at least 1e-30; more than 1 softens both predictions.

    Returns:
        A tensor ``[N]``, in nats.

    Raises:
        ValueError: shapes or devices differ, shapes are not ``[N, C]`` with C at least 2, or temperature < 1e-30.
        TypeError: an argument of the wrong kind.

    Example:
        The teacher says 3/4 and 1/4, and at a temperature of 1/2 their squares, 9/10 and 1/10.

        >>> teacher = torch.tensor([[3.0, 1.0]]).log()
        >>> entropy = -(0.9 * math.log(0.9) + 0.1 * math.log(0.1))
        >>> round(distillation(teacher, teacher, temperature=0.5).item(), 4) == round(entropy, 4)
        True

    References:
        Hinton et al., "Distilling the Knowledge in a Neural Network", 2015.
    """
    check_temperature("distillation", temperature)
    remedy = "Pass the outputs of both classifiers, before any softmax"
    check_tensor("distillation", "logits", logits, remedy=remedy)
    check_tensor("distillation", "teacher_logits", teacher_logits, remedy=remedy)
    if logits.shape != teacher_logits.shape or logits.dim() != 2 or logits.shape[1] < 2:
        expected = "logits and teacher_logits to have the same shape [N, C] with C >= 2"
        got = f"{list(logits.shape)} and {list(teacher_logits.shape)}"
        raise ValueError(complaint("distillation", expected, got, remedy))
    check_one_device("distillation", logits=logits, teacher_logits=teacher_logits)
    return F.cross_entropy(logits / temperature, (teacher_logits / temperature).softmax(1), reduction="none")
