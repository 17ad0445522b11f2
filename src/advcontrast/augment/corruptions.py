"""Common corruptions that can be computed from published constants."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from .._checks import check_choice, check_int, complaint, source_device
from ..functional.image import unit_range
from . import _corruption_ops as ops

_OWNER = "Corruption"

# By name: a formula, and its strengths from severity 1 to 5 as published with CIFAR-10-C.
_RANDOM: dict[str, tuple[Callable[..., Tensor], tuple[Any, ...]]] = {
    "gaussian_noise": (ops.gaussian_noise, (0.04, 0.06, 0.08, 0.09, 0.10)),
    "shot_noise": (ops.shot_noise, (500, 250, 100, 75, 50)),
    "impulse_noise": (ops.impulse_noise, (0.01, 0.02, 0.03, 0.05, 0.07)),
    "speckle_noise": (ops.speckle_noise, (0.06, 0.1, 0.12, 0.16, 0.2)),
    "fog": (ops.fog, ((0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75))),
}
_FIXED: dict[str, tuple[Callable[..., Tensor], tuple[Any, ...]]] = {
    "gaussian_blur": (ops.gaussian_blur, (0.4, 0.6, 0.7, 0.8, 1.0)),
    "defocus_blur": (ops.defocus_blur, ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1))),
    # Published as ranges from 1 to 1.06, 1.11, 1.16, 1.21, 1.26 by 0.01; rounding gave the first two one zoom more.
    "zoom_blur": (ops.zoom_blur, (7, 12, 16, 21, 26)),
    "contrast": (ops.contrast, (0.75, 0.5, 0.4, 0.3, 0.15)),
    "brightness": (ops.brightness, (0.05, 0.1, 0.15, 0.2, 0.3)),
    "saturate": (ops.saturate, ((0.3, 0.0), (0.1, 0.0), (1.5, 0.0), (2.0, 0.1), (2.5, 0.2))),
    "pixelate": (ops.pixelate, (0.95, 0.9, 0.85, 0.75, 0.65)),
    "jpeg_compression": (ops.jpeg_compression, (80, 65, 58, 50, 40)),
}

#: Names of the corruptions that can be computed, those that draw random numbers first.
CORRUPTIONS: tuple[str, ...] = (*_RANDOM, *_FIXED)


@dataclass(frozen=True)
class Corruption:
    r"""Corrupt images as a bad camera, the weather or a file format would, not as an attacker.

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

    The results differ from the files of CIFAR-10-C: the noise is drawn anew, and they are not rounded to 8 bits. The
    constants are made for images of 32 x 32 pixels; other sizes are possible. JPEG is Pillow's, and may differ in a bit
    between versions. Reference: Hendrycks and Dietterich, ICLR 2019.

    Args:
        name: one of :data:`CORRUPTIONS`.
        severity: from 1 to 5, the strongest. Of ``"saturate"`` 1 and 2 wash out, 3 to 5 exaggerate.

    Raises:
        ValueError: an unknown name, or a severity out of its range.
        TypeError: an argument of the wrong kind.

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
        """Return a corrupted version of every image.

        Args:
            x: images as for :meth:`SimCLRAugment.__call__`, with the same errors; for ``"saturate"`` of three channels.
            generator: source of the randomness, if any; by default the global one of the CPU.

        Returns:
            Images ``[N, C, H, W]`` in [0, 1] on the device of ``x``; float32 for uint8.
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
