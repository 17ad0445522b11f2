"""Networks of the scripts: an encoder and a head, to train, to store, and to take over from a file."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
from experiment import say
from flags import Common
from images import Images
from safetensors import SafetensorError, safe_open
from torch import nn

from advcontrast import convert_to_dual_bn, export_branch
from advcontrast.models import backbone


def join(encoder: nn.Module, head: nn.Module) -> nn.Sequential:
    """Return both as one network with the parts ``encoder`` and ``head``."""
    return nn.Sequential(OrderedDict(encoder=encoder, head=head))


def new_encoder(settings: Common, images: Images) -> tuple[nn.Module, int]:
    """Return an untrained encoder and its number of features."""
    return backbone(settings.arch, width=settings.width or None, small_images=images.size <= 64)


def zero_classifier(encoder: nn.Module, features: int, classes: int) -> nn.Sequential:
    """Return the encoder with a linear classifier that starts at zero, as the ACL code's does."""
    head = nn.Linear(features, classes)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    return join(encoder, head)


def encoder_from(settings: Any, images: Images, branch: str) -> tuple[nn.Module, int]:
    """Return the encoder that ``--encoder`` names, with the norms of one branch, and its number of features."""
    if settings.encoder == "random":
        return new_encoder(settings, images)
    path = Path(settings.encoder)
    try:
        with safe_open(path, "pt") as file:
            about = file.metadata() or {}
            weights = {name: file.get_tensor(name) for name in file.keys() if name.startswith("encoder.")}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        reason = str(error).partition("\n")[0].rstrip(".")
        raise ValueError(
            f"--encoder: expected a final.safetensors or 'random', got {path} ({reason}). Run pretrain.py."
        ) from error
    wanted = {"arch": settings.arch, "width": str(settings.width)}
    stored = {name: about.get(name, "nothing") for name in wanted}
    if stored != wanted:
        got = ", ".join(f"{name} {stored[name]}" for name in stored)
        flags = f"--arch {settings.arch} --width {settings.width}"
        raise ValueError(
            f"--encoder: expected a network of {flags}, got one of {got}. Pass the flags it was trained with."
        )
    encoder, features = new_encoder(settings, images)
    if about.get("norms") == "dual":
        encoder = convert_to_dual_bn(encoder)
    else:
        say(f"{path} has single batch norms: both branches are the same.")
    try:
        encoder.load_state_dict({name.removeprefix("encoder."): value for name, value in weights.items()})
    except RuntimeError as error:
        reason = " ".join(str(error).split()).rstrip(".")[:200]
        raise ValueError(
            f"--encoder: expected the weights of {settings.arch}, got others ({reason}). Choose another file."
        ) from error
    return (export_branch(encoder, branch) if about.get("norms") == "dual" else encoder), features


def about(settings: Any, **more: Any) -> dict[str, Any]:
    """Return what a file of weights says about itself."""
    return {"arch": settings.arch, "width": settings.width, "torch": torch.__version__, **more}
