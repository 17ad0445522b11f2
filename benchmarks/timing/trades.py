"""A step of TRADES on a ResNet-18: the reference's, and TRADESTrainer's.

The step is that of ACL's finetuning: PGD-10 on the divergence from the prediction for the clean image, in eval mode;
the cross-entropy of the clean images and 6 times the divergence, in train mode; SGD. The reference, restated here,
predicts the clean image again in each step of its attack, and stores the activations for a gradient. It starts
0.001 N(0, 1) from the image, the trainer anywhere in the ball. Before they are timed, all take loss and gradient of the
same weights and 16 images, from the start of the reference. This is in float64, since sign steps amplify rounding
errors: losses must agree to 1e-9 and the gradient of all weights to 1e-6, relative.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from advcontrast._memory_format import choose_memory_format
from advcontrast._modes import without_tf32
from advcontrast.attacks import PGDAttack
from advcontrast.models import resnet18
from advcontrast.strategies.trades import TRADESTrainer
from benchmarks.timing.sidebyside import Candidate, Settings, Table

EPS, STEP, BETA = 8 / 255, 2 / 255, 6.0
NAMES = ("reference", "advcontrast", "advcontrast, channels_last", "advcontrast, channels_last, compiled")
Loss = Callable[..., Tensor]


def tables(settings: Settings) -> list[Table]:
    """Return one table of the steps per second."""
    steps, batch = (2, 8) if settings.quick else (10, 128)
    width = 4 if settings.quick else 16 if settings.device.type == "cpu" else 64
    torch.manual_seed(0)
    model = resnet18(width=width).to(settings.device)
    x = torch.rand(batch, 3, 32, 32, device=settings.device)
    y = torch.randint(10, (batch,), device=settings.device)
    names = NAMES[:3] if settings.quick else NAMES
    agreement = agreements(names, model, steps, x[:16].double(), y[:16])
    candidates = []
    for name in names:
        own, loss = build(name, model, steps)
        optimizer = torch.optim.SGD(own.parameters(), 0.1, momentum=0.9, weight_decay=2e-4)
        candidates.append(Candidate(name, partial(step, loss, optimizer, x, y), agreement[name]))
    about = (
        f"One step with {batch} random images of 3 x 32 x 32, ResNet-18 of width {width}, PGD-{steps}, float32. "
        "Agreement is the difference to the reference, in float64 and from the same start, relative."
    )
    table = Table("TRADES step", about, "images")
    table.race(candidates, settings, items=batch)
    return [table]


def build(name: str, model: nn.Module, steps: int) -> tuple[nn.Module, Loss]:
    """Return a copy of the network and the loss that trains it."""
    model = copy.deepcopy(model)
    if name == "reference":
        return model, partial(reference, model, steps)
    layout = choose_memory_format(model) if "channels_last" in name else torch.contiguous_format
    called: Any = torch.compile(model, dynamic=False) if "compiled" in name else model
    attack = PGDAttack(eps=EPS, step_size=STEP, steps=steps)
    trainer = TRADESTrainer(called, attack=attack, beta=BETA).train()

    def loss(x: Tensor, y: Tensor, start: Tensor | None = None) -> Tensor:
        trainer.attack = attack if start is None else partial(attack, start=start)
        return trainer(x.contiguous(memory_format=layout), y).loss

    return model, loss


def reference(model: nn.Module, steps: int, x: Tensor, y: Tensor, start: Tensor | None = None) -> Tensor:
    """Return the loss of the reference."""
    divergence = nn.KLDivLoss(reduction="sum")
    model.eval()
    adv = x + 0.001 * torch.randn_like(x) if start is None else start.clone()
    for _ in range(steps):
        adv.requires_grad_()
        loss = divergence(F.log_softmax(model(adv), 1), F.softmax(model(x), 1))
        (gradient,) = torch.autograd.grad(loss, [adv])
        adv = adv.detach() + STEP * gradient.sign()
        adv = torch.min(torch.max(adv, x - EPS), x + EPS).clamp(0, 1)
    model.train()
    clean = model(x)
    robust = divergence(F.log_softmax(model(adv), 1), F.softmax(clean, 1)) / len(x)
    return F.cross_entropy(clean, y) + BETA * robust


def step(loss: Loss, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor) -> None:
    """Make one step of training."""
    optimizer.zero_grad()
    loss(x, y).backward()
    optimizer.step()


@without_tf32()
def agreements(names: tuple[str, ...], model: nn.Module, steps: int, x: Tensor, y: Tensor) -> dict[str, str]:
    """Return the differences of loss and gradient to those of the reference, as text."""
    start = (x + 0.001 * torch.randn_like(x)).clamp(0, 1)
    found = {}
    for name in names:
        own, loss = build(name, copy.deepcopy(model).double(), steps)
        value = loss(x, y, start)
        gradients = torch.autograd.grad(value, list(own.parameters()))
        found[name] = value.detach(), torch.cat([gradient.flatten() for gradient in gradients])
    words = {}
    for name, pair in found.items():
        loss, gradient = (((a - b).norm() / b.norm()).item() for a, b in zip(pair, found["reference"], strict=True))
        words[name] = f"loss {loss:.0e}, gradient {gradient:.0e}"
        if loss > 1e-9 or gradient > 1e-6:
            raise RuntimeError(f"{name} has computed something else: {words[name]}")
    return words
