"""Attacks that keep their perturbations from one batch to the next."""

import copy
import math
import re

import pytest
import torch
from torch import nn

from advcontrast import ACLTrainer, ContrastivePairAugment, PGDAttack, convert_to_dual_bn
from advcontrast.attacks import FreeAttack, WarmStart
from advcontrast.functional import linf_box
from advcontrast.strategies.supervised import AdversarialTrainer
from tests.engine.learners import acl, images, same, train, weights

EPS = 0.25


def batch(n=4, *, seed=0):
    return torch.rand(n, 3, 4, 4, generator=torch.Generator().manual_seed(seed))


def brighter(x):
    return x.flatten(1).sum(1)


def inside(adv, x, eps=EPS):
    lower, upper = linf_box(x, eps)
    return bool(((adv >= lower) & (adv <= upper)).all())


def one_step(size=EPS / 2, **settings):
    return PGDAttack(eps=EPS, step_size=size, steps=1, random_start=False, **settings)


def test_warm_start_begins_as_the_attack_alone():
    x = batch()
    assert torch.equal(WarmStart(one_step())(brighter, x), one_step()(brighter, x))


def test_warm_start_goes_on_from_the_last_batch():
    warm, x, other = WarmStart(one_step()), batch(), batch(seed=1)
    first = warm(brighter, x)
    expected = one_step()(brighter, other, start=other + (first - x))
    assert torch.equal(warm(brighter, other), expected)
    assert not torch.equal(expected, one_step()(brighter, other))


def test_warm_start_stays_in_the_ball_of_the_new_images():
    warm = WarmStart(PGDAttack(eps=EPS, step_size=EPS, steps=1))
    for seed in range(4):
        x = batch(seed=seed)
        assert inside(warm(lambda x: (x * x).flatten(1).sum(1), x), x)


def test_shorter_batch_uses_and_renews_the_first_perturbations_only():
    warm, x = WarmStart(one_step()), batch(4)
    kept = warm(lambda x: brighter(x) * torch.tensor([1.0, 1.0, -1.0, -1.0]), x) - x
    expected = one_step()(brighter, x[:2], start=x[:2] + kept[:2])
    assert torch.equal(warm(brighter, x[:2]), expected)
    assert torch.equal(warm.recall(x), torch.cat([expected - x[:2], kept[2:]]))


@pytest.mark.parametrize("other", [batch(6), torch.rand(4, 3, 5, 5), batch(4).double()], ids=["more", "size", "dtype"])
def test_batch_of_another_kind_starts_anew(other):
    warm = WarmStart(one_step())
    warm(brighter, batch(4))
    assert torch.equal(warm(brighter, other), one_step()(brighter, other))


def test_warm_start_takes_a_generator():
    x = batch()
    attacks = [WarmStart(PGDAttack(eps=EPS, steps=0)) for _ in range(2)]
    first, second = (attack(brighter, x, generator=torch.Generator().manual_seed(3)) for attack in attacks)
    assert torch.equal(first, second)


def test_warm_start_refuses_what_is_no_pgd():
    text = "WarmStart: expected attack to be"
    with pytest.raises(TypeError, match=re.escape(text)):
        WarmStart(0.5)


BAD_IMAGES = {
    "a string": "x",
    "a number": torch.rand(()),
    "half": torch.rand(2, 3).half(),
    "bright": torch.full((2, 3), 2.0),
}


@pytest.mark.parametrize("x", BAD_IMAGES.values(), ids=BAD_IMAGES)
def test_bad_images_leave_the_perturbations_alone(x):
    warm, good = WarmStart(one_step()), batch()
    warm(brighter, good)
    before = warm.recall(good).clone()
    with pytest.raises((TypeError, ValueError), match="PGDAttack: expected"):
        warm(brighter, x)
    assert torch.equal(warm.recall(good), before)


def test_free_attack_takes_no_gradient_of_its_own():
    calls = []
    FreeAttack(eps=EPS)(calls.append, batch())
    assert calls == []


def test_free_attack_steps_along_the_gradient_of_the_loss_that_is_differentiated():
    attack, x = FreeAttack(eps=EPS, step_size=0.1), torch.full((2, 3, 4, 4), 0.5)
    first = attack(brighter, x)
    weight = torch.randn(3, 4, 4, generator=torch.Generator().manual_seed(0))
    (first * weight).sum().backward()
    lower, upper = linf_box(x, EPS)
    expected = (first.detach() + 0.1 * weight.sign()).clamp(lower, upper)
    assert torch.allclose(attack(brighter, x), expected, atol=1e-6)


def test_free_attack_steps_along_the_direction_of_the_gradient_in_l2():
    attack, x = FreeAttack(eps=EPS, step_size=0.1, norm="l2"), torch.full((2, 3, 4, 4), 0.5)
    first = attack(brighter, x)
    first.sum().backward()
    second = attack(brighter, x).detach()
    delta = first.detach() + 0.1 / math.sqrt(48) - x
    length = delta.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    assert torch.allclose(second - x, delta * (EPS / length).clamp(max=1), atol=1e-4)


def test_free_attack_starts_inside_the_ball_and_stays_there():
    attack = FreeAttack(eps=EPS, step_size=2 * EPS)
    for seed in range(4):
        x = batch(seed=seed)
        adv = attack(brighter, x)
        assert inside(adv.detach(), x)
        brighter(adv).sum().backward()


