"""DynACL: schedules, momentum encoder and errors."""

import pytest
import torch

from advcontrast import ACLTrainer, PGDAttack
from advcontrast.strategies import DynACL, Invariance, Ramp, Scheduled, Staircase
from tests.strategies.methods import FEW, METHODS, Given, Identity, batch, known, student
from tests.strategies.networks import batches_seen

EPOCHS = (1, 49, 50, 51, 100, 101, 500, 951, 999, 1000)


def w(alpha):
    return (alpha - 1) / (alpha + 1)


@pytest.mark.parametrize(
    ("released", "values"),
    [
        (False, (0, 0, 0, 1, 1, 2, 9, 19, 19, 19)),
        (True, (0, 0, 1, 1, 2, 2, 10, 19, 19, 20)),
    ],
)
def test_the_weight_follows_the_table_of_the_paper(released, values):
    for length in (1, 3):  # steps of an epoch
        alpha = Ramp(1000 * length, 50 * length, released)
        for step in range(length):
            found = [w(alpha((epoch - 1) * length + step)) for epoch in EPOCHS]
            assert found == pytest.approx([value / 30 for value in values], abs=1e-12)
        assert alpha(5000) == alpha(1000 * length - 1)


def test_a_learner_follows_both_schedules():
    strengths = []  # the first one is tried by the constructor
    learner = DynACL(
        student("dual"), steps=1000, every=50, attack=FEW, augment=lambda s: strengths.append(s) or (lambda x: (x, x))
    )
    for epoch in EPOCHS:
        learner.augment.set_extra_state({"calls": epoch - 1})
        learner.augment(torch.rand(2, 3, 6, 6))
    assert strengths[1:] == pytest.approx([1, 1, 1, 0.95, 0.95, 0.9, 0.55, 0.05, 0.05, 0.05])
    assert learner.alpha == Ramp(1000, 50)


def test_the_period_is_a_twentieth_by_default_and_at_least_a_step():
    assert DynACL(student("dual"), steps=1000, released=True).alpha == Ramp(1000, 50, released=True)
    assert DynACL(student("dual"), steps=5).alpha == Ramp(5, 1)


def test_a_scheduled_augmentation_is_taken_as_it_is():
    augment = Scheduled(lambda s: lambda x: (x, x), lambda step: 1.0)
    assert DynACL(student("dual"), steps=10, augment=augment).augment is augment


def test_the_momentum_encoder_follows_before_the_optimizer_steps():
    method = METHODS["DynACL"]
    learner = method.make("dual", decay=0.75)
    sgd = torch.optim.SGD(learner.model.parameters(), lr=0.5)
    for seed in range(2):
        before = [
            (3 * k + q) / 4 for k, q in zip(learner.momentum.parameters(), learner.model.parameters(), strict=True)
        ]
        learner(*batch(method, seed=seed)).loss.backward()
        sgd.step()
        for expected, k in zip(before, learner.momentum.parameters(), strict=True):
            torch.testing.assert_close(k, expected)
            assert k.grad is None
    weight = dict(learner.encoder().named_parameters())["0.weight"]
    assert torch.equal(weight, dict(learner.momentum.model.named_parameters())["0.weight"])


def test_each_network_sees_a_batch_on_each_branch():
    method = METHODS["DynACL"]
    learner = method.make("dual")
    learner(*batch(method))
    assert set(batches_seen(learner.model).values()) == {1}
    assert set(batches_seen(learner.momentum).values()) == {1}


def test_each_view_has_its_network_and_the_attack_runs_through_both():
    method = METHODS["DynACL"]
    x1, x2 = batch(method)
    moved = []

    def attack(objective, x):
        x_adv = PGDAttack(steps=1, random_start=False)(objective, x)
        moved.extend((x_adv != x).flatten(1).any(1).tolist())
        return x_adv

    learner = method.make("dual", attack=attack)
    inputs = {}
    for name in ("model", "momentum"):
        getattr(learner, name).register_forward_pre_hook(
            lambda _, x, name=name: inputs.setdefault(name, []).append(x[0])
        )
    learner(x1, x2)
    assert torch.equal(inputs["model"][0], x1)
    assert torch.equal(inputs["momentum"][0], x2)
    assert moved == [True] * 8


@pytest.mark.filterwarnings(r"ignore:\w+. expected dual batch norms")
def test_air_is_acl_with_the_same_schedules_and_a_term():
    strengths = []
    augment = Scheduled(lambda s: strengths.append(s) or (lambda x: (known(0), known(1))), Staircase(1, 0, 10, 2))
    terms = [Invariance(0.25, released=True)]
    learner = ACLTrainer(Identity(), alpha=Ramp(10, 2), augment=augment, attack=Given(known(2), known(3)), terms=terms)
    counts = {"_clock._extra_state": {"calls": 6}, "augment._extra_state": {"calls": 6}}
    learner.load_state_dict({**learner.state_dict(), **counts})
    assert 2 * learner(known(4)).loss.item() == pytest.approx(0.6520566312, abs=1e-9)
    assert strengths[1:] == pytest.approx([0.4])


@pytest.mark.parametrize(
    ("owner", "name", "change"),
    [("DynACL", "steps", {"steps": 0}), ("Ramp", "every", {"every": 0}), ("Momentum", "decay", {"decay": 2.0})],
)
def test_a_number_is_refused(owner, name, change):
    with pytest.raises(ValueError, match=rf"^{owner}: expected {name} "):
        DynACL(student("dual"), **{"steps": 10, **change})
