"""Networks: new ones, and those in the files of these scripts and of the quickstart."""

from __future__ import annotations

import json
import sys
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from advcontrast import convert_to_dual_bn
from advcontrast.data import ImageSet
from advcontrast.models import backbone
from advcontrast.models.pretrained import FOLDER, SHA256
from advcontrast.norm import DualNorm

from .flags import Common
from .images import Images, first, load
from .run_folder import say

BATCH = 500  # images of an evaluation at a time


def join(encoder: nn.Module, head: nn.Module) -> nn.Sequential:
    """Return both as one network with the parts ``encoder`` and ``head``."""
    return nn.Sequential(OrderedDict(encoder=encoder, head=head))


def new_encoder(settings: Common, images: Images) -> tuple[nn.Module, int]:
    """Return an untrained encoder and its number of features."""
    if settings.arch == "quickstart":
        if settings.width:
            raise ValueError(f"--width: expected no width for quickstart, got {settings.width}. Leave it out.")
        sys.path.append(str(Path(__file__).parents[2]))
        from quickstart import Encoder

        encoder = Encoder(3)
        return encoder, encoder.features
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


def network_of(settings: Common, **more: Any) -> dict[str, Any]:
    """Return the description of the network that a file of weights stores."""
    return {"arch": settings.arch, "width": settings.width, "torch": torch.__version__, **more}


def encoder_from(settings: Any, images: Images, flag: str = "encoder") -> nn.Module:
    """Return the encoder that a flag names, with single or dual norms as it was trained."""
    encoder, _ = new_encoder(settings, images)
    path = getattr(settings, flag)
    if path == "random":
        return encoder.to(images.test.x.device)
    weights, about = read(flag, path)
    _require_network(flag, settings, about)
    if about.get("norms") == "dual":
        encoder = convert_to_dual_bn(encoder)
    elif flag == "encoder":
        say(f"{path} has single batch norms: --branch makes no difference.")
    own = {name.removeprefix("encoder."): w for name, w in weights.items() if name.startswith("encoder.")}
    load_weights(encoder, own, flag)
    return encoder.to(images.test.x.device)


def classifier_from(settings: Any, images: Images) -> nn.Sequential:
    """Return the classifier that ``--model`` names."""
    weights, about = read("model", settings.model)
    _require_network("model", settings, about)
    encoder, features = new_encoder(settings, images)
    model = join(encoder, nn.Linear(features, images.classes))
    load_weights(model, weights, "model")
    return model.to(images.test.x.device).eval()


@dataclass(frozen=True)
class Classifier:
    """A classifier with its test images, the usual radius of attacks on them, and the branch it was trained from.

    ``model[0]`` is the encoder, ``model[1]`` the linear head.
    """

    model: nn.Sequential
    images: ImageSet
    eps: float
    branch: str | None

    def batches(self, most: int | None = None) -> list[tuple[Tensor, Tensor]]:
        """Return the images, or the first of them, in batches."""
        images = self.images.subset(torch.arange(min(most or len(self.images), len(self.images))))
        return list(images.batches(BATCH))


def any_classifier(path: str, settings: Any) -> Classifier:
    """Return the classifier in a file of the pipeline or of the quickstart, which names its network itself."""
    weights, about = read("model", path)
    if "settings" not in about:  # a file of the pipeline
        own = replace(settings, model=path, **_architecture(about, settings))
        images = load(own)
        return Classifier(classifier_from(own, images), images.test, settings.radius, about.get("branch"))
    sys.path.append(str(Path(__file__).parents[2]))
    from quickstart import Settings as Quickstart
    from quickstart import load_task, new_classifier

    task = load_task(Quickstart(**about["settings"]))  # its images come with it, whatever --data names
    images = task.test.subset(first(len(task.test), settings.test_limit, settings.seed, "--test-limit"))
    model = new_classifier(task)
    load_weights(model, weights, "model")
    return Classifier(model.eval(), images, task.eps if settings.eps is None else settings.eps, about["branch"])


def dual_encoder(settings: Any) -> nn.Module:
    """Return the encoder with two branches that ``--encoder`` names."""
    own = replace(settings, **_architecture(read("encoder", settings.encoder)[1], settings))
    encoder = encoder_from(own, load(own))
    if not any(isinstance(module, DualNorm) for module in encoder.modules()):
        expected, remedy = "an encoder with dual norms", "Pre-train with --mode DS, or leave out the picture"
        raise ValueError(f"--encoder: expected {expected}, got single ones in {settings.encoder}. {remedy}.")
    return encoder.eval()


def read(flag: str, path: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the weights that a flag names, and the stored description of their network.

    A flag names a file of these scripts or, where it asks for an encoder, one that comes with the package.
    """
    packaged = flag != "model" and path in SHA256
    try:
        with safe_open(FOLDER / f"{path}.safetensors" if packaged else path, "pt") as file:
            metadata = file.metadata() or {}
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            about = dict(json.loads(metadata.get("advcontrast", "{}")))
    except (OSError, SafetensorError, ValueError) as error:
        reason = str(error).partition("\n")[0].rstrip(".")
        names = ", ".join(SHA256)
        remedy = "Make it with finetune.py" if flag == "model" else f"Make it with pretrain.py, or choose {names}"
        raise ValueError(f"--{flag}: expected a final.safetensors, got {path} ({reason}). {remedy}.") from error
    if packaged:
        norms = "dual" if metadata["branches"] else "single"
        about = {"arch": "resnet18", "width": int(metadata["width"]), "norms": norms}
        weights = {f"encoder.{name}": weight for name, weight in weights.items()}
    return weights, about


def _architecture(about: Mapping[str, Any], settings: Common) -> dict[str, Any]:
    return {name: about.get(name, getattr(settings, name)) for name in ("arch", "width")}


def _require_network(flag: str, settings: Common, about: Mapping[str, Any]) -> None:
    wanted = {"arch": settings.arch, "width": settings.width}
    if {name: about.get(name) for name in wanted} != wanted:
        flags = " ".join(f"--{name} {value}" for name, value in wanted.items())
        got = ", ".join(f"{name} {about.get(name, 'unknown')}" for name in wanted)
        raise ValueError(f"--{flag}: expected a network of {flags}, got {got}. Pass the flags it was trained with.")


def load_weights(model: nn.Module, weights: Mapping[str, Tensor], flag: str) -> None:
    """Load weights into a network, all or none."""
    shapes, stored = ({name: list(w.shape) for name, w in part.items()} for part in (model.state_dict(), weights))
    wrong = [name for name in {**shapes, **stored} if shapes.get(name) != stored.get(name)]
    if wrong:
        got = f"{len(wrong)} entries that differ, the first {wrong[0]} {stored.get(wrong[0], 'absent')}"
        expected, remedy = "the weights of this network", "Pass the flags it was trained with"
        raise ValueError(f"--{flag}: expected {expected}, got {got}. {remedy}.")
    model.load_state_dict(weights)
