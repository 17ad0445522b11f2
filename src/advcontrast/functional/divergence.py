"""The Kullback-Leibler divergence of two predictions, and the loss of TRADES."""

from torch import Tensor
from torch.nn import functional as F

from .._checks import check_classes, check_logits, check_real


def kl_divergence(logits: Tensor, other: Tensor) -> Tensor:
    r"""Return the divergence :math:`\mathrm{KL}(p \,\|\, q)` of each sample, ``[N]`` in nats, >= 0 up to rounding.

    The distributions :math:`p` and :math:`q` are the softmax of two sets of logits. Value and gradients are finite at
    any scale of the logits.

    Args:
        logits: logits of p, ``[N, C]``; for TRADES those of the clean images.
        other: logits of q, ``[N, C]``; for TRADES those of the adversarial images.

    Raises:
        ValueError: shapes or devices differ, or shapes are not ``[N, C]`` with C at least 2.
        TypeError: an argument is not a floating-point tensor.

    Example:
        p puts 1/2 on each of two classes, q puts 3/4 and 1/4: the divergence is log(4 / 3) / 2.

        >>> kl = kl_divergence(torch.zeros(1, 2), torch.tensor([[3.0, 1.0]]).log())
        >>> round(kl.item(), 4), round(math.log(4 / 3) / 2, 4)
        (0.1438, 0.1438)
    """
    remedy = "Pass the outputs of the classifier, before any softmax"
    check_logits("kl_divergence", {"logits": logits, "other": other}, remedy=remedy)
    return F.kl_div(other.log_softmax(1), logits.log_softmax(1), reduction="none", log_target=True).sum(1)


def trades(clean_logits: Tensor, adv_logits: Tensor, labels: Tensor, beta: float = 6.0) -> Tensor:
    r"""Return the TRADES loss, a scalar: cross-entropy on clean images plus a weighted divergence of predictions.

    .. math::

        L &= \frac{1}{N} \sum_i \big[ \mathrm{CE}(x_i, y_i) \\
          & \quad + \beta\, \mathrm{KL}(p(x_i) \,\|\, p(x_i + \delta_i)) \big]

    The gradient flows through both sets of logits. ``adv_logits`` are computed on images that maximise the divergence,
    found by ``PGDAttack`` with :func:`kl_divergence` as objective, from a random start: at the clean image the gradient
    is 0. Reference: Zhang et al., ICML 2019.

    Args:
        clean_logits: logits of the clean images, ``[N, C]``.
        adv_logits: logits of the adversarial images, ``[N, C]``.
        labels: classes of the images, ``[N]``, int64 in [0, C).
        beta: weight of the divergence, at least 0; the authors' 6, which is the paper's :math:`1/\lambda`.

    Raises:
        ValueError: shapes do not fit, devices differ, or beta < 0.
        TypeError: an argument has the wrong type.

    Example:
        >>> logits = torch.zeros(4, 10)
        >>> round(trades(logits, logits, torch.arange(4)).item(), 4) == round(math.log(10), 4)
        True
    """
    check_real("trades", "beta", beta, low=0, remedy="6 is usual, 0 leaves plain cross-entropy")
    divergence = kl_divergence(clean_logits, adv_logits)
    check_classes("trades", "labels", labels, clean_logits, remedy="Pass one class index per sample")
    return F.cross_entropy(clean_logits, labels) + beta * divergence.mean()
