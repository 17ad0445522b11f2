"""Projected gradient ascent on any objective, and functions that other gradient attacks share with it."""

import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial, wraps
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from .._checks import (
    all_finite,
    check_bool,
    check_bounds,
    check_callable,
    check_choice,
    check_finite,
    check_generator,
    check_int,
    check_real,
    check_tensor,
    check_within,
    complaint,
    readable,
)
from .._types import NORMS, Norm, Objective
from ..functional.projection import per_sample
from .balls import BALLS
from .classification import ClassificationObjective

AttackClass = TypeVar("AttackClass", bound=type)

_OWNER = "PGDAttack"


def explains_calls(attack: AttackClass) -> AttackClass:
    """Raise errors that explain how to call an attack, for ``Attack(model, alpha=...)`` and ``attack(model, x, y)``."""
    call = "forward" if issubclass(attack, nn.Module) else "__call__"
    for name, expected in (("__init__", "settings by name"), (call, "an objective and images")):
        setattr(attack, name, _explained(attack.__name__, getattr(attack, name), expected))
    return attack


def _explained(owner: str, method: Callable[..., Any], expected: str) -> Callable[..., Any]:
    parameters = {name: each for name, each in inspect.signature(method).parameters.items() if name != "self"}
    allowed = sum(parameter.kind is parameter.POSITIONAL_OR_KEYWORD for parameter in parameters.values())

    @wraps(method)
    def explained(self: Any, *args: Any, **settings: Any) -> Any:
        if len(args) > allowed:
            remedy = f"Pass settings by name, and call {owner}(...) with (ClassificationObjective(model, y), x)"
            raise TypeError(complaint(owner, expected, f"{len(args)} by position", remedy))
        if unknown := [name for name in settings if name not in parameters]:
            remedy = "The model and the labels are part of the objective, ClassificationObjective(model, y)"
            raise TypeError(complaint(owner, f"arguments among {', '.join(parameters)}", ", ".join(unknown), remedy))
        return method(self, *args, **settings)

    return explained


