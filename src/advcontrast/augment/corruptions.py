"""Common corruptions that can be computed from published constants."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from .._checks import check_choice, check_int, complaint, source_device
from . import _corruption_ops as ops
from .images import unit_range

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
    """Corrupt images as a bad camera, the weather or a file format would, not as an attacker.

    The formulas, and the strengths of the five severities, are those published with CIFAR-10-C. The results are not the
    files of CIFAR-10-C: the noise is another, and they are not rounded to 8 bits. Of its 19 corruptions these 13 need
    nothing but their constants: five draw random numbers (``"gaussian_noise"``, ``"shot_noise"``, ``"impulse_noise"``,
    ``"speckle_noise"``, ``"fog"``) and eight do not (``"gaussian_blur"``, ``"defocus_blur"``, ``"zoom_blur"``,
    ``"contrast"``, ``"brightness"``, ``"saturate"``, ``"pixelate"``, ``"jpeg_compression"``). The constants are made
    for images of 32 x 32 pixels; other sizes are possible. JPEG is Pillow's, and may differ in a bit between versions.

    Args:
        name: one of :data:`CORRUPTIONS`.
        severity: from 1 to 5, the strongest. Of ``"saturate"`` 1 and 2 wash out, 3 to 5 exaggerate.

    Raises:
        ValueError: an unknown name, or a severity out of its range.
        TypeError: an argument of the wrong kind.

    Example:
        Severity 2 halves the contrast.

        >>> from advcontrast.augment import Corruption
        >>> Corruption("contrast", severity=2)(torch.tensor([[[[0.0, 0.5, 1.0]]]])).tolist()
        [[[[0.25, 0.5, 0.75]]]]

    References:
        Hendrycks and Dietterich, "Benchmarking Neural Network Robustness to Common Corruptions and Perturbations",
        ICLR 2019.
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
            x: images ``[N, C, H, W]`` with one or three channels, three for ``"saturate"``: uint8, or float32 or
                float64 in [0, 1].
            generator: source of the randomness, where there is any; by default the global one of the CPU.

        Returns:
            Images ``[N, C, H, W]`` in [0, 1] on the device of ``x``; float32 for uint8.

        Raises:
            ValueError: ``x`` has another shape or, on the CPU, leaves [0, 1].
            TypeError: ``x`` or ``generator`` is of the wrong kind.
        """
        x = unit_range(_OWNER, x).clamp(0, 1)
        source_device(_OWNER, generator)
        if self.name == "saturate" and x.shape[1] == 1:
            remedy = "Gray has no saturation; repeat the channel three times"
            raise ValueError(complaint(_OWNER, "RGB images for 'saturate'", f"{list(x.shape)}", remedy))
        if len(x) == 0:
            return x
        if self.name in _RANDOM:
            formula, strengths = _RANDOM[self.name]
            return formula(x, strengths[self.severity - 1], generator)
        formula, strengths = _FIXED[self.name]
        return formula(x, strengths[self.severity - 1])
