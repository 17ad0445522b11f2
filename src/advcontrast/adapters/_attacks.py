"""Contexts for attacks of other libraries: the model and labels of an objective, seeded random states."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor, nn

from .._checks import check_tensor, complaint, type_name
from .._random import preserve_rng_state
from .._types import Objective
from ..attacks import under_attack
from ..attacks.pgd import check_call
from ..evaluation.inputs import checked_logits
from ..norm import DualNorm, bn_branch


@contextmanager
def attack_context(model: nn.Module, branch: str | None = None) -> Iterator[None]:
    """Put a model into the state for an attack, on a branch of its dual norms or on the active one."""
    if branch is not None and not any(isinstance(module, DualNorm) for module in model.modules()):
        raise ValueError(complaint("branch", "None for a network with single norms", repr(branch), "Leave it out"))
    with under_attack(model), nullcontext() if branch is None else bn_branch(model, branch):
        yield


@contextmanager
def seeded(generator: torch.Generator | None) -> Iterator[None]:
    """Seed torch, Python and NumPy from a generator or the global one, and restore their states on exit."""
    source = torch.default_generator if generator is None else generator
    seed = int(torch.randint(2**62, (), generator=source, device=source.device))
    with preserve_rng_state(seed), torch.inference_mode(False), torch.enable_grad():
        yield


def model_and_labels(
    owner: str, objective: Objective, x: Tensor, generator: torch.Generator | None
) -> tuple[nn.Module, Tensor, Tensor]:
    """Return the model of the objective, the detached images, and the labels, after checks."""
    check_call(owner, objective, x, generator, (0.0, 1.0))
    model, y = getattr(objective, "model", None), getattr(objective, "y", None)
    if not isinstance(model, nn.Module) or not isinstance(y, Tensor):
        rule = "an objective with a model and labels, such as ClassificationObjective(model, y)"
        remedy = "Use it in robust_accuracy or AdversarialTrainer; without labels use an attack of advcontrast"
        raise TypeError(complaint(owner, rule, type_name(objective), remedy))
    check_tensor(owner, "labels", y, (torch.int64,), remedy="Pass one class index per image")
    if y.shape != x.shape[:1]:
        raise ValueError(complaint(owner, f"{len(x)} labels, one per image", f"{list(y.shape)}", "Pass labels [N]"))
    with attack_context(model), torch.no_grad():  # otherwise errors are raised deep inside the other library
        checked_logits(owner, model, x[:1], y)
    return model, x.detach().as_subclass(Tensor), y.as_subclass(Tensor)
