"""Common corruptions that can be computed from published constants."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from io import BytesIO
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .._checks import check_choice, check_int, complaint, source_device
from .._transfer import to_device
from ..functional.image import unit_range

_OWNER = "Corruption"


def gaussian_noise(x: Tensor, deviation: float, generator: torch.Generator | None) -> Tensor:
    """Add normal noise of the same deviation everywhere."""
    return (x + deviation * _drawn(torch.randn, x, generator)).clamp(0, 1)


def shot_noise(x: Tensor, photons: float, generator: torch.Generator | None) -> Tensor:
    """Replace every value by a Poisson variable, scaled to the same mean; white corresponds to ``photons``."""
    rates = (photons * x).to("cpu" if generator is None else generator.device)
    return (to_device(torch.poisson(rates, generator), x.device) / photons).clamp(0, 1)


def impulse_noise(x: Tensor, fraction: float, generator: torch.Generator | None) -> Tensor:
    """Replace a fraction of the values, in each channel separately, by 0 or 1."""
    uniform = _drawn(torch.rand, x, generator)
    return x.masked_fill(uniform < fraction, 0).masked_fill(uniform < fraction / 2, 1)


def speckle_noise(x: Tensor, deviation: float, generator: torch.Generator | None) -> Tensor:
    """Multiply every value by a normal variable of mean 1."""
    return (x + deviation * x * _drawn(torch.randn, x, generator)).clamp(0, 1)


def fog(x: Tensor, strength: tuple[float, float], generator: torch.Generator | None) -> Tensor:
    """Add a fractal cloud, whose roughness is divided by a factor per halving of the distance; keep the maximum."""
    thickness, decay = strength
    # The diamond-square algorithm on a torus.
    land, roughness = x.new_zeros(len(x), 1, 1), 100.0
    while land.shape[1] < max(x.shape[2:]):
        land = _refined(land, roughness**2, generator)
        roughness /= decay
    land = land - land.amin((1, 2), keepdim=True)
    land = land / land.amax((1, 2), keepdim=True).clamp_min(torch.finfo(x.dtype).tiny)
    cloud = land[:, None, : x.shape[2], : x.shape[3]]
    brightest = x.amax((1, 2, 3), keepdim=True)
    return ((x + thickness * cloud) * brightest / (brightest + thickness)).clamp(0, 1)


def gaussian_blur(x: Tensor, deviation: float) -> Tensor:
    """Convolve with a Gaussian, truncated at four deviations, with replicate padding."""
    radius = int(4 * deviation + 0.5)
    bell = _bell(deviation, radius)
    padded = F.pad(x, [radius] * 4, mode="replicate")
    return _filtered(_filtered(padded, bell[None]), bell[:, None])


def defocus_blur(x: Tensor, strength: tuple[float, float]) -> Tensor:
    """Convolve with a disk of a radius, smoothed by a Gaussian of 3 x 3, with reflect padding."""
    radius, deviation = strength
    reach = int(radius) + 1
    squares = torch.arange(-reach, reach + 1) ** 2
    disk = (squares[:, None] + squares <= radius**2).double()
    bell = _bell(deviation, 1)
    kernel = F.conv2d(disk[None, None] / disk.sum(), (bell[:, None] * bell)[None, None], padding=1)[0, 0]
    rows, columns = (to_device(_mirrored(size, reach), x.device) for size in x.shape[2:])
    return _filtered(x[:, :, rows[:, None], columns], kernel)


def zoom_blur(x: Tensor, zooms: int) -> Tensor:
    """Average the image itself and ``zooms`` views of it, enlarged by 0%, 1%, 2%, ... about the centre."""
    total = x
    for step in range(zooms):
        factor = 1 + step * (1.01 - 1)  # as published: the last bit decides how 26 pixels times 1.25 are rounded
        sides = [math.ceil(side / factor) for side in x.shape[2:]]
        grown = [round(side * factor) for side in sides]
        enlarged = F.interpolate(_centre(x, *sides), grown, mode="bilinear", align_corners=True)
        total = total + _centre(enlarged, *x.shape[2:])
    return (total / (zooms + 1)).clamp(0, 1)


def contrast(x: Tensor, factor: float) -> Tensor:
    """Scale the deviation of every channel from its mean over the image."""
    mean = x.mean((2, 3), keepdim=True)
    return (mean + factor * (x - mean)).clamp(0, 1)


def brightness(x: Tensor, shift: float) -> Tensor:
    """Add to the value of the HSV model and keep hue and saturation; black becomes gray."""
    value = x.amax(1, keepdim=True)
    return (value + shift).clamp(max=1) * torch.where(value > 0, x / value, 1)


def saturate(x: Tensor, strength: tuple[float, float]) -> Tensor:
    """Scale and shift the saturation of the HSV model and keep hue and value; gray pixels have the hue of red."""
    scale, shift = strength
    value = x.amax(1, keepdim=True)
    chroma = value - x.amin(1, keepdim=True)
    saturation = torch.where(value > 0, chroma / value, 0)
    red = torch.arange(3, dtype=x.dtype, device=x.device).clamp(max=1).view(3, 1, 1)
    missing = torch.where(chroma > 0, (value - x) / chroma, red)  # 0 in the largest channel, 1 in the smallest
    return value * (1 - (scale * saturation + shift).clamp(0, 1) * missing)


def pixelate(x: Tensor, fraction: float) -> Tensor:
    """Downsample by the mean of the pixels whose centres a new pixel covers, and upsample by nearest neighbour."""
    for axis in (2, 3):
        size = x.shape[axis]
        small = max(1, int(size * fraction))
        resample = _boxes(size, small) @ _boxes(small, size)
        x = torch.movedim(torch.movedim(x, axis, -1) @ to_device(resample.to(x.dtype), x.device), -1, axis)
    return x.clamp(0, 1)


def jpeg_compression(x: Tensor, quality: int) -> Tensor:
    """Round to 8 bits, encode as JPEG and decode."""
    from PIL import Image

    def compressed(pixels: Tensor) -> Tensor:
        file = BytesIO()
        Image.fromarray(pixels.numpy()).save(file, "JPEG", quality=quality)
        return torch.frombuffer(bytearray(Image.open(file).tobytes()), dtype=torch.uint8).view(pixels.shape)

    # Gray images have no channel dimension in Pillow.
    images = (255 * x).round().to("cpu", torch.uint8).permute(0, 2, 3, 1).squeeze(3)
    decoded = torch.stack([compressed(pixels) for pixels in images])
    return to_device(decoded.view(len(x), *x.shape[2:], -1).permute(0, 3, 1, 2), x.device).to(x.dtype) / 255


# Formula and strengths from severity 1 to 5, as published with CIFAR-10-C, by name.
_RANDOM: dict[str, tuple[Callable[..., Tensor], tuple[Any, ...]]] = {
    "gaussian_noise": (gaussian_noise, (0.04, 0.06, 0.08, 0.09, 0.10)),
    "shot_noise": (shot_noise, (500, 250, 100, 75, 50)),
    "impulse_noise": (impulse_noise, (0.01, 0.02, 0.03, 0.05, 0.07)),
    "speckle_noise": (speckle_noise, (0.06, 0.1, 0.12, 0.16, 0.2)),
    "fog": (fog, ((0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75))),
}
_FIXED: dict[str, tuple[Callable[..., Tensor], tuple[Any, ...]]] = {
    "gaussian_blur": (gaussian_blur, (0.4, 0.6, 0.7, 0.8, 1.0)),
    "defocus_blur": (defocus_blur, ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1))),
    # Published as ranges from 1 to 1.06, 1.11, 1.16, 1.21, 1.26 by 0.01; rounding gave the first two one zoom more.
    "zoom_blur": (zoom_blur, (7, 12, 16, 21, 26)),
    "contrast": (contrast, (0.75, 0.5, 0.4, 0.3, 0.15)),
    "brightness": (brightness, (0.05, 0.1, 0.15, 0.2, 0.3)),
    "saturate": (saturate, ((0.3, 0.0), (0.1, 0.0), (1.5, 0.0), (2.0, 0.1), (2.5, 0.2))),
    "pixelate": (pixelate, (0.95, 0.9, 0.85, 0.75, 0.65)),
    "jpeg_compression": (jpeg_compression, (80, 65, 58, 50, 40)),
}

#: Names of the corruptions that can be computed, those that draw random numbers first.
CORRUPTIONS: tuple[str, ...] = (*_RANDOM, *_FIXED)


@dataclass(frozen=True)
class Corruption:
    r"""Apply a common corruption, such as noise, blur, fog or compression, to images.

    The formulas for images x in [0, 1], and the strengths of the five severities, are those published with CIFAR-10-C,
    with standard normal noise n and results clamped to [0, 1]:

    - ``"gaussian_noise"``: :math:`x + \sigma n`, :math:`\sigma` .04, .06, .08, .09, .10
    - ``"shot_noise"``: :math:`\mathrm{Poisson}(k x) / k`, k 500, 250, 100, 75, 50
    - ``"impulse_noise"``: a share q of the values becomes 0 or 1, q .01, .02, .03, .05, .07
    - ``"speckle_noise"``: :math:`x + \sigma x n`, :math:`\sigma` .06, .1, .12, .16, .2
    - ``"fog"``: :math:`(x + k c)\, m / (m + k)` with a fractal cloud c in [0, 1] and the brightest value m of the
      image, k .2, .5, .75, 1, 1.5
    - ``"gaussian_blur"``: a Gaussian of deviation .4, .6, .7, .8, 1 pixels
    - ``"defocus_blur"``: a smoothed disk of radius .3, .4, .5, 1, 1.5 pixels
    - ``"zoom_blur"``: the mean of the image and of 7, 12, 16, 21, 26 copies, enlarged by 0 %, 1 %, ...
    - ``"contrast"``: :math:`\bar x + k (x - \bar x)` with the mean of each channel, k .75, .5, .4, .3, .15
    - ``"brightness"``: the value of HSV plus .05, .1, .15, .2, .3
    - ``"saturate"``: the saturation of HSV times .3, .1, 1.5, 2, 2.5, plus 0, 0, 0, .1, .2
    - ``"pixelate"``: shrunk to .95, .9, .85, .75, .65 of the side and enlarged again
    - ``"jpeg_compression"``: a JPEG file of quality 80, 65, 58, 50, 40

    The results differ from the files of CIFAR-10-C: the noise is drawn again, and they are not rounded to 8 bits. The
    constants are made for images of 32 x 32 pixels; other sizes are possible. JPEG is Pillow's, whose versions may
    differ by rounding. Reference: Hendrycks and Dietterich, ICLR 2019.

    Args:
        name: one of :data:`CORRUPTIONS`.
        severity: from 1 to 5, the strongest. ``"saturate"`` reduces the saturation at 1 and 2, and raises it above.

    Raises:
        ValueError: an unknown name, or a severity out of range.
        TypeError: an argument has the wrong type.

    Example:
        Severity 2 halves the contrast.

        >>> Corruption("contrast", severity=2)(torch.tensor([[[[0.0, 0.5, 1.0]]]])).tolist()
        [[[[0.25, 0.5, 0.75]]]]
    """

    name: str
    severity: int = field(default=3, kw_only=True)

    def __post_init__(self) -> None:
        check_choice(_OWNER, "name", self.name, CORRUPTIONS)
        check_int(_OWNER, "severity", self.severity, low=1, remedy="5 is the strongest")
        if self.severity > 5:
            raise ValueError(complaint(_OWNER, "severity to be an int <= 5", repr(self.severity), "5 is the strongest"))

    def __call__(self, x: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """Return a corrupted version of every image, in [0, 1] on the device of ``x``; float32 for uint8.

        Args:
            x: images as for :meth:`SimCLRAugment.__call__`, with the same errors; for ``"saturate"`` of three channels.
            generator: source of randomness, drawn on its device; by default the global generator of the CPU.
        """
        x = unit_range(_OWNER, x).clamp(0, 1)
        source_device(_OWNER, generator)
        if self.name == "saturate" and x.shape[1] == 1:
            remedy = "Gray has no saturation; repeat the channel three times"
            raise ValueError(complaint(_OWNER, "RGB images for 'saturate'", f"{list(x.shape)}", remedy))
        if len(x) == 0:
            return x
        formula, strengths = {**_RANDOM, **_FIXED}[self.name]
        strength = strengths[self.severity - 1]
        return formula(x, strength, generator) if self.name in _RANDOM else formula(x, strength)


def _drawn(draw: Callable[..., Tensor], like: Tensor, generator: torch.Generator | None) -> Tensor:
    device = "cpu" if generator is None else generator.device
    return to_device(draw(like.shape, generator=generator, dtype=like.dtype, device=device), like.device)


def _refined(corners: Tensor, amplitude: float, generator: torch.Generator | None) -> Tensor:
    """Return a grid of twice the side, with the mean of four neighbours plus noise at each new point."""

    def middle(total: Tensor) -> Tensor:
        return total / 4 + amplitude * (2 * _drawn(torch.rand, corners, generator) - 1)

    below, right = corners.roll(-1, 1), corners.roll(-1, 2)
    centres = middle(corners + below + right + below.roll(-1, 2))
    # A point on a side lies between two corners and the centres of two squares.
    tops = middle(corners + right + centres + centres.roll(1, 1))
    lefts = middle(corners + below + centres + centres.roll(1, 2))
    even, odd = (torch.stack(pair, 3).flatten(2) for pair in ((corners, tops), (lefts, centres)))
    return torch.stack((even, odd), 2).flatten(1, 2)


def _bell(deviation: float, radius: int) -> Tensor:
    distance = torch.arange(-radius, radius + 1, dtype=torch.float64)
    return (-(distance**2) / (2 * deviation**2)).softmax(0)


def _mirrored(size: int, reach: int) -> Tensor:
    """Return the indices of the pixels ``-reach`` to ``size + reach - 1`` with reflect padding of any width."""
    period = max(1, 2 * (size - 1))
    places = torch.arange(-reach, size + reach) % period
    return torch.minimum(places, period - places)


def _filtered(padded: Tensor, kernel: Tensor) -> Tensor:
    channels = padded.shape[1]
    weight = to_device(kernel.to(padded.dtype), padded.device).expand(channels, 1, -1, -1)
    return F.conv2d(padded, weight, groups=channels).clamp(0, 1)


def _centre(x: Tensor, height: int, width: int) -> Tensor:
    top, left = (x.shape[2] - height) // 2, (x.shape[3] - width) // 2
    return x[:, :, top : top + height, left : left + width]


def _boxes(size: int, out: int) -> Tensor:
    """Return the resampling matrix ``[size, out]``: the mean of the pixels with centres inside, or the nearest."""
    source = (torch.arange(size, dtype=torch.float64)[:, None] + 0.5) * out / size
    # Centres on an edge are inside, however they were rounded.
    inside = ((source - torch.arange(out) - 0.5).abs() <= max(0.5, out / size / 2) + 1e-9).double()
    return inside / inside.sum(0)
