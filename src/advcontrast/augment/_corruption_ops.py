"""Formulas of common corruptions.

Images and results are floating point, ``[N, C, H, W]`` with one or three channels, in [0, 1]. Randomness is drawn on
the device of the generator, by default on the CPU with the global one, and does not depend on the device of the images.
"""

import math
from collections.abc import Callable
from io import BytesIO

import torch
from torch import Tensor
from torch.nn import functional as F


def gaussian_noise(x: Tensor, deviation: float, generator: torch.Generator | None) -> Tensor:
    """Add normal noise of the same deviation everywhere."""
    return (x + deviation * _drawn(torch.randn, x, generator)).clamp(0, 1)


def shot_noise(x: Tensor, photons: float, generator: torch.Generator | None) -> Tensor:
    """Replace every value by a Poisson variable, scaled to have that mean; white is a mean of ``photons``."""
    rates = (photons * x).to("cpu" if generator is None else generator.device)
    return (torch.poisson(rates, generator).to(x.device) / photons).clamp(0, 1)


def impulse_noise(x: Tensor, fraction: float, generator: torch.Generator | None) -> Tensor:
    """Replace a fraction of the values, in each channel separately, by 0 or 1."""
    uniform = _drawn(torch.rand, x, generator)
    return x.masked_fill(uniform < fraction, 0).masked_fill(uniform < fraction / 2, 1)


def speckle_noise(x: Tensor, deviation: float, generator: torch.Generator | None) -> Tensor:
    """Multiply every value by a normal variable of mean 1."""
    return (x + deviation * x * _drawn(torch.randn, x, generator)).clamp(0, 1)


def fog(x: Tensor, strength: tuple[float, float], generator: torch.Generator | None) -> Tensor:
    """Add a fractal cloud of a thickness to every image, and scale the sum so that the maximum does not change.

    The roughness of the cloud is divided by a factor with each halving of the distance.
    """
    thickness, decay = strength
    side = 1 << (max(x.shape[2:]) - 1).bit_length()
    cloud = _landscape(x, side, decay, generator)[:, None, : x.shape[2], : x.shape[3]]
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
    rows, columns = (_mirrored(size, reach).to(x.device) for size in x.shape[2:])
    return _filtered(x[:, :, rows[:, None], columns], kernel)


def zoom_blur(x: Tensor, zooms: int) -> Tensor:
    """Average the image itself and ``zooms`` views of it, enlarged by 0%, 1%, 2%, ... about the centre."""
    total = x
    for step in range(zooms):
        # The published factors exactly: the last bit decides how 26 pixels times 1.25 are rounded.
        total = total + _enlarged(x, 1 + step * (1.01 - 1))
    return (total / (zooms + 1)).clamp(0, 1)


def contrast(x: Tensor, factor: float) -> Tensor:
    """Scale the deviation of every channel from its mean over the image."""
    mean = x.mean((2, 3), keepdim=True)
    return (mean + factor * (x - mean)).clamp(0, 1)


def brightness(x: Tensor, shift: float) -> Tensor:
    """Add to the value of the HSV model, with hue and saturation kept; black becomes gray."""
    value = x.amax(1, keepdim=True)
    return (value + shift).clamp(max=1) * torch.where(value > 0, x / value, 1)


def saturate(x: Tensor, strength: tuple[float, float]) -> Tensor:
    """Scale and shift the saturation of the HSV model, with hue and value kept; gray pixels have the hue of red."""
    scale, shift = strength
    value = x.amax(1, keepdim=True)
    chroma = value - x.amin(1, keepdim=True)
    saturation = torch.where(value > 0, chroma / value, 0)
    red = torch.tensor([0, 1, 1], dtype=x.dtype, device=x.device).view(3, 1, 1)
    missing = torch.where(chroma > 0, (value - x) / chroma, red)  # 0 in the largest channel, 1 in the smallest
    return value * (1 - (scale * saturation + shift).clamp(0, 1) * missing)


def pixelate(x: Tensor, fraction: float) -> Tensor:
    """Downsample by the mean of the pixels whose centres a small pixel covers, and upsample by the nearest one."""
    for axis in (2, 3):
        size = x.shape[axis]
        small = max(1, int(size * fraction))
        resample = _boxes(size, small) @ _boxes(small, size)
        x = torch.movedim(torch.movedim(x, axis, -1) @ resample.to(x), -1, axis)
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
    return decoded.view(len(x), *x.shape[2:], -1).permute(0, 3, 1, 2).to(x) / 255


def _drawn(draw: Callable[..., Tensor], like: Tensor, generator: torch.Generator | None) -> Tensor:
    device = "cpu" if generator is None else generator.device
    return draw(like.shape, generator=generator, dtype=like.dtype, device=device).to(like.device)


def _landscape(x: Tensor, side: int, decay: float, generator: torch.Generator | None) -> Tensor:
    """Return a landscape in [0, 1] for each image, ``[N, side, side]``, by the diamond-square algorithm on a torus."""
    land, roughness = x.new_zeros(len(x), 1, 1), 100.0
    while land.shape[1] < side:
        land = _refined(land, roughness**2, generator)
        roughness /= decay
    lifted = land - land.amin((1, 2), keepdim=True)
    return lifted / lifted.amax((1, 2), keepdim=True).clamp_min(torch.finfo(x.dtype).tiny)


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
    return F.conv2d(padded, kernel.to(padded).expand(channels, 1, -1, -1), groups=channels).clamp(0, 1)


def _enlarged(x: Tensor, factor: float) -> Tensor:
    """Return the centre of the images, enlarged with linear interpolation that aligns the corners."""
    sizes = x.shape[2:]
    crops = [math.ceil(size / factor) for size in sizes]
    top, left = ((size - crop) // 2 for size, crop in zip(sizes, crops, strict=True))
    middle = x[:, :, top : top + crops[0], left : left + crops[1]]
    grown = [round(crop * factor) for crop in crops]
    large = F.interpolate(middle, grown, mode="bilinear", align_corners=True)
    top, left = ((large_size - size) // 2 for size, large_size in zip(sizes, grown, strict=True))
    return large[:, :, top : top + sizes[0], left : left + sizes[1]]


def _boxes(size: int, out: int) -> Tensor:
    """Return the matrix ``[size, out]`` of a resampling: the mean of the pixels with centres inside, or the nearest."""
    source = (torch.arange(size, dtype=torch.float64)[:, None] + 0.5) * out / size
    # Centres on an edge are inside, however they were rounded.
    inside = ((source - torch.arange(out) - 0.5).abs() <= max(0.5, out / size / 2) + 1e-9).double()
    return inside / inside.sum(0)
