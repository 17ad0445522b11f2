"""One forward pass for both streams of a dual network, against two.

The clean and the adversarial views of a step can pass through the network together if every dual norm sends the first
half of the batch through one branch and the second half through the other. The library makes two passes; this measures
one. Agreement, without TF32: the loss, all gradients and all running statistics, to 1e-3, and to 5e-2 where
compiled: gradients of an untrained network are small differences of large numbers.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from advcontrast import bn_branch
from advcontrast._memory_format import choose_memory_format
from advcontrast._modes import without_tf32
from advcontrast.functional import nt_xent
from advcontrast.norm import DualBatchNorm
from benchmarks.timing.sidebyside import Candidate, Settings, Table, agree
from benchmarks.timing.step import network


class _Mixed(nn.Module):
    """A dual norm whose first half of the batch is clean and whose second half is adversarial."""

    def __init__(self, norm: DualBatchNorm) -> None:
        super().__init__()
        self.clean, self.adv = norm.clean, norm.adv

    def forward(self, x: Tensor) -> Tensor:
        """Normalise each half with its own branch."""
        clean, adv = x.chunk(2)
        return torch.cat([self.clean(clean), self.adv(adv)])


def mixed(model: nn.Module) -> nn.Module:
    """Replace every dual norm by a mixed one."""
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if isinstance(child, DualBatchNorm):
                setattr(parent, name, _Mixed(child))
    return model


def loss_of(z: Tensor) -> Tensor:
    """Return the loss of the two views of a batch."""
    return nt_xent(*z.chunk(2))


def tables(settings: Settings) -> list[Table]:
    """Return the passes at several batch sizes."""
    gpu = settings.device.type != "cpu"
    width = 4 if settings.quick else 64 if gpu else 16
    about = f"Forward and backward pass of both streams, without the attack: ResNet-18 of width {width}, channels last."
    table = Table("One forward pass for both streams", about, "images")
    for pairs in (4,) if settings.quick else (32, 128, 512) if gpu else (8, 32, 128):
        torch.compiler.reset()  # PyTorch compiles a function only so many times
        torch.manual_seed(1)
        views = torch.rand(4 * pairs, 3, 32, 32, device=settings.device)
        candidates: list[Candidate] = []
        expected: list[Tensor] = []
        for compiled in (False, True):
            for together in (False, True):
                model = network(width, settings.device)
                x = views.contiguous(memory_format=choose_memory_format(model))
                model = mixed(model) if together else model
                if compiled:
                    model.compile()

                def step(model: nn.Module = model, together: bool = together, x: Tensor = x) -> Tensor:
                    model.zero_grad()
                    if together:
                        clean, adv = model(x).chunk(2)
                    else:
                        half = x.chunk(2)
                        with bn_branch(model, "clean"):
                            clean = model(half[0])
                        with bn_branch(model, "adv"):
                            adv = model(half[1])
                    loss = loss_of(clean) + loss_of(adv)
                    loss.backward()
                    return loss

                with without_tf32():
                    loss = step()
                gradients = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
                statistics = [buffer for name, buffer in model.named_buffers() if "running" in name]
                found = [loss, torch.cat(gradients), torch.cat(statistics)]
                expected = expected or found
                name = f"{'one pass' if together else 'two passes'}{', compiled' if compiled else ''}"
                candidates.append(Candidate(name, step, agree(name, found, expected, 5e-2 if compiled else 1e-3)))
        table.race(candidates, settings, items=pairs, setting=f"{pairs} images")
    return [table]
