"""Attacks on the coefficients of a JPEG file."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

import torch
from torch import Tensor

from ..._checks import check_bool, check_choice, check_int, check_real, complaint
from ..._types import Objective
from ...attacks.pgd import PGDAttack, check_call, explains_calls, value_of
from .frank_wolfe import FrankWolfeAttack
from .jpeg_codec import jpeg_decode, jpeg_encode

JPEGNorm: TypeAlias = Literal["linf", "l2", "l1"]

_OWNER = "JPEGAttack"
_NORMS: tuple[JPEGNorm, ...] = get_args(JPEGNorm)
_REACH = 2.0  # the most that the sparse attacks move one coefficient, in half quantisation steps
_UNBOUNDED = (-math.inf, math.inf)


@explains_calls
@dataclass(frozen=True, kw_only=True)
class JPEGAttack:
    r"""Perturb what a JPEG file stores of each image, so that an objective grows as much as possible.

    With :math:`E` and :math:`D` the coding and decoding of 4:2:0 JPEG at quality 50, without the rounding
    (:func:`~advcontrast.evaluation.uar.jpeg_encode`), the adversarial image is

    .. math:: x_{\mathrm{adv}} = D(E(x) + v / 2), \quad \|v\| \le \mathrm{eps},

    clamped to [0, 1]. So :math:`v` counts in half quantisation steps, and ``eps=1`` in the L-infinity norm is what
    rounding itself can do. The search for :math:`v` is that of :class:`~advcontrast.PGDAttack` for ``"linf"`` and
    ``"l2"`` and that of :class:`FrankWolfeAttack` for ``"l1"``, around zero; the latter two move no coefficient by more
    than 2. Kang et al. use the same unit.

    Coding alone averages the colours of 2 x 2 pixels: with ``eps=0`` the result is :math:`D(E(x))`, not ``x``.
    What ``PGDAttack`` says of models, modes, gradients and the global random state holds here too.

    Args:
        eps: radius of the ball of coefficients of an image, at least 0, in half quantisation steps.
        step_size: length of a step, positive, in the same unit; None stands for eps / sqrt(steps), as in the paper.
            The steps of ``"l1"`` have no size.
        steps: number of steps, at least 0; each costs one forward and one backward pass.
        norm: ``"linf"``, ``"l2"`` or ``"l1"``, of all coefficients of an image together.
        random_start: whether to start at coefficients drawn from the ball instead of at those of the image.
        minimize: whether to shrink the objective instead, for example the loss of a target class.

    Raises:
        ValueError: a number out of its range, an unknown norm, or a step size for ``"l1"``.
        TypeError: an argument of the wrong kind.

    Example:
        One quantisation step of a block's mean luma is 16/8 of 255, and eps=1 is half a step.

        >>> attack = JPEGAttack(eps=1.0, steps=4, random_start=False)
        >>> luma = torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)
        >>> x = attack(lambda x: (luma * x).sum(1).mean(), torch.full((1, 3, 16, 16), 0.5))
        >>> round(((luma * x).sum(1).mean().item() - 0.5) * 255, 3)
        1.0

    References:
        Kang et al., "Testing Robustness Against Unforeseen Adversaries", 2019.
    """

    eps: float = 0.5
    step_size: float | None = None
    steps: int = 10
    norm: JPEGNorm = "linf"
    random_start: bool = True
    minimize: bool = False

    def __post_init__(self) -> None:
        check_real(_OWNER, "eps", self.eps, low=0, remedy="It counts half quantisation steps; 0.5 is usual for linf")
        check_choice(_OWNER, "norm", self.norm, _NORMS)
        if self.step_size is not None:
            remedy = "None stands for eps / sqrt(steps)"
            check_real(_OWNER, "step_size", self.step_size, low=0, above=True, remedy=remedy)
            if self.norm == "l1":
                got = repr(self.step_size)
                raise ValueError(complaint(_OWNER, "no step_size for norm 'l1'", got, "Its steps are 1 / (k + 1)"))
        check_int(_OWNER, "steps", self.steps, low=0, remedy="Pass the number of gradient steps")
        check_bool(_OWNER, "random_start", self.random_start, remedy="False starts at the image itself")
        check_bool(_OWNER, "minimize", self.minimize, remedy="True makes the attack targeted")

    def __call__(self, objective: Objective, x: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """Return adversarial versions of the images ``x``.

        Args:
            objective: a function of images like ``x`` that returns a value for each sample, ``[N]``, or a scalar; it is
                called ``steps`` times.
            x: images ``[N, 3, H, W]`` in [0, 1], float32 or float64, H and W multiples of 16.
            generator: source of the random start, on the device of ``x``; by default the global one of that device.

        Returns:
            A detached tensor with the shape, dtype, device and memory format of ``x``.

        Raises:
            ValueError: ``x`` has another shape; the objective returns another shape, or something that does not depend
                on its argument. On the CPU also: ``x`` leaves [0, 1], or ``x``, the objective or its gradient is not
                finite.
            TypeError: an argument of the wrong kind, such as half precision or uint8 images.
        """
        check_call(_OWNER, objective, x, generator, (0.0, 1.0))
        with torch.inference_mode(False):
            x = x.detach().clone()
            coefficients = jpeg_encode(x)

            def image(change: Tensor) -> Tensor:
                return jpeg_decode(coefficients + change / 2, size=(x.shape[2], x.shape[3])).clamp(0, 1)

            def gain(change: Tensor) -> Tensor:
                return value_of(_OWNER, objective, image(change), scalar=True)

            change = self._search()(gain, torch.zeros_like(coefficients), generator=generator)
            return x.copy_(image(change))

    def _search(self) -> PGDAttack | FrankWolfeAttack:
        """Return the attack that looks for the change of the coefficients, with zero for the image."""
        if self.norm == "l1":
            return FrankWolfeAttack(
                eps=self.eps,
                steps=self.steps,
                random_start=self.random_start,
                bounds=(-_REACH, _REACH),
                minimize=self.minimize,
            )
        return PGDAttack(
            eps=self.eps,
            # A ball of radius zero needs a step too, however long.
            step_size=self.step_size or self.eps / math.sqrt(max(self.steps, 1)) or 1.0,
            steps=self.steps,
            norm=self.norm,
            random_start=self.random_start,
            bounds=_UNBOUNDED if self.norm == "linf" else (-_REACH, _REACH),
            minimize=self.minimize,
        )
