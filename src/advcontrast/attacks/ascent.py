"""What attacks by gradient have in common: what they accept, which way is up, and what is better."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from functools import wraps
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from .._checks import (
    check_bounds,
    check_choice,
    check_finite,
    check_generator,
    check_int,
    check_real,
    check_tensor,
    check_within,
    complaint,
    readable,
    type_name,
)
from .._types import NORMS, Norm, Objective

AttackClass = TypeVar("AttackClass", bound=type)


def explains_calls(attack: AttackClass) -> AttackClass:
    """Make a class of attacks refuse calls in the style of other libraries, with an error that shows its own style.

    Other libraries take the model and the labels by position: ``Attack(model, eps=...)`` and ``attack(model, x, y)``.
    """
    call = "forward" if issubclass(attack, nn.Module) else "__call__"
    for name, expected in (("__init__", "settings by name"), (call, "an objective and images")):
        setattr(attack, name, _explained(attack.__name__, getattr(attack, name), expected))
    return attack


def _explained(owner: str, method: Callable[..., Any], expected: str) -> Callable[..., Any]:
    parameters = list(inspect.signature(method).parameters.values())[1:]
    allowed = sum(parameter.kind is parameter.POSITIONAL_OR_KEYWORD for parameter in parameters)

    @wraps(method)
    def explained(self: Any, *args: Any, **settings: Any) -> Any:
        if len(args) > allowed:
            got = f"{len(args)} by position"
            remedy = f"Write attack = {owner}(...), its settings by name, and then attack(Classification(model, y), x)"
            raise TypeError(complaint(owner, expected, got, remedy))
        return method(self, *args, **settings)

    return explained


def check_search(owner: str, eps: float, steps: int, norm: Norm, bounds: tuple[float, float]) -> None:
    """Require a ball that can hold an attack, and a number of steps."""
    check_real(owner, "eps", eps, low=0, remedy="For images in [0, 1] it is usually 8/255")
    check_int(owner, "steps", steps, low=0, remedy="Pass the number of gradient steps")
    check_choice(owner, "norm", norm, NORMS)
    check_bounds(owner, bounds)
    width = bounds[1] - bounds[0]
    if norm == "linf" and eps > width * (1 + 1e-9):
        remedy = f"Did you mean {eps:g}/255" if eps > 1 else "A larger ball holds every image"
        raise ValueError(complaint(owner, f"eps within the range {width:g} of bounds", repr(eps), remedy))


def check_call(
    owner: str, objective: Objective, x: Tensor, generator: torch.Generator | None, bounds: tuple[float, float]
) -> None:
    """Require what every attack is called with: a function, images within bounds, perhaps a generator."""
    if not callable(objective):
        remedy = "Pass a function such as lambda x: loss(model(x), y)"
        raise TypeError(complaint(owner, "objective to be callable", type_name(objective), remedy))
    remedy = "Attack float images, and put autocast around the model for half precision"
    check_tensor(owner, "x", x, (torch.float32, torch.float64), remedy=remedy)
    if x.dim() == 0:
        raise ValueError(complaint(owner, "x of shape [N, ...]", "[]", "Add a sample dimension with x[None]"))
    check_generator(owner, generator, x.device)
    remedy = "Put the normalisation inside the model and attack the raw image"
    if readable(x) and x.numel():
        # The extremes tell it in one pass, NaN and infinity included.
        extremes = torch.stack(x.detach().aminmax())
        check_within(owner, "x", extremes if bool(extremes.isfinite().all()) else x, bounds, remedy=remedy)


def value_of(owner: str, objective: Objective, image: Tensor, *, scalar: bool) -> Tensor:
    """Return the value of an objective, one for each sample, or a scalar where that is allowed.

    The objective gets a copy of the images, so it may change them in place.
    """
    value = objective(image.clone())
    remedy = "Use reduction='none', or the mean of it" if scalar else "Use reduction='none'"
    if isinstance(objective, nn.Module):
        remedy = "Pass Classification(model, y), or a function such as lambda x: loss(model(x), y)"
    check_tensor(owner, "the value of the objective", value, remedy=remedy)
    if value.shape != image.shape[:1] and not (scalar and value.dim() == 0):
        expected = f"objective to return {'a scalar or ' if scalar else ''}shape [{len(image)}]"
        raise ValueError(complaint(owner, expected, f"{list(value.shape)}", remedy))
    check_finite(owner, "the value of the objective", value, remedy="Check the model on the unperturbed images")
    return value


def ascent(
    owner: str, gain: Callable[[Tensor], Tensor], image: Tensor, *, scaled: bool = True
) -> tuple[Tensor, Tensor]:
    """Return what an attack wants to grow, and a positive multiple of its gradient."""
    image = image.detach().requires_grad_()
    value = gain(image)
    # A gradient below the range of half precision would become zero on its way through the model. Neither a sign
    # nor a direction depends on the scale, and a power of two changes no digit. A scalar is taken to be a mean.
    samples = len(image) if value.dim() == 0 else 1
    scale = 2.0 ** min(5 + round(math.log2(samples)), 15) if scaled else 1.0
    slope = None
    if value.requires_grad:
        # An autocast around the attack is meant for the forward pass; backward operations follow their tensors.
        with torch.autocast(image.device.type, enabled=False):
            (slope,) = torch.autograd.grad(value, image, torch.full_like(value, scale), allow_unused=True)
    if slope is None:
        remedy = "Compute it from the argument, without detach or no_grad"
        raise ValueError(complaint(owner, "objective to depend on x", "a value without a gradient", remedy))
    # A sum is finite only if every value is, and takes one pass; where it overflowed, each of them is looked at.
    if readable(slope) and not math.isfinite(slope.sum().item()):
        if scaled and not bool(slope.isfinite().all()):
            return ascent(owner, gain, image, scaled=False)
        check_finite(owner, "the gradient of the objective", slope, remedy="Look for a division by zero in the model")
    return value.detach(), slope


def rows(values: Tensor, like: Tensor) -> Tensor:
    """View one value a sample, or a single one, such that it computes with whole samples."""
    return values.view(-1, *[1] * (like.dim() - 1))


def beats(gain: Tensor, best: Tensor) -> Tensor:
    """Tell where a gain is larger than the best so far; NaN is larger than any, so that it is never lost."""
    return ~(gain <= best) & ~best.isnan()


class Spot(NamedTuple):
    """A point of the ball, what it gains and which way is up from there, sample by sample."""

    point: Tensor
    gain: Tensor
    slope: Tensor

    def where(self, mask: Tensor, other: Spot) -> Spot:
        """Return this spot for the samples of a mask, and the other one for the rest."""
        return Spot(*(torch.where(rows(mask, a), a, b) for a, b in zip(self, other, strict=True)))

    def keep(self, which: Tensor) -> Spot:
        """Return some of the samples."""
        return Spot(*(part[which] for part in self))
