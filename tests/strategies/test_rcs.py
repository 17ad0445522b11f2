"""The coreset of RCS."""

import warnings
from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from advcontrast import ACLTrainer, ContrastivePairAugment, NTXentLoss, fit
from advcontrast.augment import Replay
from advcontrast.functional import nt_xent
from advcontrast.norm import bn_branch
from advcontrast.strategies import AdvCL, DeACL, RobustCoreset
from advcontrast.strategies.rcs import representational_divergence
from tests.ranks import WORLD_SIZE
from tests.strategies.methods import FEW, Identity, known, student, teacher
from tests.strategies.networks import flags, unlike_branches
from tests.strategies.test_methods import Stopped, optimizer, same, state

pytestmark = pytest.mark.filterwarnings(r"ignore:\w+. expected dual batch norms")


def images(n=30):
    return torch.rand(n, 3, 6, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def pair(x):
    return x, x.flip(3)


def linear():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Flatten(), nn.Linear(108, 5)).double()


def test_the_divergence_of_known_embeddings():
    z, z_adv = known(0).flatten(1), known(1).flatten(1)
    assert representational_divergence(z, z_adv).item() == pytest.approx(0.1471645172, abs=1e-9)


def greedy(model, x, batches, budget, rate):
    """Return the batches that are selected, from the formula, for a linear model."""
    weight, bias = (p.detach().clone().requires_grad_() for p in model.parameters())
    aside, chosen = x[:1], []

    def embed(x):
        return F.linear(x.flatten(1), weight, bias)

    def divergence():
        q, q_adv = (
            (z - z.min(1, keepdim=True)[0]) / (z.max(1, keepdim=True)[0] - z.min(1, keepdim=True)[0]) + 1e-8
            for z in (embed(aside), embed(aside * 0.5))
        )
        return (q_adv * (q_adv / q).log()).mean()

    slopes = [torch.autograd.grad(nt_xent(*map(embed, pair(x[batch]))), (weight, bias)) for batch in batches]
    for _ in range(budget):
        goal = torch.autograd.grad(divergence(), (weight, bias))
        gains = [sum((a * b).sum().item() for a, b in zip(slope, goal, strict=True)) for slope in slopes]
        best = max((i for i in range(len(batches)) if i not in chosen), key=lambda i: gains[i])
        chosen.append(best)
        with torch.no_grad():
            weight -= rate * slopes[best][0]
            bias -= rate * slopes[best][1]
    return chosen


@pytest.mark.parametrize("released", [False, True])
@pytest.mark.parametrize("rate", [0.01, 30.0])
def test_the_selection_is_greedy(released, rate, monkeypatch):
    """With the larger rate the head changes the order of the batches."""
    monkeypatch.setattr("advcontrast.strategies.rcs._RATE", rate)
    x, model = images(), linear()
    learner = ACLTrainer(model, mode="S2S", augment=pair)
    settings = {"attack": lambda objective, x: x * 0.5, "released": released, "fraction": 0.5, "batch_size": 2}
    selected = RobustCoreset(learner, x, every=1, **settings)(3, learner)
    order = 1 + torch.randperm(29, generator=torch.Generator().manual_seed(3))
    batches = order[:28].view(14, 2)
    expected = greedy(model, x, batches, 7, 2 * rate if released else rate)
    assert selected.tolist() == sorted(batches[expected].flatten().tolist())


def test_the_attack_of_the_divergence_maximises_it():
    def better(objective, x):
        found.extend([objective(x).item(), objective(x * 0.5).item()])
        return x

    found, x, model = [], images(), linear()
    learner = ACLTrainer(model, mode="S2S", augment=pair)
    RobustCoreset(learner, x, fraction=0.1, every=1, attack=better)(1, learner)
    assert found[0] == 0
    assert found[1] == pytest.approx(representational_divergence(model(x[:1]), model(x[:1] * 0.5)).item())


def test_the_divergence_is_that_of_the_clean_and_the_shipped_branch():
    def looks(objective, x):
        found.append(objective(x).item())
        return x

    found, x = [], images()
    learner = ACLTrainer(unlike_branches(student("dual")), attack=FEW, augment=pair)
    RobustCoreset(learner, x, fraction=0.1, every=1, attack=looks)(1, learner)
    z = []
    for branch in ("clean", "adv"):
        with bn_branch(learner.model.eval(), branch):
            z.append(learner.model(x[:1]))
    assert found[0] == pytest.approx(representational_divergence(*z).item(), abs=1e-12)


def test_nothing_of_the_learner_changes():
    learner = ACLTrainer(student("dual"), attack=FEW, augment=pair, alpha=lambda step: 1.0)
    learner(images(4))
    select = RobustCoreset(learner, images(), fraction=0.5, every=1)
    before, modes = {name: value.clone() for name, value in state(learner).items()}, flags(learner)
    select(1, learner)
    assert same(before, state(learner))
    assert flags(learner) == modes
    assert learner._clock.calls == 1
    assert all(p.grad is None for p in learner.parameters())


def test_an_augmentation_keeps_its_state():
    learner = ACLTrainer(linear(), attack=FEW, augment=Replay(pair, times=50))
    learner(images(4))
    RobustCoreset(learner, images(), fraction=0.5, every=1)(1, learner)
    assert learner.augment.get_extra_state()["left"] == 49