def test_free_attack_starts_at_random():
    x = torch.full((1, 3, 32, 32), 0.5)
    spread = (FreeAttack(eps=EPS)(brighter, x, generator=torch.Generator().manual_seed(0)) - x).detach()
    assert spread.std().item() == pytest.approx(EPS / math.sqrt(3), rel=0.05)


def test_gradient_that_overflowed_leaves_the_perturbation_where_it_is():
    attack, x = FreeAttack(eps=EPS), batch()
    first = attack(brighter, x)
    (first * torch.tensor(math.inf)).sum().backward()
    assert torch.equal(attack(brighter, x), first)


def test_no_step_is_taken_without_a_gradient():
    attack, x = FreeAttack(eps=EPS), batch()
    with torch.no_grad():
        first = attack(brighter, x)
        assert torch.equal(attack(brighter, x), first)


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"eps": 8}, "FreeAttack: expected eps within"),
        ({"step_size": 0}, "FreeAttack: expected step_size to be"),
        ({"norm": "l1"}, "FreeAttack: expected norm to be"),
        ({"bounds": (1.0, 0.0)}, "FreeAttack: expected bounds (low, high) with low < high"),
    ],
)
def test_free_attack_refuses(settings, text):
    with pytest.raises(ValueError, match=re.escape(text)):
        FreeAttack(**settings)


@pytest.mark.parametrize("x", BAD_IMAGES.values(), ids=BAD_IMAGES)
def test_free_attack_refuses_bad_images(x):
    with pytest.raises((TypeError, ValueError), match="FreeAttack: expected"):
        FreeAttack(eps=EPS)(brighter, x)


@pytest.mark.parametrize("attack", [WarmStart(one_step()), FreeAttack(eps=EPS)], ids=["warm", "free"])
def test_perturbations_travel_in_the_state_dict(attack):
    attack, x = copy.deepcopy(attack), batch()
    attack(brighter, x).sum()
    fresh = copy.deepcopy(attack)
    fresh._perturbations = None
    fresh.load_state_dict(attack.state_dict())
    assert torch.equal(fresh.recall(x), attack.recall(x))


@pytest.mark.parametrize("attack", [WarmStart(one_step(8 / 255)), FreeAttack()], ids=["warm", "free"])
@pytest.mark.parametrize("save_every", [None, 2])
def test_resumed_training_goes_on_with_the_perturbations(attack, save_every, tmp_path):
    def run(folder, epochs):
        learner = acl(attack=copy.deepcopy(attack))
        torch.manual_seed(0)
        train(learner, images(), epochs=epochs, folder=folder, save_every=save_every)
        return weights_of(learner)

    whole = run(tmp_path / "whole", 2)
    learner = acl(attack=copy.deepcopy(attack))
    torch.manual_seed(0)
    with pytest.raises(KeyboardInterrupt):
        train(learner, images(), folder=tmp_path / "cut", save_every=save_every, schedule=Cut(4))
    torch.manual_seed(5)
    learner = acl(attack=copy.deepcopy(attack))
    train(learner, images(), folder=tmp_path / "cut", save_every=save_every, schedule=Cut(None))
    assert same(weights_of(learner), whole)


class Cut:
    """A schedule that interrupts the run before a step."""

    def __init__(self, stop):
        self.stop = stop

    def __repr__(self):
        return "Halving()"

    def __call__(self, step):
        if step == self.stop:
            raise KeyboardInterrupt
        return 0.5 ** (step / 4)


def weights_of(learner):
    return {name: copy.deepcopy(value) for name, value in learner.state_dict().items()}


@pytest.mark.parametrize("mode", ["A2A", "A2S", "DS"])
def test_training_with_free_gradients_moves_the_perturbations_of_every_attacked_view(mode):
    learner = acl(mode, attack=FreeAttack())
    learner.train()
    x = images(6)
    learner(x)
    before = learner.attack._perturbations.clone()
    learner(x).loss.backward()
    after = learner.attack._perturbations
    assert len(after) == (6 if mode == "A2S" else 12)
    assert bool((after != before).flatten(1).any(1).all())


def test_supervised_training_takes_free_gradients_too():
    model = nn.Sequential(nn.Flatten(), nn.Linear(48, 3))
    trainer = AdversarialTrainer(model, attack=FreeAttack(eps=EPS))
    x, y = batch(), torch.tensor([0, 1, 2, 0])
    trainer(x, y).loss.backward()
    first = trainer.attack.recall(x).clone()
    trainer(x, y).loss.backward()
    assert not torch.equal(trainer.attack.recall(x), first)


def test_free_step_costs_no_pass_of_its_own():
    passes = []
    model = convert_to_dual_bn(nn.Sequential(nn.Flatten(), nn.Linear(48, 8), nn.BatchNorm1d(8)))
    model.register_forward_hook(lambda *_: passes.append(1))
    learner = ACLTrainer(model, attack=FreeAttack(), augment=ContrastivePairAugment(4))
    learner(batch()).loss.backward()
    assert len(passes) == 2


def test_weights_are_not_changed_by_the_state_of_an_attack():
    learner = acl(attack=FreeAttack())
    assert "attack._extra_state" in learner.state_dict()
    assert all(isinstance(value, torch.Tensor) for value in weights(learner.model).values())
