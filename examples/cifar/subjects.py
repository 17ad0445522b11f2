"""What evaluate.py evaluates: classifiers from files, and the images to do it on."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from experiment import EVALUATION_BATCH
from images import load
from networks import classifier_from, pretrained
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from advcontrast.data import ImageSet


@dataclass(frozen=True)
class Subject:
    """A classifier of a run: its test images, the usual radius of attacks on them, and the branch it was trained from.

    ``model[0]`` is the encoder, ``model[1]`` the linear head.
    """

    model: nn.Sequential
    images: ImageSet
    eps: float
    branch: str | None

    def batches(self, most: int | None = None) -> list[tuple[Tensor, Tensor]]:
        """Return the images, or the first of them, in batches."""
        images = self.images.subset(torch.arange(min(most or len(self.images), len(self.images))))
        return list(images.batches(EVALUATION_BATCH))


def subject(path: str, settings: Any) -> Subject:
    """Return what a file of weights of the pipeline, or of the quickstart, holds; the network is told by the file."""
    about = _about("model", path)
    if about.get("arch") == "quickstart":
        return _from_quickstart(path, about, settings)
    own = replace(settings, model=path, **_architecture(about, settings))
    images = load(own)
    model = classifier_from(own, images).to(images.test.x.device).eval()
    return Subject(model, images.test, settings.radius, about.get("branch"))


def dual_encoder(settings: Any) -> nn.Module:
    """Return the encoder with two branches that ``--encoder`` names."""
    own = replace(settings, **_architecture(_about("encoder", settings.encoder), settings))
    images = load(own)
    encoder, _, dual = pretrained(own, images)
    if not dual:
        expected, remedy = "an encoder with dual norms", "Pre-train with --mode DS, or leave out the picture"
        raise ValueError(f"--encoder: expected {expected}, got single ones in {settings.encoder}. {remedy}.")
    return encoder.to(images.test.x.device).eval()


def _architecture(about: dict[str, Any], settings: Any) -> dict[str, Any]:
    return {name: about.get(name, getattr(settings, name)) for name in ("arch", "width")}


def _about(name: str, path: str) -> dict[str, Any]:
    try:
        with safe_open(path, "pt") as file:
            return dict(json.loads((file.metadata() or {}).get("advcontrast", "{}")))
    except (OSError, SafetensorError, ValueError) as error:
        reason = str(error).partition("\n")[0].rstrip(".")
        raise ValueError(
            f"--{name}: expected a final.safetensors, got {path} ({reason}). Make it with finetune.py or pretrain.py."
        ) from error


def _from_quickstart(path: str, about: dict[str, Any], settings: Any) -> Subject:
    """Rebuild a classifier of the quickstart; its images come with it, whatever ``--data`` says."""
    sys.path.append(str(Path(__file__).parents[1]))
    from quickstart import Settings as Quickstart
    from quickstart import load_task, new_classifier

    task = load_task(Quickstart(**about["settings"]))
    images = task.test
    if settings.test_limit:
        chosen = torch.randperm(len(images), generator=torch.Generator().manual_seed(settings.seed))
        images = images.subset(chosen[: settings.test_limit])
    model = new_classifier(task)
    model.load_state_dict(load_file(path))
    return Subject(model.eval(), images, task.eps if settings.eps is None else settings.eps, about["branch"])
