"""Networks of the scripts: an encoder and a head, to train, to store, and to take over from a file."""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from experiment import say
from flags import Common
from images import Images
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from advcontrast import convert_to_dual_bn, export_branch
from advcontrast.models import backbone


def join(encoder: nn.Module, head: nn.Module) -> nn.Sequential:
    """Return both as one network with the parts ``encoder`` and ``head``."""
    return nn.Sequential(OrderedDict(encoder=encoder, head=head))


def new_encoder(settings: Common, images: Images) -> tuple[nn.Module, int]:
    """Return an untrained encoder and its number of features."""
    encoder, features = backbone(settings.arch, width=settings.width or None, small_images=images.size <= 64)
    try:
        with torch.no_grad():
            encoder.eval()(torch.zeros(1, 3, images.size, images.size))
    # Networks complain of a size that they cannot take with almost any kind of error.
    except Exception as error:
        reason = str(error).partition("\n")[0].rstrip(".")
        expected = f"a network for images of {images.size} x {images.size} pixels"
        raise ValueError(f"--arch: expected {expected}, got {settings.arch} ({reason}). Choose another.") from error
    return encoder.train(), features


def zero_classifier(encoder: nn.Module, features: int, classes: int) -> nn.Sequential:
    """Return the encoder with a linear classifier that starts at zero, as the ACL code's does."""
    head = nn.Linear(features, classes)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    return join(encoder, head)


def encoder_from(settings: Any, images: Images, branch: str) -> tuple[nn.Module, int]:
    """Return the encoder that ``--encoder`` names, with the norms of one branch, and its number of features."""
    encoder, features, dual = pretrained(settings, images)
    if not dual and settings.encoder != "random":
        say(f"{settings.encoder} has single batch norms: --branch makes no difference.")
    return (export_branch(encoder, branch) if dual else encoder), features


def pretrained(settings: Any, images: Images) -> tuple[nn.Module, int, bool]:
    """Return the encoder that ``--encoder`` names as it was trained, its number of features, and if it has branches."""
    encoder, features = new_encoder(settings, images)
    if settings.encoder == "random":
        return encoder, features, False
    weights, stored = read(settings, "encoder", "pretrain.py")
    dual = stored.get("norms") == "dual"
    if dual:
        encoder = convert_to_dual_bn(encoder)
    encoder_weights = {name.removeprefix("encoder."): w for name, w in weights.items() if name.startswith("encoder.")}
    take_over(encoder, encoder_weights, "encoder")
    return encoder, features, dual


def classifier_from(settings: Any, images: Images) -> nn.Sequential:
    """Return the classifier that ``--model`` names."""
    model = zero_classifier(*new_encoder(settings, images), images.classes)
    take_over(model, read(settings, "model", "finetune.py")[0], "model")
    return model


def read(settings: Any, flag: str, script: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the weights in the file that a flag names, and what they say about themselves."""
    path = Path(getattr(settings, flag))
    try:
        with safe_open(path, "pt") as file:
            stored = json.loads((file.metadata() or {}).get("advcontrast", "{}"))
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError, ValueError) as error:
        reason = str(error).partition("\n")[0].rstrip(".")
        raise ValueError(
            f"--{flag}: expected a final.safetensors, got {path} ({reason}). Make it with {script}."
        ) from error
    wanted = {"arch": settings.arch, "width": settings.width}
    if {name: stored.get(name) for name in wanted} != wanted:
        flags = " ".join(f"--{name} {value}" for name, value in wanted.items())
        got = ", ".join(f"{name} {stored.get(name, 'unknown')}" for name in wanted)
        raise ValueError(f"--{flag}: expected a network of {flags}, got {got}. Pass the flags it was trained with.")
    return weights, stored


def take_over(model: nn.Module, weights: Mapping[str, Tensor], flag: str) -> None:
    """Load weights into a network, all or none."""
    shapes, stored = ({name: list(w.shape) for name, w in part.items()} for part in (model.state_dict(), weights))
    wrong = [name for name in {**shapes, **stored} if shapes.get(name) != stored.get(name)]
    if wrong:
        got = f"{len(wrong)} entries that differ, the first {wrong[0]} {stored.get(wrong[0], 'absent')}"
        raise ValueError(
            f"--{flag}: expected the weights of this network, got {got}. Pass the flags it was trained with."
        )
    model.load_state_dict(weights)


def about(settings: Any, **more: Any) -> dict[str, Any]:
    """Return what a file of weights says about itself."""
    return {"arch": settings.arch, "width": settings.width, "torch": torch.__version__, **more}