@explains_calls
@dataclass(frozen=True, kw_only=True)
class PGDAttack:
    r"""Perturb images within a small ball so that an objective grows as much as possible.

    From a start :math:`x_0` in the ball, ``steps`` times

    .. math:: x_{k+1} = \Pi\big(x_k + \mathrm{step\_size} \cdot d_k\big)

    with :math:`d_k` the sign of the gradient (``"linf"``) or the gradient scaled to length one for each sample
    (``"l2"``), and :math:`\Pi` the projection onto the ball and the bounds. The defaults are
    those of the contrastive attack of ACL on CIFAR-10.

    The attack is independent of the model: the caller sets the mode, the batch-norm branch and autocast. It does not
    change flags, buffers, ``.grad`` or, given a generator, the global random state, and it works under ``no_grad`` and
    ``inference_mode``. Objectives may couple the samples of a batch, as a contrastive loss of both views does. The
    constraint holds in exact arithmetic: no coordinate (``"linf"``), and no sample's Euclidean norm (``"l2"``), exceeds
    ``eps``. Half precision cannot represent that (a step of bfloat16 near 1 is 1/256), so images are float32 or
    float64; put autocast around the model instead. The loss is scaled internally, so that small gradients survive half
    precision. References: Madry et al., ICLR 2018; Jiang et al., NeurIPS 2020.

    Args:
        eps: radius of the ball, at least 0, in the units of the images: 8/255 for images in [0, 1].
        step_size: length of a step, positive, in the same units.
        steps: number of steps, at least 0; each costs one forward and one backward pass.
        norm: ``"linf"`` or ``"l2"``.
        random_start: whether to start at a point drawn from the ball instead of at the image. An objective that
            compares the perturbed image with the image itself has no gradient at the image, and needs the random start.
        bounds: smallest and largest pixel value. Use infinite bounds for inputs without limits, such as embeddings.
        restarts: ``None`` makes one run and returns its last iterate, as ACL does. A number makes as many runs, each
            with one additional forward pass, and returns the strongest of all iterates: for each sample its own, or for
            a scalar objective the batch with the largest value.
        minimize: whether to shrink the objective instead, for example the loss of a target class.

    Raises:
        ValueError: a number is out of range, an unknown norm, bounds that are not in order, or an ``eps`` that exceeds
            the range of the bounds, such as 8 instead of 8/255.
        TypeError: an argument has the wrong type.

    Example:
        A linear objective is maximal at the corner of the cube that its weights point to.

        >>> attack = PGDAttack(eps=0.25, step_size=0.125, steps=4)
        >>> attack(lambda x: (x * torch.tensor([1.0, -1.0])).sum(1), torch.tensor([[0.5, 0.5]])).tolist()
        [[0.75, 0.25]]
    """

    eps: float = 8 / 255
    step_size: float = 2 / 255
    steps: int = 5
    norm: Norm = "linf"
    random_start: bool = True
    bounds: tuple[float, float] = (0.0, 1.0)
    restarts: int | None = None
    minimize: bool = False

    def __post_init__(self) -> None:
        check_search(_OWNER, self.eps, self.steps, self.norm, self.bounds)
        check_real(_OWNER, "step_size", self.step_size, low=0, above=True, remedy="A quarter of eps is usual")
        check_bool(_OWNER, "random_start", self.random_start, remedy="False starts at the image itself")
        check_bool(_OWNER, "minimize", self.minimize, remedy="True makes the attack targeted")
        if self.restarts is not None:
            check_int(_OWNER, "restarts", self.restarts, low=1, remedy="None returns the last iterate of one run")

    def __call__(
        self, objective: Objective, x: Tensor, *, generator: torch.Generator | None = None, start: Tensor | None = None
    ) -> Tensor:
        """Return adversarial versions of ``x``, detached, with its shape, dtype, device and memory format.

        Args:
            objective: a function of images like ``x`` that returns a value for each sample, ``[N]``, or a scalar, best
                a mean over the batch. It is called ``steps`` or, with restarts, ``restarts * (steps + 1)`` times.
            x: images ``[N, ...]``, float32 or float64, inside the bounds (a millionth beyond is clamped).
            generator: source of the random start, on the device of ``x``; by default the global one of that device.
            start: images like ``x`` to start from, projected onto the ball, for example the result of another attack.

        Raises:
            ValueError: ``x`` has no sample dimension, or ``start`` has another shape; the objective returns another
                shape, or a value that does not depend on its argument. On the CPU, where reading values is cheap, also
                if ``x`` is outside the bounds, or ``x``, ``start``, the objective or its gradient is not finite.
            TypeError: an argument has the wrong type, such as half precision or uint8 images.
        """
        check_call(_OWNER, objective, x, generator, self.bounds)
        if start is not None:
            remedy = "Pass images like x, or None"
            check_tensor(_OWNER, "start", start, (x.dtype,), remedy=remedy)
            if start.shape != x.shape or start.device != x.device:
                expected, got = (f"{list(images.shape)} on {images.device}" for images in (x, start))
                raise ValueError(complaint(_OWNER, f"start of shape {expected}", got, remedy))
            check_finite(_OWNER, "start", start, remedy=remedy)
        with torch.inference_mode(False), torch.enable_grad():
            x = x.detach()
            if x.numel() == 0:
                return x.clone()
            ball = BALLS[self.norm](x, self.eps, self.bounds)
            lengths = ball.lengths(self.step_size)
            strongest: tuple[Tensor, Tensor] | None = None
            for _ in range(self.restarts or 1):
                if start is None and self.random_start:
                    point = ball.random_point(generator)
                else:
                    point = ball.project(x if start is None else start.detach())
                for _ in range(self.steps):
                    gain, gradient = ascent(_OWNER, partial(self._gain, objective), point)
                    if self.restarts:
                        strongest = _stronger(strongest, gain, point)
                    point = ball.step(point, gradient, lengths)
                if self.restarts:
                    with torch.no_grad():
                        strongest = _stronger(strongest, self._gain(objective, point), point)
            return point if strongest is None else strongest[1]

    def _gain(self, objective: Objective, image: Tensor) -> Tensor:
        value = value_of(_OWNER, objective, image, scalar=True)
        return -value if self.minimize else value


