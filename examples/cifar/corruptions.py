"""Corruptions that no attacker made: the files of CIFAR-10-C, and ten corruptions that a formula describes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from io import BytesIO
from pathlib import Path
from statistics import fmean
from typing import Any, TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from advcontrast.data import ImageSet
from advcontrast.evaluation import accuracy

CIFAR10_C = (
    "gaussian_noise",
    "shot_noise",
    "impulse_noise",
    "defocus_blur",
    "glass_blur",
    "motion_blur",
    "zoom_blur",
    "snow",
    "frost",
    "fog",
    "brightness",
    "contrast",
    "elastic_transform",
    "pixelate",
    "jpeg_compression",
    "speckle_noise",
    "gaussian_blur",
    "spatter",
    "saturate",
)
LENGTH = 50_000  # images a file: five severities, one after the other, of the 10,000 test images
T = TypeVar("T")


def cifar10_c(folder: str | Path) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Read CIFAR-10-C, one corruption after the other.

    All files are looked at before the first is read; one corruption is in memory at a time.

    Args:
        folder: what the published archive unpacks to: ``labels.npy`` and a file for each of the 19 corruptions.

    Returns:
        An iterator over names, images, uint8 ``[50000, 3, 32, 32]``, and labels, int64 ``[50000]`` in [0, 10). The
        accuracy on all images of a corruption is its mean over the five severities.

    Raises:
        FileNotFoundError: files are missing.
        ValueError: a file is damaged or holds something else.

    References:
        Hendrycks and Dietterich, "Benchmarking Neural Network Robustness to Common Corruptions and Perturbations",
        ICLR 2019. The files: https://zenodo.org/records/2535967
    """
    folder = Path(folder).expanduser()
    paths = {name: folder / f"{name}.npy" for name in (*CIFAR10_C, "labels")}
    missing = [path.name for path in paths.values() if not path.is_file()]
    if missing:
        expected, remedy = f"{len(paths)} files in {str(folder)!r}", "Unpack CIFAR-10-C.tar there"
        raise FileNotFoundError(f"cifar10_c: expected {expected}, got all but {', '.join(missing)}. {remedy}.")
    labels = torch.from_numpy(_mapped(paths.pop("labels"), np.integer, (LENGTH,)).astype(np.int64))
    if not 0 <= labels.min() <= labels.max() < 10:
        got = f"{labels.min()} to {labels.max()}"
        raise ValueError(f"cifar10_c: expected labels from 0 to 9, got {got}. Download CIFAR-10-C anew.")
    files = {name: _mapped(path, np.uint8, (LENGTH, 32, 32, 3)) for name, path in paths.items()}
    return ((name, torch.from_numpy(file.transpose(0, 3, 1, 2).copy()), labels) for name, file in files.items())


def _mapped(path: Path, kind: type[Any], shape: tuple[int, ...]) -> np.memmap[Any, Any]:
    """Return the array of ``kind`` and ``shape`` in a file, without reading it yet."""
    expected = f"{kind.__name__} {list(shape)} in {path.name}"
    remedy = "Download CIFAR-10-C anew"
    try:
        array = np.lib.format.open_memmap(path, mode="r")
    # Of foreign bytes numpy may complain in any way.
    except Exception as error:
        raise ValueError(f"cifar10_c: expected {expected}, got {str(error).rstrip('.')}. {remedy}.") from error
    if not np.issubdtype(array.dtype, kind) or array.shape != shape:
        raise ValueError(f"cifar10_c: expected {expected}, got {array.dtype} {list(array.shape)}. {remedy}.")
    return array


# The corruptions below take images in [0, 1] and return such. Strengths of the five severities are those published with
# CIFAR-10-C, of which these are not the files: the noise is another, and the results are not rounded to 8 bits.


def gaussian_noise(x: Tensor, severity: int, generator: torch.Generator | None = None) -> Tensor:
    """Add normal noise of the same deviation everywhere."""
    deviation = _level(severity, (0.04, 0.06, 0.08, 0.09, 0.10))
    return (x + deviation * _normal(x, generator)).clamp(0, 1)


