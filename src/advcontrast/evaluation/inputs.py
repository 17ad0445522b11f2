"""Inputs of evaluations: a model that is restored afterwards, and checks of images and labels."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from .._checks import check_generator, check_iterable, check_module, check_tensor, check_within, complaint, type_name
from .._modes import buffers_kept, eval_mode, frozen, without_tf32
from .._random import preserve_rng_state
from .._transfer import to_device
from .._types import Objective
from ..attacks import FreeAttack
from ..norm import DualNorm


def device_of(model: nn.Module) -> torch.device:
    """Return the device that the parameters and buffers of a model are on, the CPU where it has none."""
    return next((tensor.device for tensor in chain(model.parameters(), model.buffers())), torch.device("cpu"))


def branch_in_use(model: nn.Module) -> str | None:
    """Return the branch of the dual norms, several if they differ, or ``None`` without dual norms."""
    return " and ".join(sorted({norm.branch for norm in model.modules() if isinstance(norm, DualNorm)})) or None


@contextmanager
def prepared_for_evaluation(owner: str, model: nn.Module) -> Iterator[torch.device]:
    """Yield the device of a model in eval mode, frozen, without graph and TF32; restore buffers and random states."""
    check_module(owner, model)
    kept = buffers_kept(model, statistics=True)
    with preserve_rng_state(), kept, eval_mode(model), frozen(model), without_tf32(), torch.no_grad():
        yield device_of(model)


def generator_or_default(owner: str, generator: torch.Generator | None, device: torch.device) -> torch.Generator:
    """Return the generator that was passed, or one seeded with 0."""
    check_generator(owner, generator, device)
    return torch.Generator(device).manual_seed(0) if generator is None else generator


def checked_batches(
    owner: str, batches: Iterable[tuple[Tensor, Tensor]], device: torch.device
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yield images and labels on the device, and the labels on their own device, to read without synchronisation."""
    empty, remedy = True, "Pass a DataLoader, [(images, labels)] or ImageSet.batches(size)"
    check_iterable(owner, "batches", batches, remedy=remedy)
    for batch in batches:
        if not isinstance(batch, (tuple, list)) or len(batch) != 2:
            got = f"{len(batch)} parts" if isinstance(batch, (tuple, list)) else type_name(batch)
            raise TypeError(complaint(owner, "batches to yield pairs (images, labels)", got, remedy))
        x, y = batch
        check_images(owner, x)
        check_tensor(owner, "labels", y, (torch.int64,), remedy="Pass a class index per image")
        if x.dim() == 0 or y.shape != x.shape[:1]:
            got = f"{list(y.shape)} for images of shape {list(x.shape)}"
            raise ValueError(complaint(owner, "one label per image", got, "Pass images [N, ...] and labels [N]"))
        if len(x):
            empty = False
            yield to_device(x, device), to_device(y, device), y
    if empty:
        remedy = "An iterator can be used only once; pass a list or a DataLoader"
        raise ValueError(complaint(owner, "batches to hold at least one image", "none", remedy))


def check_images(owner: str, x: Any) -> None:
    """Require a floating point tensor with values in [0, 1]."""
    remedy = "Divide 8-bit values by 255, and put the normalisation inside the model"
    check_tensor(owner, "images", x, remedy=remedy)
    check_within(owner, "images", x, (0.0, 1.0), remedy=remedy)


def model_output(owner: str, model: nn.Module, x: Tensor) -> Tensor:
    """Return the output of a model for a copy of the images, which it may change in place."""
    try:
        return model(x.clone())  # type: ignore[no-any-return]
    except RuntimeError as error:
        dtype = next((weight.dtype for weight in model.parameters() if weight.is_floating_point()), x.dtype)
        if dtype == x.dtype:
            raise
        remedy = f"Convert the model with .to({x.dtype}); for half precision put autocast around the call"
        raise TypeError(complaint(owner, f"a model for images of {x.dtype}", f"one of {dtype}", remedy)) from error


def checked_logits(owner: str, model: nn.Module, x: Tensor, readable_y: Tensor) -> Tensor:
    """Return the logits ``[N, C]`` of a batch, after a check of their shape and of the labels."""
    logits = model_output(owner, model, x)
    remedy = "Pass a classifier whose output is its logits"
    check_tensor(owner, "the output of the model", logits, remedy=remedy)
    if logits.dim() != 2 or len(logits) != len(x) or logits.shape[1] < 2:
        expected = f"the output of the model of shape [{len(x)}, C] with C >= 2"
        raise ValueError(complaint(owner, expected, f"{list(logits.shape)}", remedy))
    top = logits.shape[1] - 1
    check_within(owner, "labels", readable_y, (0, top), remedy="Pass classes that the model has a logit for")
    return logits


def refuse_probabilities(owner: str, model: nn.Module, x: Tensor, logits: Tensor) -> None:
    """Raise if a model returns probabilities, for these images and for a black one: logits may sum to 1 by chance."""

    def distributions(rows: Tensor) -> bool:
        return bool((rows >= 0).all() & ((rows.float().sum(1) - 1).abs() < 1e-2).all())

    if distributions(logits) and distributions(model(torch.zeros_like(x[:1]))):
        remedy = "Leave out the softmax at the end of the model; it hides the gradient from attacks"
        raise ValueError(complaint(owner, "logits", "probabilities, which sum to 1 for every image", remedy))


def check_attack(owner: str, attack: object) -> None:
    """Require a callable that takes steps and is not an unwrapped attack of another library."""
    if not callable(attack):
        remedy = "Pass PGDAttack(...) or a function (objective, x, generator) -> x_adv"
        raise TypeError(complaint(owner, "attack to be callable", type_name(attack), remedy))
    library = type(attack).__module__.partition(".")[0]
    if library in ("torchattacks", "foolbox"):
        remedy = f"Wrap it with advcontrast.adapters.{library}"
        raise TypeError(complaint(owner, "an attack of advcontrast", f"one of {library}", remedy))
    check_steps(owner, attack)


def check_steps(owner: str, attack: object) -> None:
    """Require an attack that takes steps, perhaps inside another one."""
    for _ in range(8):  # an attack may hold itself
        if isinstance(attack, FreeAttack) or (
            getattr(attack, "steps", None) == 0 and getattr(attack, "eps", None) != 0
        ):
            remedy = "Without steps the result is at most the accuracy under noise, not a robust accuracy"
            raise ValueError(complaint(owner, "attack to take steps", f"{type_name(attack)} without any", remedy))
        attack = next((getattr(attack, name) for name in ("current", "attack", "func") if hasattr(attack, name)), None)


def perturbed(
    owner: str, attack: Callable[..., Tensor], objective: Objective, x: Tensor, generator: torch.Generator
) -> Tensor:
    """Return the images of a batch under attack, after a check of their shape."""
    adv = attack(objective, x.clone(), generator=generator)
    if not isinstance(adv, Tensor) or adv.shape != x.shape:
        got = f"{list(adv.shape)}" if isinstance(adv, Tensor) else type_name(adv)
        raise ValueError(complaint(owner, f"attack to return shape {list(x.shape)}", got, "Return an image for each"))
    return adv
