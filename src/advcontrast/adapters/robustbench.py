"""robustbench: a network as its benchmark takes it, and the claim beside it; robustbench itself is not needed."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .._checks import check_finite, check_tensor, check_within, complaint
from .._random import kept
from ..evaluation.inputs import checked_logits, device_of, refuse_probabilities
from ..models.normalize import Normalize, Statistics, input_layer
from ._claim import claim
from ._plain import plain_copy

__all__ = ["claim", "export_plain"]


def export_plain(
    model: nn.Module, images: Tensor, *, branch: str | None = None, normalize: Statistics | None = None
) -> nn.Module:
    """Return a copy of a classifier in eval mode, with one branch, from images in [0, 1] to logits.

    ``normalize=(mean, std)`` is for a model that does not normalise by itself. The copy is tried on ``images``
    ``[N, C, H, W]``: it must yield finite logits ``[N, classes]``, the same ones twice, and no probabilities.
    """
    owner = "export_plain"
    plain: nn.Module = plain_copy(owner, model, branch)
    check_tensor(owner, "images", images, remedy="Convert 8-bit images with images.float() / 255")
    if images.dim() != 4 or not images.numel():
        got, remedy = f"{list(images.shape)}", "Pass a few images of the test set"
        raise ValueError(complaint(owner, "images of shape [N, C, H, W] with N >= 1", got, remedy))
    check_within(owner, "images", images, (0.0, 1.0), remedy="Pass images of the test set as they are")
    if normalize is not None:
        if any(isinstance(module, Normalize) for module in plain.modules()):
            remedy = "Leave out normalize, as the model normalises by itself"
            raise ValueError(complaint(owner, "a model without Normalize", "one with it", remedy))
        plain = nn.Sequential(input_layer(owner, normalize, images.shape[1]), plain).to(device_of(plain)).eval()
    x, labels = images.to(device_of(plain)), torch.zeros(len(images), dtype=torch.int64)
    with kept(), torch.no_grad():
        logits, again = (checked_logits(owner, plain, x, labels) for _ in range(2))
        refuse_probabilities(owner, plain, x, logits)
    check_finite(owner, "the logits", logits.cpu(), remedy="Look for a division by zero in the model")
    if not torch.equal(logits, again):
        remedy = "Take out what draws random numbers; robustbench ranks deterministic models only"
        raise ValueError(complaint(owner, "the same logits twice", "others the second time", remedy))
    return plain
