"""Adapters for foolbox: models of this library for its attacks, and its attacks for this library."""

import warnings
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .._checks import check_bounds, check_module, check_real, check_type, complaint
from .._types import Objective
from ..attacks.pgd import explains_calls
from ..evaluation.inputs import device_of
from ._attacks import attack_context, model_and_labels, seeded

try:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # foolbox uses old names of others
        from foolbox.attacks.base import Attack
        from foolbox.models.pytorch import PyTorchModel
except ImportError as error:
    raise ImportError(complaint(__name__, "foolbox", str(error), "Install it with pip install foolbox")) from error


class _View(nn.Module):
    def __init__(self, model: nn.Module, branch: str | None) -> None:
        super().__init__()
        self._attacked = (model, branch)  # in a tuple, out of reach of changes of mode and device

    def forward(self, x: Tensor) -> object:
        with attack_context(*self._attacked):
            return self._attacked[0](x)


def as_foolbox_model(
    model: nn.Module, *, branch: str | None = None, bounds: tuple[float, float] = (0.0, 1.0)
) -> PyTorchModel:
    """Wrap a model for foolbox without copying it: in eval mode, on a ``branch`` of its dual norms if one is named."""
    check_module("as_foolbox_model", model)
    check_bounds("as_foolbox_model", bounds)
    with attack_context(model, branch):
        return PyTorchModel(_View(model, branch).eval(), bounds, device_of(model))


@explains_calls
@dataclass(frozen=True)
class FoolboxAttack:
    """An attack of foolbox with the interface of this library; perturbations are clipped to ``eps``."""

    attack: Attack
    eps: float

    def __post_init__(self) -> None:
        check_type("FoolboxAttack", "attack", self.attack, Attack, remedy="Pass one of foolbox")
        check_real("FoolboxAttack", "eps", self.eps, low=0, remedy="For images in [0, 1] it is usually 8/255")

    def __call__(self, objective: Objective, x: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """Return adversarial versions of images in [0, 1], for the model and the labels of the objective."""
        model, x, y = model_and_labels("FoolboxAttack", objective, x, generator)
        with seeded(generator):
            return self.attack(as_foolbox_model(model), x.clamp(0, 1), y.clone(), epsilons=self.eps)[1]
