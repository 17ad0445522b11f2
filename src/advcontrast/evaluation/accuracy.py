"""Clean and robust accuracy, sample by sample, without a trace left on model or random state."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import chain

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .._checks import check_generator, check_module, check_tensor, check_within, complaint, type_name
from .._modes import eval_mode, frozen

_NON_FINITE = 2  # a verdict besides wrong, 0, and right, 1


@dataclass(frozen=True, eq=False)
class Accuracy:
    """What an evaluation found.

    Attributes:
        correct: whether each sample was classified correctly, bool ``[N]`` on the CPU, in the order of the batches.

    Example:
        >>> Accuracy(torch.tensor([True, True, False, True])).accuracy
        0.75
    """

    correct: Tensor

    @property
    def accuracy(self) -> float:
        """The fraction of samples classified correctly, in [0, 1]."""
        return int(self.correct.sum()) / len(self.correct)

    def __repr__(self) -> str:
        return f"Accuracy({int(self.correct.sum())} of {len(self.correct)}, {self.accuracy:.2%})"


def accuracy(model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]) -> Accuracy:
    """Return which images a classifier gets right.

    The model is in eval mode for the call, whatever mode each of its modules is in; the batch-norm branch and autocast
    are whatever surrounds the call. Modes, gradients and the global random state of PyTorch, which a ``DataLoader``
    would advance, are afterwards what they were, also where something raises: evaluating between two epochs does not
    change the training.

    Args:
        model: a classifier of images in [0, 1], the normalisation inside, that returns logits ``[N, C]``.
        batches: pairs of images ``[N, ...]``, floating point in [0, 1], and labels ``[N]``, int64 in [0, C); for
            example a ``DataLoader``. They are moved to the device of the model.

    Returns:
        The verdicts, with their mean as ``accuracy``.

    Raises:
        ValueError: there is no image; a shape does not fit; logits are not finite; or, in batches that lie on the CPU,
            images leave [0, 1] or labels leave [0, C).
        TypeError: an argument of the wrong kind, such as uint8 images.

    Example:
        Images of two pixels, and a model that takes the brighter pixel for the class.

        >>> images = torch.tensor([[0.9, 0.1], [0.4, 0.6], [0.7, 0.3], [0.2, 0.8]])
        >>> accuracy(torch.nn.Flatten(), [(images, torch.tensor([0, 1, 1, 1]))]).accuracy
        0.75
    """
    return _evaluate("accuracy", model, batches)


def robust_accuracy(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    attack: Callable[..., Tensor],
    *,
    generator: torch.Generator | None = None,
) -> Accuracy:
    """Return which images a classifier gets right, both as they are and under attack.

    The attack maximises the cross-entropy of each sample through the model in eval mode. An image counts only if it is
    classified correctly without the attack too, so robust images are among the correct ones of :func:`accuracy`, and
    an attack of radius 0 gives exactly those. As :func:`accuracy`, the call leaves no trace.

    The number of the ACL paper is that of ``PGDAttack(eps=8 / 255, step_size=2 / 255, steps=20)``.

    Args:
        model: as for :func:`accuracy`, differentiable.
        batches: as for :func:`accuracy`, float32 or float64.
        attack: a callable such as ``PGDAttack``, called as ``attack(objective, x, generator=generator)``.
        generator: source of the attack's randomness, on the device of the model. By default one seeded with 0, so that
            the same model in the same batches gives the same number.

    Returns:
        The verdicts, with their mean as ``accuracy``.

    Raises:
        ValueError: as for :func:`accuracy`, or the attack returns images of another shape.
        TypeError: an argument of the wrong kind.

    Example:
        Moving both pixels by 1/4 turns the one image whose pixels differ by less than 1/2.

        >>> images = torch.tensor([[0.9, 0.1], [0.4, 0.6], [0.8, 0.2], [0.2, 0.8]])
        >>> attack = PGDAttack(eps=0.25, step_size=0.25, steps=1, random_start=False)
        >>> robust_accuracy(torch.nn.Flatten(), [(images, torch.tensor([0, 1, 0, 1]))], attack).accuracy
        0.75
    """
    if not callable(attack):
        remedy = "Pass PGDAttack(...) or a function (objective, x, generator) -> x_adv"
        raise TypeError(complaint("robust_accuracy", "attack to be callable", type_name(attack), remedy))

    def perturb(x: Tensor, y: Tensor, source: torch.Generator) -> Tensor:
        adv = attack(lambda image: F.cross_entropy(model(image), y, reduction="none"), x, generator=source)
        if not isinstance(adv, Tensor) or adv.shape != x.shape:
            got = f"{list(adv.shape)}" if isinstance(adv, Tensor) else type_name(adv)
            remedy = "Return one perturbed image for each image"
            raise ValueError(complaint("robust_accuracy", f"attack to return shape {list(x.shape)}", got, remedy))
        return adv

    return _evaluate("robust_accuracy", model, batches, perturb, generator)


def _evaluate(
    owner: str,
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    perturb: Callable[[Tensor, Tensor, torch.Generator], Tensor] | None = None,
    generator: torch.Generator | None = None,
) -> Accuracy:
    """Collect a verdict for each sample on the device; all of them are read together at the end."""
    check_module(owner, model)
    device = next((tensor.device for tensor in chain(model.parameters(), model.buffers())), torch.device("cpu"))
    check_generator(owner, generator, device)
    source = torch.Generator(device).manual_seed(0) if generator is None else generator
    verdicts: list[Tensor] = []
    with _untouched(model, device), torch.no_grad():
        for batch in batches:
            x, y = _images_and_labels(owner, batch)
            here, there = x.to(device, non_blocking=True), y.to(device, non_blocking=True)
            verdict = _verdict(owner, model(here), there, y)
            if perturb is not None:
                attacked = _verdict(owner, model(perturb(here, there, source)), there, y)
                verdict = torch.where(verdict == 1, attacked, verdict)
            verdicts.append(verdict)
    if not sum(map(len, verdicts)):
        remedy = "An iterator can be walked only once; pass a list or a DataLoader"
        raise ValueError(complaint(owner, "batches to hold at least one image", "none", remedy))
    result = torch.cat(verdicts).cpu()
    bad = int((result == _NON_FINITE).sum())
    if bad:
        remedy = "Evaluate without half precision, or look for a division by zero in the model"
        raise ValueError(
            complaint(owner, "finite logits", f"non-finite ones for {bad} of {len(result)} images", remedy)
        )
    return Accuracy(result.bool())


@contextmanager
def _untouched(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Restore modes, ``requires_grad`` and the global random state of CPU and device."""
    with ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng([device] if device.type == "cuda" else []))
        stack.enter_context(eval_mode(model))
        stack.enter_context(frozen(model))
        yield


