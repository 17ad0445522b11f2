"""Fast paths equal the step in float32, eager and contiguous."""

from contextlib import nullcontext

import pytest
import torch
from torch import nn

from advcontrast import ACLTrainer, NTXentLoss, PGDAttack, convert_to_dual_bn

# Relative distances: of the loss, of the gradients of all parameters as one vector, of each running statistic.
TOLERANCE = {
    "channels last": (1e-6, 1e-4, 1e-5),
    "folded": (1e-6, 1e-4, 1e-5),
    "tiled": (1e-6, 1e-5, 1e-6),
    "aot_eager": (1e-6, 1e-5, 1e-6),
    "inductor": (1e-5, 1e-3, 1e-5),
    "bf16": (1e-2, 0.25, 1e-2),
}


@pytest.fixture(autouse=True)
def _fresh_compiler():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def step(mode, path=""):
    """Return the loss, the gradients and the running statistics of a step from fixed weights."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for before, after in ((3, 16), (16, 32), (32, 64)):
        layers += [nn.Conv2d(before, after, 3, 2, 1, bias=False), nn.BatchNorm2d(after), nn.ReLU()]
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 64), nn.BatchNorm1d(64)]
    model = convert_to_dual_bn(nn.Sequential(*layers))
    layout = torch.channels_last if path == "channels last" else torch.contiguous_format
    attack = PGDAttack(steps=2, random_start=False)
    loss = NTXentLoss(tile=5 if path == "tiled" else None)
    acl = ACLTrainer(model.to(memory_format=layout), mode=mode, attack=attack, loss=loss)
    if path in ("aot_eager", "inductor"):
        acl.model.compile(backend=path)
    x1, x2 = (torch.rand(32, 3, 16, 16).contiguous(memory_format=layout) for _ in range(2))
    with torch.autocast("cpu", torch.bfloat16, enabled=path == "bf16"):
        found = acl(x1, x2).loss
    found.backward()
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in acl.parameters()]
    return found.detach(), gradients, [buffer.clone() for name, buffer in acl.named_buffers() if "running" in name]


def distance(found, expected):
    """Return the distance of two vectors made of many tensors, relative to the length of the second."""
    ours, theirs = (torch.cat([tensor.flatten() for tensor in tensors]).double() for tensors in (found, expected))
    return ((ours - theirs).norm() / theirs.norm().clamp_min(1e-12)).item()


@pytest.mark.parametrize("path", ["channels last", "tiled", "aot_eager", "bf16"])
@pytest.mark.parametrize("mode", ["S2S", "A2A", "A2S", "DS"])
@pytest.mark.sample(8)
def test_path_agrees_with_the_plain_one(mode, path):
    agrees(step(mode, path), step(mode), TOLERANCE[path])


@pytest.mark.parametrize("mode", ["A2A", "A2S", "DS"])
def test_folded_norms_agree_with_norms_that_stay(mode, monkeypatch):
    found = step(mode)
    monkeypatch.setattr("advcontrast.strategies.step.folded", lambda value, *_: nullcontext(value))
    expected = step(mode)
    agrees(found, expected, TOLERANCE["folded"])


@pytest.mark.nightly
def test_compiled_step_agrees_with_the_plain_one():
    agrees(step("DS", "inductor"), step("DS"), TOLERANCE["inductor"])


def agrees(found, expected, tolerance):
    loss, gradients, statistics = tolerance
    assert distance(found[:1], expected[:1]) <= loss
    assert distance(found[1], expected[1]) <= gradients
    assert max(distance([a], [b]) for a, b in zip(found[2], expected[2], strict=True)) <= statistics
