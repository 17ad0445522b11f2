"""SimCLR's recipe for CIFAR: crop and resize, flip, colour jitter, grayscale."""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from .._checks import check_int, check_real, check_type, complaint, readable, source_device
from .._random import on_host
from .._transfer import to_device
from ..functional import image

_OWNER = "SimCLRAugment"
_RATIO = (3 / 4, 4 / 3)
_ATTEMPTS = 10
_CONTRAST, _SATURATION, _HUE, _NEVER = 1, 2, 3, 4
_CACHE = 3 * 2**17  # values of a batch that fit into the cache of a processor: 128 images of CIFAR


class ViewParameters(NamedTuple):
    """Parameters of the views of a batch; every field has the length N.

    A crop begins at row ``top`` and column ``left``, has ``height`` rows and ``width`` columns, and is flipped
    horizontally if ``flip`` is set. If ``jitter`` is set, the four colour operations, brightness 0, contrast 1,
    saturation 2 and hue 3, are applied in the ``order`` ``[N, 4]``. The factors ``brightness``, ``contrast`` and
    ``saturation`` have no effect at 1, and ``hue``, the shift as a fraction of a full turn, none at 0. ``gray``
    converts to gray.
    """

    top: Tensor
    left: Tensor
    height: Tensor
    width: Tensor
    flip: Tensor
    jitter: Tensor
    order: Tensor
    brightness: Tensor
    contrast: Tensor
    saturation: Tensor
    hue: Tensor
    gray: Tensor