def _verdict(owner: str, logits: Tensor, y: Tensor, readable_y: Tensor) -> Tensor:
    """Return for each sample 1 if it is right, 0 if it is wrong and 2 if that cannot be said, uint8 ``[N]``."""
    remedy = "Pass a classifier whose output is its logits"
    check_tensor(owner, "the output of the model", logits, remedy=remedy)
    if logits.dim() != 2 or len(logits) != len(y) or logits.shape[1] < 2:
        expected = f"the output of the model of shape [{len(y)}, C] with C >= 2"
        raise ValueError(complaint(owner, expected, f"{list(logits.shape)}", remedy))
    classes = logits.shape[1]
    check_within(owner, "labels", readable_y, (0, classes - 1), remedy=f"The model knows {classes} classes")
    right = (logits.argmax(1) == y).to(torch.uint8)
    return torch.where(logits.isfinite().all(1), right, _NON_FINITE)


def _images_and_labels(owner: str, batch: object) -> tuple[Tensor, Tensor]:
    if not isinstance(batch, (tuple, list)) or len(batch) != 2:
        got = f"{len(batch)} parts" if isinstance(batch, (tuple, list)) else type_name(batch)
        raise TypeError(complaint(owner, "batches to yield pairs (images, labels)", got, "Pass a list of such pairs"))
    x, y = batch
    check_tensor(owner, "images", x, remedy="Convert 8-bit images with images.float() / 255")
    check_tensor(owner, "labels", y, (torch.int64,), remedy="Pass one class index an image")
    if x.dim() == 0 or y.shape != x.shape[:1]:
        got = f"{list(y.shape)} for images of shape {list(x.shape)}"
        raise ValueError(complaint(owner, "one label an image", got, "Pass images [N, ...] and labels [N]"))
    remedy = "Put the normalisation inside the model and evaluate the raw images"
    check_within(owner, "images", x, (0.0, 1.0), remedy=remedy)
    return x, y