def shot_noise(x: Tensor, severity: int, generator: torch.Generator | None = None) -> Tensor:
    """Count photons: replace every value by a Poisson variable, scaled to have that mean."""
    photons = _level(severity, (500, 250, 100, 75, 50))
    return (torch.poisson(photons * x, generator) / photons).clamp(0, 1)


def impulse_noise(x: Tensor, severity: int, generator: torch.Generator | None = None) -> Tensor:
    """Replace a fraction of the values, each channel for itself, by 0 or 1."""
    fraction = _level(severity, (0.01, 0.02, 0.03, 0.05, 0.07))
    uniform = torch.rand(x.shape, generator=generator, dtype=x.dtype, device=x.device)
    return x.masked_fill(uniform < fraction, 0).masked_fill(uniform < fraction / 2, 1)


def speckle_noise(x: Tensor, severity: int, generator: torch.Generator | None = None) -> Tensor:
    """Multiply every value by a normal variable of mean 1."""
    deviation = _level(severity, (0.06, 0.1, 0.12, 0.16, 0.2))
    return (x + deviation * x * _normal(x, generator)).clamp(0, 1)


def gaussian_blur(x: Tensor, severity: int, generator: torch.Generator | None = None) -> Tensor:  # noqa: ARG001
    """Convolve with a Gaussian, cut off at four deviations; the border repeats the outermost pixels."""
    deviation = _level(severity, (0.4, 0.6, 0.7, 0.8, 1.0))
    radius = int(4 * deviation + 0.5)
    distance = torch.arange(-radius, radius + 1, dtype=x.dtype, device=x.device)
    kernel = (-(distance**2) / (2 * deviation**2)).softmax(0).expand(3, 1, 1, -1)
    padded = F.pad(x, [radius] * 4, mode="replicate")
    return F.conv2d(F.conv2d(padded, kernel, groups=3), kernel.mT, groups=3).clamp(0, 1)


def contrast(x: Tensor, severity: int, generator: torch.Generator | None = None) -> Tensor:  # noqa: ARG001
    """Draw every channel towards its mean over the image."""
    mean = x.mean((2, 3), keepdim=True)
    return (mean + _level(severity, (0.75, 0.5, 0.4, 0.3, 0.15)) * (x - mean)).clamp(0, 1)


def brightness(x: Tensor, severity: int, generator: torch.Generator | None = None) -> Tensor:  # noqa: ARG001
    """Add to the value of the HSV model; hue and saturation stay."""
    value = x.amax(1, keepdim=True)
    brighter = (value + _level(severity, (0.05, 0.1, 0.15, 0.2, 0.3))).clamp(max=1)
    # The largest channel becomes the new value and the others keep their ratio to it; black becomes gray.
    return brighter * torch.where(value > 0, x / value, 1)


def saturate(x: Tensor, severity: int, generator: torch.Generator | None = None) -> Tensor:  # noqa: ARG001
    """Scale and shift the saturation of the HSV model; hue and value stay.

    Gray pixels, which have no hue, count as red: where the saturation is shifted they become reddish.
    """
    scale, shift = _level(severity, ((0.3, 0.0), (0.1, 0.0), (1.5, 0.0), (2.0, 0.1), (2.5, 0.2)))
    value = x.amax(1, keepdim=True)
    chroma = value - x.amin(1, keepdim=True)
    saturation = torch.where(value > 0, chroma / value, 0)
    red = torch.tensor([0, 1, 1], dtype=x.dtype, device=x.device).view(3, 1, 1)
    missing = torch.where(chroma > 0, (value - x) / chroma, red)  # 0 in the largest channel, 1 in the smallest
    return value * (1 - (scale * saturation + shift).clamp(0, 1) * missing)


