"""Projected gradient descent on any objective."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from .._checks import check_bool, check_finite, check_int, check_real, check_tensor, complaint
from .._types import Norm, Objective
from .ascent import ascent, check_call, check_search, explains_calls, value_of
from .balls import BALLS

_OWNER = "PGDAttack"


@explains_calls
@dataclass(frozen=True, kw_only=True)
class PGDAttack:
    r"""Perturb images within a small ball so that an objective grows as much as possible.

    From a start :math:`x_0` in the ball, ``steps`` times

    .. math:: x_{k+1} = \Pi\big(x_k + \mathrm{step\_size} \cdot d_k\big)

    with :math:`d_k` the sign of the gradient (``"linf"``) or the gradient scaled to length one for each sample
    (``"l2"``), and :math:`\Pi` the projection onto the ball and the bounds. The defaults are those of the contrastive
    attack of ACL on CIFAR-10.

    The attack knows nothing of models. The mode, the batch-norm branch and autocast are whatever surrounds the call; it
    leaves flags, buffers, ``.grad`` and, given a generator, the global random state alone, and works under ``no_grad``
    and ``inference_mode``. Objectives may couple the samples of a batch, as a contrastive loss of both views does.

    The ball is kept in exact arithmetic, not up to rounding: no coordinate (``"linf"``), and no sample's Euclidean norm
    (``"l2"``), exceeds ``eps`` by any amount. In half precision that is not possible (a step of bfloat16 near 1 is
    1/256), so images are float32 or float64; put autocast around the model instead. The loss is scaled inside, so that
    small gradients survive half precision.

    Args:
        eps: radius of the ball, at least 0, in the units of the images: 8/255 for images in [0, 1].
        step_size: length of a step, positive, in the same units.
        steps: number of steps, at least 0; each costs one forward and one backward pass.
        norm: ``"linf"`` or ``"l2"``.
        random_start: whether to start at a point drawn from the ball instead of at the image. An objective that
            compares the perturbed image with the image itself has no gradient at the image, and needs the random start.
        bounds: smallest and largest pixel value. Infinite bounds serve inputs without limits, such as text embeddings.
        restarts: ``None`` makes one run and returns its last iterate, as ACL does. A number makes as many runs and
            returns the strongest of all iterates, for one more forward pass a run: for each sample its own where the
            objective is per sample, the whole batch of the largest value where it is a scalar.
        minimize: whether to shrink the objective instead, for example the loss of a target class.

    Raises:
        ValueError: a number out of its range, an unknown norm, bounds that are not in order, or an ``eps`` that exceeds
            the range of the bounds, as 8 instead of 8/255 does.
        TypeError: an argument of the wrong kind.

    Example:
        A linear objective is maximal at the corner of the cube that its weights point to.

        >>> attack = PGDAttack(eps=0.25, step_size=0.125, steps=4)
        >>> attack(lambda x: (x * torch.tensor([1.0, -1.0])).sum(1), torch.tensor([[0.5, 0.5]])).tolist()
        [[0.75, 0.25]]

    References:
        Madry et al., "Towards Deep Learning Models Resistant to Adversarial Attacks", ICLR 2018.

        Jiang et al., "Robust Pre-Training by Adversarial Contrastive Learning", NeurIPS 2020.
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
            check_int(_OWNER, "restarts", self.restarts, low=1, remedy="None makes one run and keeps its end")

    def __call__(
        self,
        objective: Objective,
        x: Tensor,
        *,
        generator: torch.Generator | None = None,
        start: Tensor | None = None,
    ) -> Tensor:
        """Return adversarial versions of the images ``x``.

        Args:
            objective: a function of images like ``x`` that returns a value for each sample, ``[N]``, or a scalar, which
                is best a mean over the batch. It is called ``steps`` times, and ``restarts * (steps + 1)`` times with
                restarts.
            x: images ``[N, ...]``, float32 or float64, inside the bounds (a millionth beyond is let pass, and clamped).
            generator: source of the random start, on the device of ``x``; by default the global one of that device.
            start: where to start instead, moved into the ball: images like ``x``, for example of an earlier attack.

        Returns:
            A detached tensor with the shape, dtype, device and memory format of ``x``.

        Raises:
            ValueError: ``x`` has no sample dimension, or ``start`` has another shape; the objective returns another
                shape, or something that does not depend on its argument. On the CPU also: ``x`` leaves the bounds, or
                ``x``, ``start``, the objective or its gradient is not finite (reading values on an accelerator would
                stall it; there they go unseen).
            TypeError: an argument of the wrong kind, such as half precision or uint8 images.
        """
        check_call(_OWNER, objective, x, generator, self.bounds)
        if start is not None:
            _check_start(start, x)
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
                    point = ball.project(ball.centre if start is None else start.detach())
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


def _check_start(start: Tensor, x: Tensor) -> None:
    """Require images that could stand in the place of ``x``."""
    remedy = "Pass images like x, or None"
    check_tensor(_OWNER, "start", start, (x.dtype,), remedy=remedy)
    if start.shape != x.shape or start.device != x.device:
        expected, got = (f"{list(images.shape)} on {images.device}" for images in (x, start))
        raise ValueError(complaint(_OWNER, f"start of shape {expected}", got, remedy))
    check_finite(_OWNER, "start", start, remedy=remedy)


def _stronger(best: tuple[Tensor, Tensor] | None, gain: Tensor, image: Tensor) -> tuple[Tensor, Tensor]:
    """Keep, sample by sample or for the whole batch, the image with the larger gain."""
    if best is None:
        return gain, image
    wins = gain > best[0]
    return torch.where(wins, gain, best[0]), torch.where(wins.view(-1, *[1] * (image.dim() - 1)), image, best[1])
