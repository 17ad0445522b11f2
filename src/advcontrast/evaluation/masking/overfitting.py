"""Catastrophic overfitting, the failure of training with attacks of one step."""

import copy
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..._checks import check_copyable, check_int, check_module, check_real, complaint
from ..._modes import eval_mode, without_tf32
from ..._random import preserve_rng_state
from ...attacks import PGDAttack

_OWNER = "catastrophic_overfitting"


@dataclass(frozen=True)
class Overfitting:
    """Losses of a learner without attack, under an attack of one step and under one of many steps.

    Attributes:
        clean: loss on the images without attack.
        single: loss under an attack of one step with a random start.
        strong: loss under an attack of many steps in the same ball.
    """

    clean: float
    single: float
    strong: float

    @property
    def share(self) -> float:
        """The gain of one step divided by that of many, (single - clean) / (strong - clean); 1 without a gain."""
        gain = self.strong - self.clean
        return (self.single - self.clean) / gain if gain > 0 else 1.0

    @property
    def alarm(self) -> bool:
        """``True`` if one step reaches less than a quarter of the gain, which exceeds a tenth of the loss.

        On a contrastive loss one step usually reaches about half.
        """
        return self.share < 0.25 and self.strong - self.clean > 0.1 * abs(self.clean)


def catastrophic_overfitting(
    learner: nn.Module, *batch: Tensor, eps: float = 8 / 255, steps: int = 10, seed: int = 0
) -> Overfitting:
    """Compare a single-step attack on a learner with a strong one.

    A network trained with attacks of one step can lose all robustness within one epoch while its training loss falls:
    the loss surface becomes steep only out of reach of one step. One step then increases the loss far less than many.
    The losses are measured on a copy in eval mode, for the same views and random starts, without a change of the global
    random state. Reference: Wong et al., "Fast is better than free: Revisiting adversarial training", ICLR 2020.

    Args:
        learner: a module as for :func:`advcontrast.engine.fit`, with the attribute ``attack``.
        batch: its input, for example images.
        eps: L-infinity radius of both attacks, in units of the images: the one of the training.
        steps: steps of the strong attack, each of a quarter of the radius; at least 2.
        seed: seed of views and random starts.

    Raises:
        ValueError: the learner has no attack, does not call it for this batch, or a number is out of range.
        TypeError: an argument has the wrong type.
        RuntimeError: the learner cannot be copied.

    Example:
        For a linear loss one step is almost as good as many.

        >>> class Mean(torch.nn.Module):
        ...     attack = None
        ...     def forward(self, x):
        ...         return self.attack(lambda x: x.flatten(1).mean(1), x).mean(), {}
        >>> catastrophic_overfitting(Mean(), torch.full((2, 1, 4, 4), 0.5), eps=0.25).alarm
        False
    """
    check_module(_OWNER, learner)
    if not hasattr(learner, "attack"):
        remedy = "Pass a learner that calls self.attack, such as ACLTrainer"
        raise ValueError(complaint(_OWNER, "a learner with an attack", type(learner).__name__, remedy))
    check_real(_OWNER, "eps", eps, low=0, above=True, remedy="For images in [0, 1] it is usually 8/255")
    check_int(_OWNER, "steps", steps, low=2, remedy="10 are usual")
    check_int(_OWNER, "seed", seed, low=0, remedy="Pass any number from 0")
    check_copyable(_OWNER, learner)
    copied = copy.deepcopy(learner)
    clean = _loss(copied, PGDAttack(eps=0.0, steps=0), batch, seed)
    single = _loss(copied, PGDAttack(eps=eps, step_size=1.25 * eps, steps=1), batch, seed)
    attack = _Counted(eps=eps, step_size=eps / 4, steps=steps)
    strong = _loss(copied, attack, batch, seed)
    if not attack.calls:
        remedy = "Pass a learner that attacks, such as ACLTrainer(model) in another mode than S2S"
        raise ValueError(complaint(_OWNER, "a learner that calls self.attack", type(learner).__name__, remedy))
    return Overfitting(clean, single, strong)


@dataclass(frozen=True, kw_only=True)
class _Counted(PGDAttack):
    calls: list[None] = field(default_factory=list)

    def __call__(self, *args: Any, **settings: Any) -> Tensor:
        self.calls.append(None)
        return super().__call__(*args, **settings)


def _loss(learner: Any, attack: PGDAttack, batch: tuple[Tensor, ...], seed: int) -> float:
    if isinstance(learner.attack, nn.Module):
        del learner.attack  # otherwise only a module can be assigned
    learner.attack = attack
    with preserve_rng_state(seed), eval_mode(learner), without_tf32(), torch.no_grad():
        return float(learner(*batch)[0])
