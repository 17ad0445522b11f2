"""Adapters for torchattacks, in both directions. They do not import torchattacks."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from .. import _deprecated
from .._checks import check_callable, check_module, complaint
from .._types import Objective
from ..attacks import ClassificationObjective
from ..attacks.pgd import explains_calls
from ..evaluation.inputs import device_of
from ._attacks import attack_context, model_and_labels, seeded


@dataclass(frozen=True)
class AsTorchattack:
    """An attack of this library with the interface of torchattacks, ``attack(images, labels)``.

    The model is attacked in eval mode, on a ``branch`` of its dual norms if one is named, and restored afterwards. The
    labels are target classes where the attack is ``PGDAttack(minimize=True)``. It can be part of a ``MultiAttack``.
    """

    attack: Callable[..., Tensor]
    model: nn.Module = field(repr=False)
    branch: str | None = None

    def __post_init__(self) -> None:
        check_callable("AsTorchattack", "attack", self.attack, remedy="Pass PGDAttack(...)")
        check_module("AsTorchattack", self.model)
        with attack_context(self.model, self.branch):
            """There is such a branch."""

    def __call__(self, images: Tensor, labels: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """Return adversarial versions of ``images`` on the device of the model."""
        x, y = (part.to(device_of(self.model)) if isinstance(part, Tensor) else part for part in (images, labels))
        with attack_context(self.model, self.branch):
            return self.attack(ClassificationObjective(self.model, y), x, generator=generator)


@explains_calls
@dataclass(frozen=True)
class TorchattacksAttack:
    """An attack of torchattacks with the interface of this library, for ``robust_accuracy`` or for training."""

    attack: Any

    def __call__(self, objective: Objective, x: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """Return adversarial versions of images in [0, 1], for the model and the labels of the objective."""
        model, x, y = model_and_labels("TorchattacksAttack", objective, x, generator)
        if getattr(self.attack, "model", None) is not model or self.attack.normalization_used is not None:
            expected = "an attack on raw images and on the model that is attacked"
            remedy = "Build it with the model that is evaluated"
            raise ValueError(complaint("TorchattacksAttack", expected, repr(self.attack), remedy))
        self.attack.set_device(x.device)
        with attack_context(model), seeded(generator):
            adv: Tensor = self.attack(x.clone(), y.clone())
        return adv.detach()


_deprecated.serve_old_names(__name__)
