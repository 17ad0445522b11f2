"""The architectures of torchvision and timm that classify, and how to build one without its weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import timm
import torchvision.models
from torch import nn

CLASSES = 10
SIZES = (32, 64, 96, 128)
IMAGES = tuple((3, size, size) for size in (*SIZES, 224, 299))
CLIPS = tuple((3, frames, size, size) for frames, size in ((8, 32), (8, 64), (16, 64), (16, 112), (16, 224)))


@dataclass(frozen=True)
class Architecture:
    """One network of a collection.

    Attributes:
        source: the collection.
        family: variants of one design share it: the file that they are written in.
        name: the network.
        build: builds it with random weights for ``CLASSES`` classes.
        shapes: shapes of an input to try, in this order, if the config of the network does not specify one.
    """

    source: str
    family: str
    name: str
    build: Callable[[], nn.Module]
    shapes: tuple[tuple[int, ...], ...] = IMAGES


def architectures() -> Iterator[Architecture]:
    """Yield every architecture for classification: images, those prepared for quantisation, and video."""
    for source, module, shapes in (
        ("torchvision", torchvision.models, IMAGES),
        ("torchvision quantizable", torchvision.models.quantization, IMAGES),
        ("torchvision video", torchvision.models.video, CLIPS),
    ):
        for name in torchvision.models.list_models(module=module):
            family = torchvision.models.get_model_builder(name).__module__.rpartition(".")[2]
            build = partial(torchvision.models.get_model, name, weights=None, num_classes=CLASSES)
            yield Architecture(source, family, name, build, shapes)
    for family in timm.list_modules():
        for name in timm.list_models(module=family):
            yield Architecture("timm", family, name, partial(timm.create_model, name, num_classes=CLASSES))


def input_shapes(architecture: Architecture, model: nn.Module) -> list[tuple[int, ...]]:
    """Return the shapes to try, smallest first; the last is that of the network's config, if it has one."""
    configured = getattr(model, "default_cfg", None) or {}
    if "input_size" not in configured:
        return list(architecture.shapes)
    made_for = tuple(configured["input_size"])
    channels = made_for[0]
    return [*((channels, size, size) for size in SIZES if size < made_for[-1]), made_for]