class SimCLRAugment:
    """Create one random view of every image of a batch by SimCLR's augmentation.

    In this order: a crop of area fraction U(1 - (1 - a) s, 1) and log-uniform aspect ratio in [3/4, 4/3], resized with
    antialiased bicubic interpolation; a horizontal flip with probability 0.5; with probability 0.8 s brightness,
    contrast and saturation factors from U(1 - 0.4 s, 1 + 0.4 s) and a hue shift from U(-0.1 s, 0.1 s) of a turn, in
    random order; gray with probability 0.2 s. With s = 1 and a = 0.1 this is the recipe of the ACL code for CIFAR-10;
    with s = 0 only the flip is left (of square images of this size). Parameters are drawn on the CPU, so that a seed
    gives the same views on every device; a generator of another device seeds them. Draw them once, :meth:`draw`, and
    apply them often, :meth:`apply`. References: Chen et al., ICML 2020, appendix B.9; for s, Luo et al., ICLR 2023.

    Args:
        size: side of the views in pixels, or (height, width).
        strength: the strength s, in [0, 1].
        min_area: the smallest area a, in (0, 1]: 0.1 in the code of ACL, 0.08 in SimCLR.

    Raises:
        ValueError: size < 1, or strength or min_area out of range.
        TypeError: an argument has the wrong type.

    Example:
        >>> augment, images = SimCLRAugment(32), torch.zeros(8, 3, 40, 40, dtype=torch.uint8)
        >>> augment.apply(images, augment.draw(8, 40, 40, generator=torch.Generator().manual_seed(0))).shape
        torch.Size([8, 3, 32, 32])
    """

    def __init__(self, size: int | tuple[int, int] = 32, *, strength: float = 1.0, min_area: float = 0.1) -> None:
        image.height_width(_OWNER, size)
        check_real(_OWNER, "strength", strength, low=0, high=1, remedy="1 is the full recipe")
        check_real(_OWNER, "min_area", min_area, low=0, high=1, above=True, remedy="0.1 is that of the ACL code")
        self.size, self.strength, self.min_area = size, strength, min_area

    def __repr__(self) -> str:
        return f"{_OWNER}({self.size}, strength={self.strength}, min_area={self.min_area})"

    def __call__(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Return a random view of every image.

        Args:
            x: images ``[N, C, H, W]`` with one or three channels: uint8, or float32 or float64 in [0, 1].
            generator: source of all randomness; by default the global one of the CPU.

        Returns:
            Images ``[N, C, *size]`` in [0, 1] on the device and in the memory format of ``x``; float32 for uint8.

        Raises:
            ValueError: ``x`` has another shape or, on the CPU, is outside [0, 1].
            TypeError: ``x`` or ``generator`` has the wrong type.
        """
        image.check_images(_OWNER, x)
        return self._apply(x, self.draw(len(x), x.shape[2], x.shape[3], generator=generator))

    def draw(self, n: int, height: int, width: int, generator: torch.Generator | None = None) -> ViewParameters:
        """Return random parameters for views of ``n`` >= 0 images of ``height`` x ``width`` pixels, on the CPU.

        A number out of range raises a ``ValueError``, an argument of the wrong type a ``TypeError``.
        """
        check_int(_OWNER, "n", n, low=0, remedy="Pass the length of the batch")
        check_int(_OWNER, "height", height, low=1, remedy="Pass the height of the images")
        check_int(_OWNER, "width", width, low=1, remedy="Pass the width of the images")
        source_device(_OWNER, generator)
        s = self.strength
        # One row of uniform numbers per image, so that its parameters do not depend on later images.
        uniform = torch.rand(n, 2 * _ATTEMPTS + 13, generator=on_host(generator), dtype=torch.float64)
        crop, place, chances, factors, order = torch.split(uniform, [2 * _ATTEMPTS, 2, 3, 4, 4], dim=1)
        rows, columns = _crop_sizes(crop, height, width, 1 - (1 - self.min_area) * s)
        inside = rows > 0  # otherwise the largest crop in the centre
        rows = torch.where(inside, rows, min(height, round(width / _RATIO[0])))
        columns = torch.where(inside, columns, min(width, round(height * _RATIO[1])))
        top = torch.where(inside, (place[:, 0] * (height - rows + 1)).long(), (height - rows) // 2)
        left = torch.where(inside, (place[:, 1] * (width - columns + 1)).long(), (width - columns) // 2)
        flip, jitter, gray = (chances[:, i] < chance for i, chance in enumerate((0.5, 0.8 * s, 0.2 * s)))
        brightness, contrast, saturation = (1 + 0.4 * s * (2 * factors[:, :3] - 1)).unbind(1)
        hue, order = 0.1 * s * (2 * factors[:, 3] - 1), order.argsort(1)
        return ViewParameters(
            top, left, rows, columns, flip, jitter, order, brightness, contrast, saturation, hue, gray
        )

    def apply(self, x: Tensor, parameters: ViewParameters) -> Tensor:
        """Return the views that ``parameters`` define, drawn by :meth:`draw` for N images of this height and width.

        Images and errors are those of a call; other parameters raise a ``ValueError``. The views are differentiable
        with respect to float images.
        """
        image.check_images(_OWNER, x)
        remedy = "Draw them with draw(n, height, width) for these images"
        check_type(_OWNER, "parameters", parameters, ViewParameters, remedy=remedy)
        if len(parameters.top) != len(x):
            raise ValueError(complaint(_OWNER, f"parameters for {len(x)} images", str(len(parameters.top)), remedy))
        outside = (parameters.top + parameters.height > x.shape[2]) | (parameters.left + parameters.width > x.shape[3])
        if readable(outside) and bool(outside.any()):
            expected = f"parameters for images of {x.shape[2]} x {x.shape[3]} pixels"
            raise ValueError(complaint(_OWNER, expected, "crops beyond them", remedy))
        return self._apply(x, parameters)

    def _apply(self, x: Tensor, p: ViewParameters) -> Tensor:
        """Return a view for each row of the parameters, which may be those of several views of the images in turn."""
        n, channels, height, width = x.shape
        size = image.height_width(_OWNER, self.size)
        dtype = x.dtype if x.is_floating_point() else torch.float32
        channels_last = x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
        layout = torch.channels_last if channels_last else torch.contiguous_format
        views = torch.empty((len(p.top), channels, *size), dtype=dtype, device=x.device, memory_format=layout)
        values = channels * max(height * width, math.prod(size))
        most = max(1, _CACHE // values if x.device.type == "cpu" else len(views))
        # Views are sorted on the host by the slot of the hue operation, so that each operation runs only on the views
        # that need it, in few launches and without reading from the device.
        turns, places = torch.where(p.jitter, (p.order == _HUE).int().argmax(1), _NEVER).sort(stable=True)
        factors = torch.stack([p.brightness, p.contrast, p.saturation, p.hue], 1).gather(1, p.order).to(views.dtype)
        of_mean, of_luma = ((1 - factors) * (p.order == operation) for operation in (_CONTRAST, _SATURATION))
        drawn = (p.top, p.left, p.height, p.width, p.flip, factors, of_mean, of_luma, p.hue.to(views.dtype))
        fields = (to_device(field, x.device) for field in (places, *(field[places] for field in drawn)))
        batches = zip(*(torch.split(field, most) for field in (turns, p.gray[places], *fields)), strict=True)
        with torch.autocast(x.device.type, enabled=False):
            for turn, gray, place, top, left, rows, columns, flip, own, mean, luma, hue in batches:
                images = image.as_floats(x.index_select(0, place % n))
                view = image.crop_and_resize(images, top, left, rows, columns, size, flip).clamp_(0, 1)
                view = _recoloured(view, turn, (own, mean, luma), hue)
                views.index_copy_(0, place, view)
                chosen = to_device(gray.nonzero()[:, 0], x.device)
                views.index_copy_(0, place[chosen], image.luma(view[chosen]).expand(-1, channels, -1, -1))
        return views


def _recoloured(x: Tensor, turn: Tensor, weights: tuple[Tensor, ...], hue: Tensor) -> Tensor:
    """Apply the operations of each image in its order; the images are sorted by ``turn``, the slot of the hue."""
    *ends, last = turn.bincount(minlength=5)[:_NEVER].cumsum(0).tolist()
    slots = [tuple(weight[:, slot] for weight in weights) for slot in range(4)]
    for slot, end in enumerate(ends):
        x = _changed(x, end, last, image.adjust, *slots[slot])
    if x.shape[1] == 3:
        x = _changed(x, 0, last, image.rotate_hue, hue)
    for slot, end in enumerate(ends, 1):
        x = _changed(x, 0, end, image.adjust, *slots[slot])
    return x


def _changed(x: Tensor, start: int, stop: int, operation: Callable[..., Tensor], *amounts: Tensor) -> Tensor:
    """Apply an operation to the images from ``start`` to ``stop``."""
    if start == stop:
        return x
    changed = operation(*(field[start:stop] for field in (x, *amounts)))
    return torch.cat([x[:start], changed, x[stop:]])


def _crop_sizes(uniform: Tensor, height: int, width: int, smallest: float) -> tuple[Tensor, Tensor]:
    """Return rows and columns ``[N]`` of the first of ten random crops that fits each image, or zeros."""
    area = height * width * (smallest + (1 - smallest) * uniform[:, :_ATTEMPTS])
    low, high = map(math.log, _RATIO)
    aspect = (low + (high - low) * uniform[:, _ATTEMPTS:]).exp()
    rows, columns = (area / aspect).sqrt().round().long(), (area * aspect).sqrt().round().long()
    fits = (rows > 0) & (rows <= height) & (columns > 0) & (columns <= width)
    first = fits.int().argmax(1, keepdim=True)
    return (rows * fits).gather(1, first)[:, 0], (columns * fits).gather(1, first)[:, 0]
