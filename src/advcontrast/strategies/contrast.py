"""Contrast of several views of each image, which several methods share."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from ..functional import high_frequency
from ..functional.nt_xent import unit_rows
from .step import Step


def view_losses(*z: Tensor, temperature: float = 0.5, detach_keys: bool = False) -> Tensor:
    r"""Return the contrastive loss of each ordered pair of V views, ``[V, V]``, with zeros on the diagonal.

    Entry (a, b) is the mean of :math:`-\log p` over the N images, where :math:`p` is the softmax probability of view b
    of an image among all V N embeddings except the anchor, view a of that image. With two views, the mean of both
    entries is NT-Xent. With ``detach_keys`` gradients flow through the anchors only.
    """
    views, n = len(z), len(z[0])
    with torch.autocast(z[0].device.type, enabled=False):
        anchors = torch.cat([unit_rows(each) for each in z])
        keys = anchors.detach() if detach_keys else anchors
        itself = torch.eye(views * n, dtype=torch.bool, device=anchors.device)
        log_p = (anchors @ keys.T / temperature).masked_fill(itself, -math.inf).log_softmax(1)
        return pair_means(-log_p, views)


def pair_means(losses: Tensor, views: int) -> Tensor:
    """Return the means over the images of the losses ``[V N, V N]`` of anchors and partners, ``[V, V]``."""
    n = len(losses) // views
    means = losses.view(views, n, views, n).diagonal(dim1=1, dim2=3).mean(-1)
    return means.masked_fill(torch.eye(views, dtype=torch.bool, device=means.device), 0)


def four_views(step: Step, radius: float, loss: Callable[..., Tensor]) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Return attacked images, and the embeddings of them, of two views and of their high frequencies.

    The views of the step are the two views and the images. The attack maximises ``loss`` of the four embeddings over
    the first ones, through the adversarial branch; the others are fixed and pass through the clean branch, each in its
    own forward pass.
    """
    x1, x2, x = step.views
    clean = x1, x2, high_frequency(x, radius).to(x)
    fixed = step.still("clean", *clean)
    (x_adv,) = step.perturb(lambda z: loss(z, *fixed), "adv", x)
    step.z["adv"] = step.embed("adv", x_adv)
    z1, z2, high = (z for view in clean for z in step.embed("clean", view))
    step.z["clean"] = z1, z2
    return x_adv, (*step.z["adv"], z1, z2, high)
