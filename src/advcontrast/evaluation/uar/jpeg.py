"""Attack on the coefficients of a JPEG file, and JPEG coding and decoding without the rounding."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from ..._checks import check_choice, check_int, check_shape, check_tensor, complaint
from ..._types import Objective
from ...attacks.pgd import PGDAttack, check_call, explains_calls, value_of
from .frank_wolfe import FrankWolfeAttack, check_settings, shared_settings, step_size

JPEGNorm: TypeAlias = Literal["linf", "l2", "l1"]

_OWNER = "JPEGAttack"
_REACH = 2.0  # the most that the sparse attacks move one coefficient, in half quantisation steps
_DTYPES = (torch.float32, torch.float64)
_LUMA = (0.299, 0.587, 0.114)
_BLUE = 2 * (1 - _LUMA[2])  # the range of B - Y, to which Cb is scaled
_RED = 2 * (1 - _LUMA[0])
# The orthonormal cosine transform of 8 values: rows are frequencies, columns positions.
_DCT = [[math.cos((2 * place + 1) * frequency * math.pi / 16) / 2 for place in range(8)] for frequency in range(8)]
_DCT[0] = [math.sqrt(1 / 8)] * 8
# The example tables of the standard, annex K, which encoders use at quality 50: rows are vertical frequencies.
_LUMA_TABLE = (
    (16, 11, 10, 16, 24, 40, 51, 61),
    (12, 12, 14, 19, 26, 58, 60, 55),
    (14, 13, 16, 24, 40, 57, 69, 56),
    (14, 17, 22, 29, 51, 87, 80, 62),
    (18, 22, 37, 56, 68, 109, 103, 77),
    (24, 35, 55, 64, 81, 104, 113, 92),
    (49, 64, 78, 87, 103, 121, 120, 101),
    (72, 92, 95, 98, 112, 100, 103, 99),
)
_CHROMA_TABLE = (
    (17, 18, 24, 47, 99, 99, 99, 99),
    (18, 21, 26, 66, 99, 99, 99, 99),
    (24, 26, 56, 99, 99, 99, 99, 99),
    (47, 66, 99, 99, 99, 99, 99, 99),
    *((99,) * 8,) * 4,
)


@explains_calls
@dataclass(frozen=True, kw_only=True)
class JPEGAttack:
    r"""Perturb the JPEG coefficients of each image so that an objective grows as much as possible.

    With :math:`E` and :math:`D` the coding and decoding of 4:2:0 JPEG at quality 50, without the rounding
    (:func:`~advcontrast.evaluation.uar.jpeg_encode`), the adversarial image is

    .. math:: x_{\mathrm{adv}} = D(E(x) + v / 2), \quad \|v\| \le \mathrm{eps},

    clamped to [0, 1]. So ``eps=1`` in the L-infinity norm is the largest rounding error. The search for :math:`v` is
    that of :class:`~advcontrast.PGDAttack` for ``"linf"`` and ``"l2"`` and that of :class:`FrankWolfeAttack` for
    ``"l1"``, around zero; models, modes and random states are treated as there. In L2 and L1 no coefficient changes by
    more than 2. Coding averages the colours of 2 x 2 pixels: with ``eps=0`` the result is :math:`D(E(x))`, not ``x``.

    Args:
        eps: radius, at least 0, in half quantisation steps as in the paper, see :func:`~advcontrast.evaluation.uar`.
        step_size: length of a step, positive, in the same unit, not for ``"l1"``; None stands for eps / sqrt(steps).
        steps: number of steps, at least 0; each costs one forward and one backward pass.
        norm: ``"linf"``, ``"l2"`` or ``"l1"``, of all coefficients of an image together.
        random_start: whether to start at coefficients drawn from the ball instead of at those of the image.
        minimize: whether to shrink the objective instead, for example the loss of a target class.

    Raises:
        ValueError: a number is out of range, an unknown norm, or a step size for ``"l1"``.
        TypeError: an argument has the wrong type.

    Example:
        Half a quantisation step, 8, changes the mean luma of a block by 1/255. A radius of 2 in L2 moves four blocks.

        >>> attack = JPEGAttack(eps=2.0, steps=4, norm="l2", random_start=False)
        >>> luma = torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)
        >>> x = attack(lambda x: (luma * x).sum(1).mean(), torch.full((1, 3, 16, 16), 0.5))
        >>> round(((luma * x).sum(1).mean().item() - 0.5) * 255, 3)
        1.0
    """

    eps: float = 0.5
    step_size: float | None = None
    steps: int = 10
    norm: JPEGNorm = "linf"
    random_start: bool = True
    minimize: bool = False

    def __post_init__(self) -> None:
        check_settings(_OWNER, self, remedy="It counts half quantisation steps; 0.5 is usual for linf")
        check_choice(_OWNER, "norm", self.norm, get_args(JPEGNorm))
        if self.step_size is not None and self.norm == "l1":
            raise ValueError(complaint(_OWNER, "no step_size for norm 'l1'", repr(self.step_size), "Leave it None"))

    def __call__(self, objective: Objective, x: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """Return adversarial versions of the images ``x``, ``[N, 3, H, W]`` in [0, 1], H and W multiples of 16.

        Arguments, result and errors are those of :class:`~advcontrast.PGDAttack`, without ``start``.
        """
        check_call(_OWNER, objective, x, generator, (0.0, 1.0))
        with torch.inference_mode(False):
            x = x.detach().clone()
            coefficients = jpeg_encode(x)

            def image(v: Tensor) -> Tensor:
                return jpeg_decode(coefficients + v / 2, size=(x.shape[2], x.shape[3])).clamp(0, 1)

            search, zero = self._search(), torch.zeros_like(coefficients)
            v = search(lambda v: value_of(_OWNER, objective, image(v), scalar=True), zero, generator=generator)
            return x.copy_(image(v))

    def _search(self) -> PGDAttack | FrankWolfeAttack:
        bounds = (-math.inf, math.inf) if self.norm == "linf" else (-_REACH, _REACH)
        if self.norm == "l1":
            return FrankWolfeAttack(bounds=bounds, **shared_settings(self))
        return PGDAttack(norm=self.norm, step_size=step_size(self), bounds=bounds, **shared_settings(self))


def jpeg_encode(x: Tensor) -> Tensor:
    r"""Return the coefficients that JPEG would round to integers.

    As in a file of quality 50 with 4:2:0 subsampling, RGB becomes the luma and the two chroma channels of JFIF on the
    scale 0 to 255; the chroma is averaged over squares of 2 x 2 pixels; and each block of 8 x 8 values goes through the
    orthonormal cosine transform and is divided by the quantisation table,

    .. math::

        c_{uv} &= \frac{a_u a_v}{4 q_{uv}} \sum_{i,j} p_{ij} C_{iu} C_{jv} \\
        C_{iu} &= \cos\frac{(2i + 1) u \pi}{16} \\
        a_0 &= 1/\sqrt 2, \; a_{k > 0} = 1,

    with 128 subtracted from the luma, to centre every channel at zero. Computed in the dtype of ``x``, also under
    autocast. Reference: ITU-T Recommendation T.81 (the JPEG standard), 1992, annexes A and K.

    Args:
        x: images ``[N, 3, H, W]`` in [0, 1], float32 or float64, H and W multiples of 16.

    Returns:
        Blocks ``[N, B, 8, 8]`` with ``B = 3 H W / 128``, in quantisation steps: first those of the luma, row by row,
        then those of the blue and of the red difference. Rows within a block are vertical frequencies.

    Raises:
        ValueError: ``x`` has another shape.
        TypeError: ``x`` is not a tensor, or of another dtype.

    Example:
        White is 127 above the middle. The transform multiplies 8 x 8 equal values by 8, the table divides them by 16.

        >>> coefficients = jpeg_encode(torch.ones(1, 3, 16, 16))
        >>> coefficients.shape, round(coefficients[0, 0, 0, 0].item(), 3)
        (torch.Size([1, 6, 8, 8]), 63.5)
    """
    check_tensor("jpeg_encode", "x", x, _DTYPES, remedy="Pass float images in [0, 1]")
    fits = x.dim() == 4 and x.shape[1] == 3 and all(side and side % 16 == 0 for side in x.shape[2:])
    check_shape("jpeg_encode", "x", x, "[N, 3, H, W], H and W multiples of 16", fits, remedy="Pad or resize the images")
    red, green, blue = (255 * x).unbind(1)
    luma = _LUMA[0] * red + _LUMA[1] * green + _LUMA[2] * blue
    chroma = torch.stack([(blue - luma) / _BLUE, (red - luma) / _RED], 1)
    parts = (_blocks(luma[:, None] - 128), _LUMA_TABLE), (_blocks(F.avg_pool2d(chroma, 2)), _CHROMA_TABLE)
    dct = _constant(_DCT, x)
    with torch.autocast(x.device.type, enabled=False):
        return torch.cat([dct @ blocks @ dct.T / _constant(table, x) for blocks, table in parts], 1)


def jpeg_decode(coefficients: Tensor, *, size: tuple[int, int]) -> Tensor:
    """Return the images ``[N, 3, H, W]`` of coefficients: the inverse of :func:`jpeg_encode` up to its subsampling.

    Chroma is repeated for its 2 x 2 pixels, and nothing is clamped to [0, 1]. Dtypes are kept, also under autocast.

    Args:
        coefficients: blocks ``[N, B, 8, 8]`` as :func:`jpeg_encode` returns them, float32 or float64.
        size: height and width of the images, multiples of 16.

    Raises:
        ValueError: the number of blocks is not that of images of this size.
        TypeError: ``coefficients`` is not a tensor, or of another dtype.

    Example:
        Without coefficients every pixel is in the middle of 0 to 255.

        >>> image = jpeg_decode(torch.zeros(1, 6, 8, 8), size=(16, 16))
        >>> image.shape, round(image[0, 0, 0, 0].item() * 255, 3)
        (torch.Size([1, 3, 16, 16]), 128.0)
    """
    remedy = "Pass what jpeg_encode returns, and the size of its images"
    check_tensor("jpeg_decode", "coefficients", coefficients, _DTYPES, remedy=remedy)
    if not isinstance(size, (tuple, list)) or len(size) != 2:
        raise TypeError(complaint("jpeg_decode", "size to be a tuple (height, width)", repr(size), remedy))
    for side in size:
        check_int("jpeg_decode", "each of size", side, low=1, remedy="Pass height and width of the images")
    height, width = size
    fits = height % 16 == width % 16 == 0 and coefficients.shape[1:] == (3 * height * width // 128, 8, 8)
    shape = f"[N, 3 H W / 128, 8, 8] for size {tuple(size)}"
    check_shape("jpeg_decode", "coefficients", coefficients, shape, fits, remedy=remedy)
    split = height * width // 64
    parts = (coefficients[:, :split], _LUMA_TABLE), (coefficients[:, split:], _CHROMA_TABLE)
    dct = _constant(_DCT, coefficients)
    with torch.autocast(coefficients.device.type, enabled=False):
        fine, coarse = [dct.T @ (part * _constant(table, part)) @ dct for part, table in parts]
    luma = _image(fine, height, width)[:, 0] + 128
    chroma = _image(coarse, height // 2, width // 2).repeat_interleave(2, 2).repeat_interleave(2, 3)
    blue, red = luma + _BLUE * chroma[:, 0], luma + _RED * chroma[:, 1]
    green = (luma - _LUMA[0] * red - _LUMA[2] * blue) / _LUMA[1]
    return torch.stack([red, green, blue], 1) / 255


def _blocks(channels: Tensor) -> Tensor:
    """Cut channels ``[N, C, H, W]`` into blocks ``[N, C H W / 64, 8, 8]``, row by row."""
    n, channel, height, width = channels.shape
    return channels.reshape(n, channel, height // 8, 8, width // 8, 8).transpose(3, 4).flatten(1, 3)


def _image(blocks: Tensor, height: int, width: int) -> Tensor:
    """Return the channels of blocks; the inverse of :func:`_blocks`."""
    n, channel = len(blocks), blocks.shape[1] * 64 // (height * width)
    return blocks.reshape(n, channel, height // 8, width // 8, 8, 8).transpose(3, 4).reshape(n, channel, height, width)


def _constant(rows: Sequence[Sequence[float]], like: Tensor) -> Tensor:
    return torch.tensor(rows, dtype=like.dtype).to(like.device, non_blocking=True)
