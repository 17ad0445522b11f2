"""The cost of a training step, counted against counts made by hand."""

import re
import warnings

import pytest
import torch
from torch import nn

from advcontrast import ACLTrainer, ContrastivePairAugment, PGDAttack, convert_to_dual_bn
from advcontrast.attacks import FreeAttack
from advcontrast.engine import forward_equivalents
from advcontrast.strategies.supervised import AdversarialTrainer, StandardTrainer
from advcontrast.strategies.trades import TRADESTrainer
from tests.engine.learners import same


def network(out=2):
    """Return a network in which the first layer, which has no input gradient, hardly counts."""
    return nn.Sequential(
        nn.Conv2d(3, 2, 1, bias=False),
        nn.Conv2d(2, 64, 3, padding=1),
        nn.BatchNorm2d(64),
        nn.ReLU(),
        *(nn.Conv2d(64, 64, 3, padding=1) for _ in range(3)),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(64, out),
    )


def learner(mode, steps):
    return ACLTrainer(convert_to_dual_bn(network()), mode=mode, attack=PGDAttack(steps=steps))


def views():
    return torch.rand(4, 3, 8, 8), torch.rand(4, 3, 8, 8)


@pytest.mark.parametrize(
    ("mode", "steps", "passes"),
    [("S2S", 5, 6), ("A2A", 5, 26), ("A2S", 5, 17), ("DS", 5, 32), ("DS", 1, 16), ("DS", 0, 12)],
)
def test_cost_is_that_of_the_passes_counted_by_hand(mode, steps, passes):
    assert forward_equivalents(learner(mode, steps), *views()) == pytest.approx(passes, rel=0.01)


def test_free_gradients_cost_nothing():
    acl = learner("DS", 5)
    acl.attack = FreeAttack()
    assert forward_equivalents(acl, *views()) == pytest.approx(12, rel=0.01)


@pytest.mark.parametrize(
    ("make", "passes"), [(StandardTrainer, 3), (AdversarialTrainer, 23), (TRADESTrainer, 27)], ids=str
)
def test_supervised_learners_are_counted_too(make, passes):
    found = forward_equivalents(make(network()), torch.rand(4, 3, 8, 8), torch.tensor([0, 1, 0, 1]))
    assert found == pytest.approx(passes, rel=0.01)


def test_images_of_another_size_than_the_views_are_no_matter():
    acl = learner("S2S", 0)
    acl.augment = ContrastivePairAugment(8)
    x = torch.randint(0, 256, (4, 3, 20, 20), dtype=torch.uint8)
    assert forward_equivalents(acl, x) == pytest.approx(6, rel=0.01)


class Ordered(nn.Module):
    """A network that takes more than images."""

    def __init__(self):
        super().__init__()
        self.body = network()

    def forward(self, x, order, *, reverse):
        return self.body(x[order.flip(0) if reverse else order])


def test_network_with_more_inputs_is_counted_too():
    class Learner(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = Ordered()

        def forward(self, x):
            return self.model(x, torch.arange(4), reverse=True).square().mean(), {}

    assert forward_equivalents(Learner(), torch.rand(4, 3, 8, 8)) == pytest.approx(3, rel=0.01)


def test_counting_leaves_no_trace():
    acl = learner("DS", 1)
    acl.train()
    before = {name: value.clone() for name, value in acl.state_dict().items()}
    state = torch.get_rng_state()
    forward_equivalents(acl, *views_of(7))
    assert same(acl.state_dict(), before)
    assert torch.equal(torch.get_rng_state(), state)
    assert acl.training
    assert all(p.grad is None for p in acl.parameters())
    assert not acl.model._forward_pre_hooks


def views_of(seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(4, 3, 8, 8, generator=generator), torch.rand(4, 3, 8, 8, generator=generator)


def test_counting_works_without_gradients():
    with torch.no_grad():
        assert forward_equivalents(learner("S2S", 0), *views()) == pytest.approx(6, rel=0.01)


@pytest.mark.parametrize(
    ("wrong", "kind", "text"),
    [
        (5, TypeError, "expected model to be an nn.Module, got int."),
        (
            nn.Linear(2, 2),
            ValueError,
            "expected learner.model, got none.",
        ),
    ],
)
def test_other_types_than_learners_are_refused(wrong, kind, text):
    with pytest.raises(kind, match=re.escape(f"forward_equivalents: {text}")):
        forward_equivalents(wrong, *views())


def test_network_with_nothing_to_count_is_refused():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        acl = ACLTrainer(nn.Sequential(nn.Flatten(), nn.BatchNorm1d(192)), mode="S2S")
    text = "forward_equivalents: expected learner.model with convolutions or matrix products"
    with pytest.raises(ValueError, match=re.escape(text)):
        forward_equivalents(acl, *views())


def test_batch_that_the_learner_cannot_take_is_refused():
    text = "forward_equivalents: expected a batch that the learner can train on"
    with pytest.raises(ValueError, match=f"^{text}"):
        forward_equivalents(learner("S2S", 0), *(view[:, :1] for view in views()))
