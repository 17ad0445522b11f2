"""The loss of ACL's semi-supervised training: few labels, and a teacher for every image."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .._checks import check_classes, check_real, check_temperature, check_tensor
from .distillation import distillation
from .divergence import kl_divergence


def semi_supervised(
    clean_logits: Tensor,
    adv_logits: Tensor,
    labels: Tensor,
    teacher_logits: Tensor,
    *,
    alpha: float = 0.5,
    temperature: float = 1.0,
    beta: float = 6.0,
) -> Tensor:
    r"""Return the loss of ACL's semi-supervised training (equation 3 of the paper) for a batch, a scalar.

    .. math::

        L &= \frac{1}{N} \Big[ \sum_{i\ \mathrm{labelled}} \alpha\, \mathrm{CE}(x_i + \delta_i, y_i) \\
          & \quad + \sum_{i\ \mathrm{labelled}} (1 - \alpha)\, T^2 H_i \\
          & \quad + \sum_{i\ \mathrm{unlabelled}} T^2 H_i \\
          & \quad + \beta \sum_i \mathrm{KL}(p(x_i) \,\|\, p(x_i + \delta_i)) \Big]

    where :math:`H_i` is the :func:`distillation` loss of the prediction for the adversarial image, with the teacher's
    prediction for the clean image. This is the paper's form, with :math:`\alpha` on the labels; the authors' code has
    :math:`1 - \alpha` there, which is the same at their 0.5. The gradient does not flow to the teacher. Any number of
    images of a batch may be labelled. Nothing synchronises with an accelerator. Reference: Jiang et al., NeurIPS 2020.

    Args:
        clean_logits: logits of the clean images, ``[N, C]``.
        adv_logits: logits of the adversarial images, ``[N, C]``.
        labels: classes of the images, ``[N]``, int64 in [0, C), and -1 for an image without a label.
        teacher_logits: a standard-trained classifier's logits of the clean images, ``[N, C]``.
        alpha: share of the label in the loss of a labelled image, in [0, 1].
        temperature: temperature T of the distillation, at least 1e-30.
        beta: weight of the divergence, at least 0; the paper's :math:`1/\lambda`.

    Raises:
        ValueError: shapes do not fit, devices differ, or a number or, on the CPU, a label out of range.
        TypeError: an argument has the wrong type.

    Example:
        >>> logits = torch.zeros(4, 10)
        >>> loss = semi_supervised(logits, logits, torch.tensor([3, -1, -1, 7]), logits)
        >>> round(loss.item(), 4) == round(math.log(10), 4)
        True
    """
    owner = "semi_supervised"
    check_settings(owner, alpha, temperature, beta)
    divergence = kl_divergence(clean_logits, adv_logits)
    check_tensor(owner, "teacher_logits", teacher_logits, remedy="Pass the outputs of the teacher, before any softmax")
    soft = temperature * (temperature * distillation(adv_logits, teacher_logits.detach(), temperature))
    remedy = "Pass one class index per sample, and -1 for a sample without a label"
    check_classes(owner, "labels", labels, clean_logits, low=-1, remedy=remedy)
    hard = F.cross_entropy(adv_logits, labels.clamp(min=0), reduction="none")
    supervised = torch.where(labels >= 0, alpha * hard + (1 - alpha) * soft, soft)
    return supervised.mean() + beta * divergence.mean()


def check_settings(owner: str, alpha: Any, temperature: Any, beta: Any) -> None:
    """Check the settings of the loss."""
    check_real(owner, "alpha", alpha, low=0, high=1, remedy="0.5 is ACL's, 1 leaves the teacher out where labels are")
    check_temperature(owner, temperature)
    check_real(owner, "beta", beta, low=0, remedy="6 is ACL's, 0 leaves the divergence out")
