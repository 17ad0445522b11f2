"""What timm is told about a network beside its weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .._checks import check_int

_OF_OTHER_WEIGHTS = ("tag", "url", "hf_hub_id", "license", "origin_url", "test_input_size", "test_crop_pct")


def describe(config: dict[str, Any], constants: Sequence[Any], size: int | None) -> None:
    """Change the config of a pretrained network to that of one with other weights.

    ``constants`` are the mean and the deviation that images are normalised by, or nothing; ``size`` is the side of the
    images, or None for that of the architecture.
    """
    config.update(zip(("mean", "std"), constants, strict=False))
    if size is not None:
        check_int("save_timm", "size", size, low=1, remedy="Pass the side of the images in pixels")
        config.update(input_size=(config["input_size"][0], size, size), crop_pct=1.0)
    for name in _OF_OTHER_WEIGHTS:
        config.pop(name, None)
