"""Elastic attack, and the warping of images along a flow field."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from ..._checks import check_int, check_one_device, check_real, check_shape, check_tensor, complaint
from ..._types import Objective
from ...attacks.pgd import PGDAttack, check_call, explains_calls, value_of
from .frank_wolfe import check_settings, shared_settings, step_size

_OWNER = "ElasticAttack"


@explains_calls
@dataclass(frozen=True, kw_only=True)
class ElasticAttack:
    r"""Warp images along a smooth flow field so that an objective grows as much as possible.

    Every pixel is taken from a position at most ``eps`` pixels away in each direction,

    .. math:: x_{\mathrm{adv}} = \mathrm{warp}(x, G * f), \; \|f\|_\infty \le \mathrm{eps},

    with :math:`G` a Gaussian kernel. The search for :math:`f` is that of :class:`~advcontrast.PGDAttack` in the
    L-infinity norm, around zero; models, modes and random states are treated as there. With ``eps=0`` the result is
    ``x``. In the paper (see :func:`~advcontrast.evaluation.uar`) the outermost points of the grid lie 2 units apart:
    its ``eps`` is ours * H / (H - 1). Reference: Xiao et al., "Spatially Transformed Adversarial Examples", ICLR 2018.

    Args:
        eps: largest displacement in either direction, at least 0, in pixels.
        step_size: length of a step, positive, in pixels; None stands for eps / sqrt(steps), as in the paper.
        steps: number of steps, at least 0; each costs one forward and one backward pass.
        random_start: whether to start at a flow drawn uniformly from all allowed ones instead of at zero.
        kernel_size: side of the Gaussian kernel in pixels, odd; 5 for CIFAR and 25 for 224 pixels.
        kernel_std: its standard deviation in pixels, positive; 96/224 for CIFAR and 3 for 224 pixels.
        minimize: whether to shrink the objective instead, for example the loss of a target class.

    Raises:
        ValueError: a number is out of range, or an even ``kernel_size``.
        TypeError: an argument has the wrong type.

    Example:
        An image that brightens to the right is brightest when every pixel is taken from its right neighbour.

        >>> attack = ElasticAttack(eps=1.0, step_size=1.0, steps=1, random_start=False)
        >>> x = attack(lambda x: x[..., 1:-1].sum(), torch.linspace(0, 1, 5).expand(1, 1, 4, 5))
        >>> x[0, 0, 1, 1:-1].round(decimals=4).tolist()
        [0.5, 0.75, 1.0]
    """

    eps: float = 1.0
    step_size: float | None = None
    steps: int = 10
    random_start: bool = True
    kernel_size: int = 5
    kernel_std: float = 3 * 32 / 224
    minimize: bool = False

    def __post_init__(self) -> None:
        check_settings(_OWNER, self, remedy="It is a distance in pixels")
        check_int(_OWNER, "kernel_size", self.kernel_size, low=1, remedy="A kernel of side 1 smooths nothing")
        if self.kernel_size % 2 == 0:
            raise ValueError(complaint(_OWNER, "kernel_size to be odd", repr(self.kernel_size), "It needs a centre"))
        check_real(_OWNER, "kernel_std", self.kernel_std, low=0, above=True, remedy="Pass kernel_size=1 not to smooth")

    def __call__(self, objective: Objective, x: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """Return adversarial versions of the images ``x``.

        Arguments, result and errors are those of :class:`~advcontrast.PGDAttack`, without ``start``. Images are
        ``[N, C, H, W]`` in [0, 1], H and W larger than half the kernel.
        """
        check_call(_OWNER, objective, x, generator, (0.0, 1.0))
        edge = self.kernel_size // 2
        fits, shape = x.dim() == 4 and min(x.shape[2:]) > edge, f"[N, C, H, W] with H and W above {edge}"
        check_shape(_OWNER, "x", x, shape, fits, remedy="Pass a kernel that fits into the images")
        search = PGDAttack(step_size=step_size(self), bounds=(-math.inf, math.inf), **shared_settings(self))
        with torch.inference_mode(False):
            x = x.detach().clone().clamp(0, 1)

            def image(flow: Tensor) -> Tensor:
                return warp(x, smooth(flow, kernel_size=self.kernel_size, std=self.kernel_std))

            zero = x.new_zeros(len(x), 2, *x.shape[2:])
            flow = search(lambda flow: value_of(_OWNER, objective, image(flow), scalar=True), zero, generator=generator)
            return x.copy_(image(flow))


def warp(x: Tensor, flow: Tensor) -> Tensor:
    r"""Return images whose pixels are taken from the positions that a flow field points to.

    .. math:: x'_{i, j} = x\big(i + \mathrm{flow}_{1, i, j},\; j + \mathrm{flow}_{0, i, j}\big)

    interpolated linearly between the four nearest pixels; outside the image everything is zero. A flow of whole pixels
    copies pixels exactly. The gradient with respect to the flow is deterministic on every device.

    Args:
        x: images ``[N, C, H, W]``, float32 or float64.
        flow: displacements ``[N, 2, H, W]`` in pixels, to the right and downwards, of the same dtype.

    Raises:
        ValueError: shapes that do not fit, or devices that differ.
        TypeError: an argument has the wrong type.

    Example:
        A flow of half a pixel to the right takes means of neighbours; the last pixel has black next to it.

        >>> flow = torch.tensor([0.5, 0.0]).view(1, 2, 1, 1).expand(1, 2, 1, 4)
        >>> warp(torch.tensor([[[[0.0, 0.5, 1.0, 1.0]]]]), flow).tolist()
        [[[[0.25, 0.75, 1.0, 0.5]]]]
    """
    check_tensor("warp", "x", x, (torch.float32, torch.float64), remedy="Pass float images")
    check_tensor("warp", "flow", flow, (x.dtype,), remedy="Pass displacements in pixels, of the dtype of x")
    check_shape("warp", "x", x, "[N, C, H, W]", x.dim() == 4, remedy="Pass a batch of images")
    fits = flow.shape == (len(x), 2, *x.shape[2:])
    check_shape("warp", "flow", flow, f"[N, 2, H, W] for x {list(x.shape)}", fits, remedy="Pass two numbers per pixel")
    check_one_device("warp", x=x, flow=flow)
    height, width = x.shape[2:]
    whole = flow.detach().floor()
    column = torch.arange(width, device=x.device) + whole[:, :1]
    row = torch.arange(height, device=x.device)[:, None] + whole[:, 1:]
    right, down = (flow - whole).chunk(2, 1)
    above = torch.lerp(_pixels(x, row, column), _pixels(x, row, column + 1), right)
    below = torch.lerp(_pixels(x, row + 1, column), _pixels(x, row + 1, column + 1), right)
    return torch.lerp(above, below, down)


def smooth(flow: Tensor, *, kernel_size: int, std: float) -> Tensor:
    """Return a flow field ``[N, C, H, W]``, in its dtype, smoothed by a Gaussian kernel, reflected at its edges."""
    offsets = torch.arange(kernel_size, dtype=flow.dtype, device=flow.device) - kernel_size // 2
    kernel = torch.softmax(-(offsets**2) / (2 * std**2), 0)
    with torch.autocast(flow.device.type, enabled=False):
        return _smoothing(flow.shape[2], kernel) @ flow @ _smoothing(flow.shape[3], kernel).T


def _smoothing(length: int, kernel: Tensor) -> Tensor:
    """Return the matrix that smooths a signal: its columns are the smoothed unit vectors."""
    units = torch.eye(length, dtype=kernel.dtype, device=kernel.device)[:, None]
    edge = len(kernel) // 2
    return F.conv1d(F.pad(units, (edge, edge), mode="reflect"), kernel[None, None])[:, 0].T


def _pixels(x: Tensor, row: Tensor, column: Tensor) -> Tensor:
    """Return the pixels of ``x`` at whole positions ``[N, 1, H, W]``, zero outside the image."""
    height, width = x.shape[2:]
    inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
    # NaN must not become an index; it reaches the result through the interpolation.
    place = (row.nan_to_num().clamp(0, height - 1) * width + column.nan_to_num().clamp(0, width - 1)).long()
    return (x.flatten(2).gather(2, place.flatten(2).expand(-1, x.shape[1], -1)).view_as(x)).where(inside, 0)
