"""Two processes train like one, and DDP copes with every mode."""

import warnings
from typing import get_args

import pytest
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel as DDP

from advcontrast import ACLTrainer, NTXentLoss, PGDAttack
from advcontrast._types import Mode
from tests.ranks import WORLD_SIZE
from tests.strategies.networks import gradients, network, views

pytestmark = pytest.mark.distributed

MODES = get_args(Mode)
DDP_FLAGS = {"default": {}, "unused": {"find_unused_parameters": True}, "static": {"static_graph": True}}
TOLERANCE = 1e-14  # largest measured difference: 2.2e-16


def trainer(mode, norm, **settings):
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "ACLTrainer: expected dual batch norms")
        return ACLTrainer(network(norm, dtype=torch.float64), mode=mode, **settings)


def gathering(mode):
    return trainer(mode, None, loss=NTXentLoss(gather=True), attack=PGDAttack(random_start=False))


def share(batch):
    """Return this rank's part of a batch."""
    return batch.chunk(WORLD_SIZE)[dist.get_rank()]


def gradients_of_a_rank(mode):
    acl = gathering(mode)
    ddp = DDP(acl)
    out = ddp(*map(share, views(8, dtype=torch.float64)))
    out.loss.backward()
    return out.loss.item(), {name: gradient.tolist() for name, gradient in gradients(acl).items()}


def train_on_a_rank(mode, alpha, norm, flags):
    acl = trainer(mode, norm, attack=PGDAttack(steps=1), alpha=alpha)
    ddp = DDP(acl, **DDP_FLAGS[flags])
    optimizer = torch.optim.SGD(ddp.parameters(), lr=0.1)
    for step in range(3):
        out = ddp(*map(share, views(8, dtype=torch.float64, seed=step)))
        out.loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return type(out).__name__, {name: parameter.tolist() for name, parameter in acl.named_parameters()}


@pytest.mark.parametrize("mode", MODES)
def test_gradients_of_two_processes_are_those_of_one(ranks, mode):
    acl = gathering(mode)
    out = acl(*views(8, dtype=torch.float64))
    out.loss.backward()
    losses, theirs = zip(*ranks.run(gradients_of_a_rank, mode), strict=True)
    assert abs(sum(losses) / WORLD_SIZE - out.loss.item()) < TOLERANCE
    for name, gradient in gradients(acl).items():
        for rank in range(WORLD_SIZE):
            actual = torch.tensor(theirs[rank][name], dtype=torch.float64)
            torch.testing.assert_close(actual, gradient, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("flags", DDP_FLAGS)
@pytest.mark.parametrize("mode", MODES)
def test_three_steps_with_dual_norms(ranks, mode, flags):
    (first, ours), (second, theirs) = ranks.run(train_on_a_rank, mode, 1.0, "dual", flags)
    assert first == second == "StepOutput"
    assert ours == theirs


@pytest.mark.parametrize("flags", DDP_FLAGS)
def test_three_steps_of_a_dual_stream_without_its_adversarial_half(ranks, flags):
    (_, ours), (_, theirs) = ranks.run(train_on_a_rank, "DS", 0.0, "dual", flags)
    assert ours == theirs


@pytest.mark.parametrize("mode", MODES)
def test_three_steps_with_single_norms(ranks, mode):
    (_, ours), (_, theirs) = ranks.run(train_on_a_rank, mode, 1.0, "single", "default")
    assert ours == theirs


@pytest.mark.parametrize(("mode", "idle"), [("S2S", "adv"), ("A2A", "clean")])
def test_the_idle_branch_does_not_move(ranks, mode, idle):
    (_, trained), _ = ranks.run(train_on_a_rank, mode, 1.0, "dual", "default")
    start = {name: parameter.tolist() for name, parameter in trainer(mode, "dual").named_parameters()}
    assert {name for name in trained if trained[name] == start[name]} >= {n for n in trained if f".{idle}." in n}
    assert all(trained[name] != start[name] for name in trained if name.endswith("weight") and f".{idle}." not in name)