def _stronger(best: tuple[Tensor, Tensor] | None, gain: Tensor, image: Tensor) -> tuple[Tensor, Tensor]:
    """Return the image with the larger gain, sample by sample or for the whole batch."""
    if best is None:
        return gain, image
    wins = gain > best[0]
    return torch.where(wins, gain, best[0]), torch.where(per_sample(wins, image), image, best[1])


def check_search(
    owner: str, eps: float, steps: int, norm: str, bounds: tuple[float, float], *, norms: Sequence[str] = NORMS
) -> None:
    """Require a valid ball and number of steps."""
    check_real(owner, "eps", eps, low=0, remedy="For images in [0, 1] it is usually 8/255")
    check_int(owner, "steps", steps, low=0, remedy="Pass the number of gradient steps")
    check_choice(owner, "norm", norm, norms)
    check_bounds(owner, bounds)
    width = bounds[1] - bounds[0]
    if norm == "linf" and eps > width * (1 + 1e-9):
        remedy = f"Did you mean {eps:g}/255" if eps > 1 else "A larger ball holds every image"
        raise ValueError(complaint(owner, f"eps within the range {width:g} of bounds", repr(eps), remedy))


def check_call(
    owner: str, objective: Objective, x: Tensor, generator: torch.Generator | None, bounds: tuple[float, float]
) -> None:
    """Require the arguments of a call: a function, images within bounds, a generator or ``None``."""
    check_callable(owner, "objective", objective, remedy="Pass a function such as lambda x: loss(model(x), y)")
    remedy = "Attack float images, and put autocast around the model for half precision"
    check_tensor(owner, "x", x, (torch.float32, torch.float64), remedy=remedy)
    if x.dim() == 0:
        raise ValueError(complaint(owner, "x of shape [N, ...]", "[]", "Add a sample dimension with x[None]"))
    check_generator(owner, generator, x.device)
    check_within(owner, "x", x, bounds, remedy="Put the normalisation inside the model and attack the raw image")


def value_of(owner: str, objective: Objective, image: Tensor, *, scalar: bool) -> Tensor:
    """Return the value of an objective: one for each sample, or where ``scalar`` is set a scalar."""
    # An objective may change its argument in place; this one copies it.
    value = objective(image if isinstance(objective, ClassificationObjective) else image.clone())
    remedy = "Use reduction='none', or the mean of it" if scalar else "Use reduction='none'"
    if isinstance(objective, nn.Module):
        remedy = "Pass ClassificationObjective(model, y), or a function such as lambda x: loss(model(x), y)"
    check_tensor(owner, "the value of the objective", value, remedy=remedy)
    if value.shape != image.shape[:1] and not (scalar and value.dim() == 0):
        expected = f"objective to return {'a scalar or ' if scalar else ''}shape [{len(image)}]"
        raise ValueError(complaint(owner, expected, f"{list(value.shape)}", remedy))
    check_finite(owner, "the value of the objective", value, remedy="Check the model on the unperturbed images")
    return value


def ascent(
    owner: str, gain: Callable[[Tensor], Tensor], image: Tensor, *, scaled: bool = True
) -> tuple[Tensor, Tensor]:
    """Return the value that an attack maximises, and a positive multiple of its gradient."""
    image = image.detach().requires_grad_()
    value = gain(image)
    # A gradient below the range of half precision would underflow inside the model. Neither a sign nor a direction
    # depends on the scale, and a power of two is exact. A scalar is assumed to be a mean.
    samples = len(image) if value.dim() == 0 else 1
    scale = 2.0 ** min(5 + round(math.log2(samples)), 15) if scaled else 1.0
    gradient = None
    if value.requires_grad:
        # An autocast around the attack is meant for the forward pass; backward operations follow their tensors.
        with torch.autocast(image.device.type, enabled=False):
            (gradient,) = torch.autograd.grad(value, image, torch.full_like(value, scale), allow_unused=True)
    if gradient is None:
        remedy = "Compute it from the argument, without detach or no_grad"
        raise ValueError(complaint(owner, "objective to depend on x", "a value without a gradient", remedy))
    if readable(gradient) and not all_finite(gradient):
        if scaled:
            return ascent(owner, gain, image, scaled=False)
        remedy = "Look for a division by zero in the model"
        check_finite(owner, "the gradient of the objective", gradient, remedy=remedy)
    return value.detach(), gradient