def pixelate(x: Tensor, severity: int, generator: torch.Generator | None = None) -> Tensor:  # noqa: ARG001
    """Shrink and enlarge. A small pixel is the mean of those whose centres it covers, a large one its nearest."""
    fraction = _level(severity, (0.95, 0.9, 0.85, 0.75, 0.65))
    for axis in (2, 3):
        size = x.shape[axis]
        small = max(1, int(size * fraction))
        resample = _boxes(size, small) @ _boxes(small, size)
        x = torch.movedim(torch.movedim(x, axis, -1) @ resample.to(x), -1, axis)
    return x.clamp(0, 1)


def jpeg_compression(x: Tensor, severity: int, generator: torch.Generator | None = None) -> Tensor:  # noqa: ARG001
    """Round to 8 bits and pass through a JPEG file."""
    quality = _level(severity, (80, 65, 58, 50, 40))

    def compressed(pixels: Tensor) -> Tensor:
        file = BytesIO()
        Image.fromarray(pixels.numpy()).save(file, "JPEG", quality=quality)
        return torch.from_numpy(np.array(Image.open(file)))

    images = (255 * x).round().to("cpu", torch.uint8).permute(0, 2, 3, 1)
    return torch.stack([compressed(pixels) for pixels in images]).permute(0, 3, 1, 2).to(x) / 255


Corruption = Callable[[Tensor, int, torch.Generator | None], Tensor]
_NOISES: tuple[Corruption, ...] = (gaussian_noise, shot_noise, impulse_noise, speckle_noise)
_OTHERS: tuple[Corruption, ...] = (gaussian_blur, contrast, brightness, saturate, pixelate, jpeg_compression)

#: By name: ``corruption(x, severity, generator)`` for images ``[N, 3, H, W]`` in [0, 1] and a severity from 1 to 5.
CORRUPTIONS: dict[str, Corruption] = {corruption.__name__: corruption for corruption in (*_NOISES, *_OTHERS)}


def mean_accuracy(
    model: nn.Module,
    images: ImageSet,
    *,
    severities: Sequence[int] = (1, 3, 5),
    seed: int = 0,
    batch_size: int = 500,
) -> dict[str, float]:
    """Return the accuracy of a classifier under each of :data:`CORRUPTIONS`.

    Args:
        model: a classifier of images in [0, 1]; see :func:`advcontrast.evaluation.accuracy`.
        images: clean ones.
        severities: over which to average, each from 1 to 5.
        seed: of the noise, which is the same for every model and does not touch the global generators.
        batch_size: images to corrupt and classify at a time.

    Returns:
        The mean over the severities by the name of the corruption, in [0, 1].

    Raises:
        ValueError: a severity out of its range, or none.
    """
    if not severities:
        raise ValueError("mean_accuracy: expected at least one severity, got none. Pass some of 1 to 5.")

    def corrupted(corruption: Corruption, severity: int) -> Iterator[tuple[Tensor, Tensor]]:
        generator = torch.Generator(images.x.device).manual_seed(seed)
        return ((corruption(x, severity, generator), y) for x, y in images.batches(batch_size))

    return {
        name: fmean(accuracy(model, corrupted(corruption, severity)).accuracy for severity in severities)
        for name, corruption in CORRUPTIONS.items()
    }


def _level(severity: int, levels: tuple[T, T, T, T, T]) -> T:
    if severity not in range(1, 6):
        raise ValueError(f"corruption: expected severity from 1 to 5, got {severity!r}. 5 is the strongest.")
    return levels[severity - 1]


def _normal(x: Tensor, generator: torch.Generator | None) -> Tensor:
    return torch.randn(x.shape, generator=generator, dtype=x.dtype, device=x.device)


def _boxes(size: int, out: int) -> Tensor:
    """Return the matrix ``[size, out]`` that averages, for each of ``out`` pixels, those with their centres in it.

    Where it covers none, because the image grows, it takes the nearest.
    """
    source = (torch.arange(size, dtype=torch.float64)[:, None] + 0.5) * out / size
    inside = ((source - torch.arange(out) - 0.5).abs() <= max(0.5, out / size / 2)).double()
    return inside / inside.sum(0)
