"""What timm is told about a network beside its weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .._checks import check_int, complaint, type_name

_OF_OTHER_WEIGHTS = ("tag", "url", "hf_hub_id", "license", "origin_url", "test_input_size", "test_crop_pct")


def describe(network: Any, constants: Sequence[Any] | None, size: int | None, labels: Any) -> dict[str, Any]:
    """Change the config of a pretrained network to that of one with other weights; return what to write beside it.

    ``constants`` are the mean and the deviation that images are normalised by, if they are; ``size`` is the side of the
    images, or None for that of the architecture; ``labels`` are the names of the classes, or None.
    """
    config = network.pretrained_cfg
    if size is not None:
        check_int("save_timm", "size", size, low=1, remedy="Pass the side of the images in pixels")
        config.update(input_size=(config["input_size"][0], int(size), int(size)), crop_pct=1.0)
    channels = config["input_size"][0]
    config.update(zip(("mean", "std"), constants or ((0.0,) * channels, (1.0,) * channels), strict=True))
    for name in _OF_OTHER_WEIGHTS:
        config.pop(name, None)
    if labels is None:
        return {}
    rule, remedy = f"labels to be {network.num_classes} names in a tuple", "Pass one for each class, in their order"
    others = (
        [label for label in labels if not isinstance(label, str)] if isinstance(labels, (tuple, list)) else [labels]
    )
    if others:
        raise TypeError(complaint("save_timm", rule, type_name(others[0]), remedy))
    if len(labels) != network.num_classes:
        raise ValueError(complaint("save_timm", rule, f"{len(labels)}", remedy))
    config.pop("label_descriptions", None)  # of the names before
    return {"label_names": list(labels)}
