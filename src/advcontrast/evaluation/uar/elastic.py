"""The attack that bends images."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..._checks import check_bool, check_int, check_real, complaint
from ..._types import Objective
from ...attacks.pgd import PGDAttack, check_call, explains_calls, value_of
from .flow import smooth, warp

_OWNER = "ElasticAttack"


@explains_calls
@dataclass(frozen=True, kw_only=True)
class ElasticAttack:
    r"""Bend images along a smooth flow field, so that an objective grows as much as possible.

    Every pixel is taken from a place at most ``eps`` pixels to either side and up or down,

    .. math:: x_{\mathrm{adv}} = \mathrm{warp}(x, G * f), \; \|f\|_\infty \le \mathrm{eps},

    with :math:`G` a Gaussian kernel, interpolation between the pixels, and black outside the image. The search for
    :math:`f` is that of :class:`~advcontrast.PGDAttack` in the L-infinity norm, around zero. With ``eps=0`` the result
    is ``x``.

    Kang et al. give ``eps`` on a grid whose outermost points lie 2 units apart: theirs is ours times H / (H - 1).
    What ``PGDAttack`` says of models, modes, gradients and the global random state holds here too.

    Args:
        eps: largest displacement in either direction, at least 0, in pixels.
        step_size: length of a step, positive, in pixels; None stands for eps / sqrt(steps), as in the paper.
        steps: number of steps, at least 0; each costs one forward and one backward pass.
        random_start: whether to start at a flow drawn uniformly from all allowed ones instead of at none.
        kernel_size: side of the Gaussian kernel in pixels, odd; 5 for CIFAR and 25 for 224 pixels.
        kernel_std: its standard deviation in pixels, positive; 96/224 for CIFAR and 3 for 224 pixels.
        minimize: whether to shrink the objective instead, for example the loss of a target class.

    Raises:
        ValueError: a number out of its range, or an even ``kernel_size``.
        TypeError: an argument of the wrong kind.

    Example:
        An image that brightens to the right is brightest when every pixel is taken from its right neighbour; the last
        column then comes from outside.

        >>> attack = ElasticAttack(eps=1.0, step_size=1.0, steps=1, random_start=False)
        >>> x = attack(lambda x: x[..., 1:-1].sum(), torch.linspace(0, 1, 5).expand(1, 1, 4, 5))
        >>> x[0, 0, 1, 1:-1].round(decimals=4).tolist()
        [0.5, 0.75, 1.0]

    References:
        Kang et al., "Testing Robustness Against Unforeseen Adversaries", 2019.

        Xiao et al., "Spatially Transformed Adversarial Examples", ICLR 2018.
    """

    eps: float = 1.0
    step_size: float | None = None
    steps: int = 10
    random_start: bool = True
    kernel_size: int = 5
    kernel_std: float = 3 * 32 / 224
    minimize: bool = False

    def __post_init__(self) -> None:
        check_real(_OWNER, "eps", self.eps, low=0, remedy="It is a distance in pixels")
        if self.step_size is not None:
            remedy = "None stands for eps / sqrt(steps)"
            check_real(_OWNER, "step_size", self.step_size, low=0, above=True, remedy=remedy)
        check_int(_OWNER, "steps", self.steps, low=0, remedy="Pass the number of gradient steps")
        check_bool(_OWNER, "random_start", self.random_start, remedy="False starts at the image itself")
        check_int(_OWNER, "kernel_size", self.kernel_size, low=1, remedy="A kernel of side 1 smooths nothing")
        if self.kernel_size % 2 == 0:
            remedy = "An even kernel has no centre"
            raise ValueError(complaint(_OWNER, "kernel_size to be odd", repr(self.kernel_size), remedy))
        remedy = "A kernel_size of 1 smooths nothing"
        check_real(_OWNER, "kernel_std", self.kernel_std, low=0, above=True, remedy=remedy)
        check_bool(_OWNER, "minimize", self.minimize, remedy="True makes the attack targeted")

    def __call__(self, objective: Objective, x: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """Return adversarial versions of the images ``x``.

        Args:
            objective: a function of images like ``x`` that returns a value for each sample, ``[N]``, or a scalar; it is
                called ``steps`` times.
            x: images ``[N, C, H, W]`` in [0, 1], float32 or float64, H and W larger than half the kernel.
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
        edge = self.kernel_size // 2
        if x.dim() != 4 or min(x.shape[2:]) <= edge:
            expected = f"x of shape [N, C, H, W] with H and W above {edge}"
            remedy = "Pass images, and a kernel that fits into them"
            raise ValueError(complaint(_OWNER, expected, f"{list(x.shape)}", remedy))
        search = PGDAttack(
            eps=self.eps,
            # A ball of radius zero needs a step too, however long.
            step_size=self.step_size or self.eps / math.sqrt(max(self.steps, 1)) or 1.0,
            steps=self.steps,
            random_start=self.random_start,
            bounds=(-math.inf, math.inf),
            minimize=self.minimize,
        )
        with torch.inference_mode(False):
            x = x.detach().clone().clamp(0, 1)

            def image(flow: Tensor) -> Tensor:
                return warp(x, smooth(flow, kernel_size=self.kernel_size, std=self.kernel_std))

            def gain(flow: Tensor) -> Tensor:
                return value_of(_OWNER, objective, image(flow), scalar=True)

            flow = search(gain, x.new_zeros(len(x), 2, *x.shape[2:]), generator=generator)
            return x.copy_(image(flow))