def test_views_that_are_replayed_do_not_take_the_place_of_the_images():
    found = []
    for augment in (pair, Replay(pair, times=50)):
        learner = ACLTrainer(linear(), attack=FEW, augment=augment)
        learner(images(4))
        select = RobustCoreset(learner, images(), fraction=0.5, every=1, batch_size=4, attack=FEW)
        found.append(select(1, learner).tolist())
    assert found[0] == found[1]


def test_when_it_selects():
    learner = ACLTrainer(linear(), attack=FEW, augment=pair)
    select = RobustCoreset(learner, images(), fraction=0.3, every=3, warmup=2, batch_size=2)
    found = [select(epoch, learner) for epoch in range(1, 10)]
    assert found[:2] == [None, None]
    assert [torch.equal(a, b) for a, b in pairwise(found[2:])] == [True, True, False, True, True, False]
    assert all(len(indices) == len(indices.unique()) == 8 and 0 not in indices for indices in found[2:])


def test_a_learner_with_one_view():
    learner = DeACL(student("dual"), teacher(), attack=FEW)
    assert len(RobustCoreset(learner, images(), fraction=0.2, every=1)(1, learner)) == 5


def run(folder, stop=None):
    learner = ACLTrainer(student("dual"), attack=FEW, augment=pair)
    select = RobustCoreset(learner, images(), fraction=0.3, every=3, warmup=1, batch_size=4)

    def schedule(step):
        if step == stop:
            raise Stopped
        return 1.0

    fit(
        learner,
        images(),
        epochs=4,
        batch_size=4,
        optimizer=optimizer(learner),
        schedule=schedule,
        select_data=select,
        folder=folder,
        save_every=1,
    )
    return state(learner), select._selected


def test_an_interrupted_run_ends_with_the_same_bits(tmp_path):
    torch.manual_seed(0)
    whole, selected = run(tmp_path / "whole")
    for stop in (8, 10):  # epoch 1 has 7 steps, the others 2
        torch.manual_seed(0)
        with pytest.raises(Stopped):
            run(tmp_path / str(stop), stop=stop)
        torch.manual_seed(1)
        ours, again = run(tmp_path / str(stop))
        assert same(ours, whole)
        assert torch.equal(again, selected)


def resumes_on_a_rank(folder):
    whole, selected = run(folder / "whole")
    with pytest.raises(Stopped):
        run(folder / "stopped", stop=10)
    ours, again = run(folder / "stopped")
    return same(ours, whole) and torch.equal(again, selected), again.tolist()


@pytest.mark.distributed
@pytest.mark.nightly
def test_an_interrupted_run_of_two_processes_ends_with_the_same_bits(ranks, tmp_path):
    (first, selected), (second, others) = ranks.run(resumes_on_a_rank, tmp_path)
    assert first
    assert second
    assert selected == others


def selections():
    """Return what is selected in several epochs without randomness of views and attacks."""
    warnings.filterwarnings("ignore", r"\w+: expected dual batch norms")
    learner = ACLTrainer(student(None), loss=NTXentLoss(gather=True), attack=FEW, augment=pair)
    select = RobustCoreset(learner, images(), fraction=0.5, every=1, batch_size=4, attack=FEW)
    return [select(epoch, learner).tolist() for epoch in range(1, 6)]


@pytest.mark.distributed
def test_two_processes_select_like_one(ranks):
    assert ranks.run(selections) == [selections()] * WORLD_SIZE


def random_selection():
    learner = ACLTrainer(student("dual"), augment=ContrastivePairAugment(6))
    return RobustCoreset(learner, images(), fraction=0.5, every=1, batch_size=4)(1, learner).tolist()


@pytest.mark.distributed
def test_all_processes_select_the_same_images(ranks):
    first, second = ranks.run(random_selection)
    assert first == second


@pytest.mark.parametrize(
    ("settings", "error", "argument"),
    [
        ({"fraction": 0}, ValueError, "fraction"),
        ({"fraction": 1.5}, ValueError, "fraction"),
        ({"fraction": 0.04}, ValueError, "a coreset"),
        ({"every": 0}, ValueError, "every"),
        ({"warmup": -1}, ValueError, "warmup"),
        ({"batch_size": 0}, ValueError, "batch_size"),
        ({"released": 1}, TypeError, "released"),
        ({"attack": 1}, TypeError, "attack"),
    ],
)
def test_wrong_settings(settings, error, argument):
    learner = ACLTrainer(linear(), augment=pair)
    with pytest.raises(error, match=f"^RobustCoreset: expected {argument}"):
        RobustCoreset(learner, images(), **{"fraction": 0.5, "every": 1, **settings})


@pytest.mark.parametrize(
    ("learner", "error", "argument"),
    [
        (nn.Linear(1, 1), TypeError, "learner"),
        (ACLTrainer(Identity(), mode="S2S"), ValueError, "a learner that is called with images"),
        (AdvCL(Identity(), [nn.Linear(3, 2)]), ValueError, "a learner that is called with images"),
        (ACLTrainer(Identity(), mode="S2S", augment=pair), ValueError, "a model with linear layers"),
    ],
)
def test_wrong_learners(learner, error, argument):
    with pytest.raises(error, match=f"^RobustCoreset: expected {argument}"):
        RobustCoreset(learner, images(), fraction=0.5, every=1)


def test_epochs_count_from_one():
    learner = ACLTrainer(linear(), augment=pair)
    with pytest.raises(ValueError, match=r"^RobustCoreset: expected epoch"):
        RobustCoreset(learner, images(), fraction=0.5, every=1)(0, learner)
