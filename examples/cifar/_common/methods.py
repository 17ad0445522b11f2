"""Methods of pre-training: how each builds its learner, and the settings of its paper."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from advcontrast import ACLTrainer, ContrastivePairAugment, NTXentLoss, convert_to_dual_bn, export_branch
from advcontrast.augment import CropFlip, Replay
from advcontrast.models import acl_head, simclr_head
from advcontrast.norm import DualNorm
from advcontrast.strategies import DeACL

from .images import Images
from .load_models import encoder_from, join


@dataclass(frozen=True)
class Parts:
    """What a learner is built from."""

    settings: Any
    images: Images
    encoder: nn.Module
    features: int
    attack: Callable[..., Tensor]
    steps: int

    def network(self, *, dual: bool) -> nn.Module:
        """Return the encoder with its projection head."""
        head = acl_head if self.settings.head == "acl" else simclr_head
        model = join(self.encoder, head(self.features))
        return convert_to_dual_bn(model) if dual else model

    def pair(self, strength: float | None = None) -> ContrastivePairAugment:
        """Return the augmentation to pairs of views."""
        strength = self.settings.strength if strength is None else strength
        return ContrastivePairAugment(self.images.size, strength=strength, min_area=self.settings.min_area)

    def teacher(self) -> nn.Module:
        """Return the encoder that ``--teacher`` names, with the norms of its clean branch."""
        if not self.settings.teacher:
            expected = "the final.safetensors of a standard encoder"
            raise ValueError(f"--teacher: expected {expected}, got nothing. Make one with pretrain.py --mode S2S.")
        found = encoder_from(self.settings, self.images, "teacher")
        dual = any(isinstance(module, DualNorm) for module in found.modules())
        return (export_branch(found, "clean") if dual else found).eval()

    def student(self) -> tuple[nn.Module, nn.Module]:
        """Return a copy of the teacher, to train, and the teacher, each with the part ``encoder``."""
        teacher = join(self.teacher(), nn.Identity()).eval()
        return copy.deepcopy(teacher).train(), teacher


@dataclass(frozen=True)
class Method:
    """A method: how to build its learner, and its paper's flags; ``fast`` overrides them."""

    build: Callable[[Parts], nn.Module]
    paper: Mapping[str, Any]
    fast: Mapping[str, Any]


def acl(parts: Parts, **settings: Any) -> ACLTrainer:
    """Return the learner of ACL in the mode of the flags."""
    flags = parts.settings
    model = parts.network(dual=flags.norms == "dual" or (flags.norms == "auto" and flags.mode in ("A2S", "DS")))
    settings = {"augment": Replay(parts.pair(), times=flags.replays), "mode": flags.mode, **settings}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of single norms, which were asked for
        return ACLTrainer(model, loss=NTXentLoss(flags.temperature, gather=True), attack=parts.attack, **settings)


def deacl(parts: Parts) -> DeACL:
    """Return the learner of DeACL, whose student starts as a copy of the teacher."""
    student, teacher = parts.student()
    return DeACL(student, teacher, attack=parts.attack, augment=CropFlip(padding=max(1, parts.images.size // 8)))


SGD = {"optimizer": "sgd", "lr": 0.5, "weight_decay": 5e-4, "batch_size": 256}
METHODS = {
    "acl": Method(acl, {"epochs": 1000, "batch_size": 512}, {"epochs": 100, "attack_steps": 3, "attack_step": 0.5}),
    "deacl": Method(deacl, {**SGD, "epochs": 100}, {"epochs": 20}),
}


def presets() -> dict[str, dict[str, Any]]:
    """Return the presets ``<method>-paper`` and ``<method>-fast`` of all methods but ACL."""
    found = {}
    for name, method in METHODS.items():
        if name != "acl":
            found[f"{name}-paper"] = {**method.paper, "method": name}
            found[f"{name}-fast"] = {**method.paper, **method.fast, "method": name}
    return found
