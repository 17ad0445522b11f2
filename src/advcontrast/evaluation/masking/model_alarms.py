"""Alarms from the outputs and gradients of a model, independent of any attack."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..._checks import check_finite, check_module, check_shape
from ..._random import preserve_rng_state
from ..inputs import check_images, checked_batches, checked_logits, prepared_for_evaluation
from .attack_alarms import Alarm

ZERO_GRADIENTS = 0.05  # a larger fraction overstates robust accuracy by more than papers differ
ROUNDING = 1e-4  # relative; rounding in float32 explains smaller differences, and larger noise affects attacks


def train_mode(model: nn.Module) -> Alarm:
    """Raise an alarm if any module of a model is in train mode.

    In train mode, attacks of other libraries would act on batch statistics and dropout, and update running statistics.

    Args:
        model: the network, in the mode of the evaluation.

    Raises:
        TypeError: ``model`` is not a module.

    Example:
        >>> train_mode(torch.nn.Linear(2, 2).eval()).raised
        False
    """
    check_module("train_mode", model)
    modes = [module.training for module in model.modules()]
    reason = f"{sum(modes)} of {len(modes)} modules are in train mode"
    advice = "Call model.eval() before attacking it elsewhere."
    return Alarm("train mode", any(modes), reason, {"modules": sum(modes)}, advice)


def randomised_output(model: nn.Module, images: Tensor) -> Alarm:
    """Raise an alarm if two forward passes of the same images differ by more than rounding.

    An attack on a model with internal noise must average gradients over the noise, or it follows a random direction.

    Args:
        model: a classifier of images in [0, 1] that returns ``[N, C]``.
        images: ``[N, ...]``, floating point in [0, 1]; a few are enough.

    Raises:
        ValueError: no image, images outside [0, 1], or the output has another shape or is not finite.
        TypeError: an argument has the wrong type.

    Example:
        >>> randomised_output(torch.nn.Flatten(), torch.rand(4, 3)).raised
        False
    """
    with prepared_for_evaluation("randomised_output", model) as device:
        x = _some("randomised_output", images, device)
        difference = _difference(*(finite_logits("randomised_output", model, x) for _ in range(2)))
    reason = f"two forward passes differ by {difference:.1e} of the spread of the outputs"
    advice = "Attack with the gradient averaged over many passes per step, or remove the source of randomness."
    return Alarm("randomised output", difference > ROUNDING, reason, {"difference": difference}, advice)


def batch_dependence(model: nn.Module, images: Tensor) -> Alarm:
    """Raise an alarm if the output for an image depends on its batch in eval mode, by more than rounding.

    This happens if a norm uses batch statistics in eval mode too. Arguments and errors are those of
    :func:`randomised_output`. The images are passed once with a copy of themselves and once with their negatives.

    Example:
        >>> batch_dependence(torch.nn.BatchNorm1d(3, track_running_stats=False), torch.rand(4, 3)).raised
        True
    """
    with prepared_for_evaluation("batch_dependence", model) as device:
        x = _some("batch_dependence", images, device)
        outputs = []
        for others in (x, 1 - x):
            # Both passes draw the same random numbers, so that only the other images differ.
            with preserve_rng_state():
                outputs.append(finite_logits("batch_dependence", model, torch.cat([x, others]))[: len(x)])
        difference = _difference(*outputs)
    reason = f"other images in the batch change the output by {difference:.1e} of its spread"
    advice = "Let norms use running statistics in eval mode."
    return Alarm("batch dependence", difference > ROUNDING, reason, {"difference": difference}, advice)


def probability_output(model: nn.Module, images: Tensor) -> Alarm:
    """Raise an alarm if all outputs are nonnegative and sum to 1 for each image: probabilities instead of logits.

    The cross-entropy of a softmax of a softmax is almost flat: attacks of this package raise an error for such a model.
    Black images are passed as well. Arguments and errors are those of :func:`randomised_output`.

    Example:
        >>> probability_output(torch.nn.Softmax(1), torch.rand(4, 3)).raised
        True
    """
    with prepared_for_evaluation("probability_output", model) as device:
        x = _some("probability_output", images, device)
        rows = finite_logits("probability_output", model, torch.cat([x, torch.zeros_like(x)])).float()
    smallest, error = torch.stack([rows.min(), (rows.sum(1) - 1).abs().max()]).tolist()
    reason = f"outputs are at least {smallest:.2g} and sum to 1 up to {error:.2g}"
    figures, advice = {"smallest": smallest, "error": error}, "Return logits: leave out the softmax at the end."
    return Alarm("probability output", smallest >= 0 and error < 1e-2, reason, figures, advice)


def zero_gradients(model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]) -> Alarm:
    """Raise an alarm if the gradient of the cross-entropy gives no direction for more than a twentieth of the images.

    It is exactly zero, as with quantised inputs or large logits that saturate the softmax; not finite; or missing, if
    the output is detached from the images. Errors are those of :func:`randomised_output`, and a ``ValueError`` for
    labels outside [0, C).

    Args:
        model: a classifier of images in [0, 1] that returns logits ``[N, C]``.
        batches: pairs of images ``[N, ...]`` in [0, 1] and labels ``[N]``, int64; best only correctly classified ones.

    Example:
        >>> images, labels = torch.rand(4, 3), torch.tensor([0, 1, 2, 0])
        >>> zero_gradients(torch.nn.Flatten(), [(images, labels)]).figures["zero"]
        0.0
    """
    owner = "zero_gradients"
    states = []
    with prepared_for_evaluation(owner, model) as device, torch.inference_mode(False), torch.enable_grad():
        for images, y, readable_y in checked_batches(owner, batches, device):
            x = images.detach().clone().requires_grad_()
            loss = F.cross_entropy(checked_logits(owner, model, x, readable_y), y, reduction="sum")
            (slope,) = torch.autograd.grad(loss, x, allow_unused=True) if loss.requires_grad else (None,)
            missing = torch.full_like(y, slope is None)
            slope = (torch.zeros_like(x) if slope is None else slope).flatten(1)
            states.append(torch.stack([(slope == 0).all(1), ~slope.isfinite().all(1), missing.bool()]))
    zero, bad, missing = torch.cat(states, 1).cpu().double().mean(1).tolist()
    reason = f"{zero:.1%} of the gradients are zero, {bad:.1%} not finite"
    if missing:
        reason = "no gradient reaches the images: the output is detached from them"
    figures = {"zero": zero, "not finite": bad, "no graph": missing}
    advice = "Report an attack without gradients, such as autoattack(), and one on a smooth approximation of the model."
    return Alarm("zero gradients", zero + bad > ZERO_GRADIENTS, reason, figures, advice)


def _some(owner: str, images: Tensor, device: torch.device) -> Tensor:
    check_images(owner, images)
    fits = images.dim() > 1 and len(images) > 0
    check_shape(owner, "images", images, "[N, ...] with N >= 1", fits, remedy="Pass some of the test images")
    return images.to(device)


def finite_logits(owner: str, model: nn.Module, x: Tensor, labels: Tensor | None = None) -> Tensor:
    """Return the logits ``[N, C]`` of a batch, after a check of their values and, if any, of the labels."""
    logits = checked_logits(owner, model, x, x.new_empty(0) if labels is None else labels)
    remedy = "Evaluate without half precision, or look for a division by zero in the model"
    check_finite(owner, "the output of the model", logits, remedy=remedy)
    return logits


def _difference(first: Tensor, second: Tensor) -> float:
    """Return the largest difference of two outputs, relative to the spread of the first."""
    first, second = torch.stack([first, second]).cpu().double()  # MPS has no float64
    smallest, largest = first.aminmax()
    return ((first - second).abs().max() / (largest - smallest).clamp(min=1e-300)).item()
