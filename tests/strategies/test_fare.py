"""FARE, Sim-CLIP and TeCoA: options, schedules of the radius, and errors."""

import copy

import pytest
import torch
from torch import nn

from advcontrast import PGDAttack, fit
from advcontrast.strategies import FARE, Scheduled, SimCLIP, Staircase, TeCoA
from tests.strategies.methods import FEW, METHODS, batch, student, teacher, vit

EVERY = ("FARE", "SimCLIP", "TeCoA")
LABELS = torch.arange(4) % 3


class Counting(nn.Module):
    """A network that counts the images that it gets in train mode."""

    def __init__(self, network):
        super().__init__()
        self.network, self.images = network, 0

    def forward(self, x):
        self.images += self.training * len(x)
        return self.network(x)


@pytest.mark.parametrize(("clean", "images"), [(0.0, 4), (1.0, 8), (lambda step: 0.0, 8)])
def test_clean_images_pass_only_where_they_may_count(clean, images):
    model = Counting(student("single"))
    FARE(model, teacher(), clean=clean, attack=FEW)(*batch(METHODS["FARE"]))
    assert model.images == images


def test_the_attack_needs_a_random_start_at_the_original():
    original, x = student(None).eval(), batch(METHODS["FARE"])[0]
    still, random = (
        FARE(copy.deepcopy(original), original, attack=PGDAttack(steps=2, random_start=start))(x).loss.item()
        for start in (False, True)
    )
    assert still == 0
    assert random > 0


@pytest.mark.parametrize("name", EVERY)
def test_the_default_attack_is_that_of_the_paper(name):
    attack = METHODS[name].make("single", attack=None).attack
    assert attack == PGDAttack(eps=4 / 255, step_size=1 / 255, steps=10)


def growing(radii):
    """Return an attack whose radius grows, which notes its radii."""

    def make(eps):
        radii.append(round(255 * eps, 6))
        return PGDAttack(eps=eps, step_size=eps / 4, steps=2)

    return Scheduled(make, Staircase(1 / 255, 5 / 255, steps=4))


@pytest.mark.parametrize("name", EVERY)
def test_the_radius_of_an_attack_follows_the_training_steps(name):
    method, radii = METHODS[name], []
    learner = method.make("single", attack=growing(radii))
    for mode in (True, False, True, True):
        learner.train(mode)(*batch(method))
    assert radii[1:] == [1, 2, 2, 3]  # the constructor tries the first one


class Stopped(Exception):
    """A run was interrupted."""


def test_a_run_with_a_growing_radius_is_resumed_exactly(tmp_path):
    def run(folder, stop=None):
        learner = METHODS["FARE"].make("single", attack=growing([]))
        sgd = torch.optim.SGD(learner.model.parameters(), lr=0.1)

        def schedule(step):
            if step == stop:
                raise Stopped
            return 1.0

        data = batch(METHODS["FARE"], 16)
        settings = {"epochs": 1, "batch_size": 4, "optimizer": sgd, "schedule": schedule, "save_every": folder and 1}
        fit(learner, data, folder=folder, **settings)
        return learner.model.state_dict()

    torch.manual_seed(0)
    whole = run(None)
    torch.manual_seed(0)
    with pytest.raises(Stopped):
        run(tmp_path, stop=2)
    torch.manual_seed(1)
    resumed = run(tmp_path)
    assert all(torch.equal(whole[name], value) for name, value in resumed.items())


def test_training_makes_a_transformer_robust():
    torch.manual_seed(0)
    original, x = vit(None).eval(), batch(METHODS["FARE"], 16)[0]
    learner = FARE(copy.deepcopy(original), original, clean=1.0, attack=PGDAttack(eps=0.2, step_size=0.05, steps=5))
    adam = torch.optim.AdamW(learner.model.parameters(), lr=3e-3)
    losses = []
    for _ in range(30):
        loss = learner(x).loss
        loss.backward()
        adam.step()
        adam.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]


@pytest.mark.parametrize(
    ("change", "error", "argument"),
    [
        ({"clean": -1.0}, ValueError, "clean"),
        ({"clean": lambda step: float("nan")}, ValueError, "clean"),
        ({"drift": -1.0}, ValueError, "drift"),
        ({"drift": 0.1}, ValueError, "clean > 0"),
        ({"teacher": teacher().train()}, ValueError, "teacher"),
    ],
)
def test_an_argument_of_fare_is_refused(change, error, argument):
    with pytest.raises(error, match=rf"^FARE: expected .*{argument}"):
        FARE(student("single"), **{"teacher": teacher(), **change})


@pytest.mark.parametrize(
    ("change", "error", "argument"),
    [
        ({"prototypes": [[1.0, 0.0]]}, TypeError, "prototypes"),
        ({"prototypes": torch.ones(5)}, ValueError, "prototypes"),
        ({"prototypes": torch.ones(1, 5)}, ValueError, "prototypes"),
        ({"prototypes": torch.full((3, 5), torch.nan)}, ValueError, "prototypes"),
        ({"scale": 0.0}, ValueError, "scale"),
    ],
)
def test_an_argument_of_tecoa_is_refused(change, error, argument):
    with pytest.raises(error, match=rf"^TeCoA: expected .*{argument}"):
        TeCoA(student("single"), **{"prototypes": torch.ones(3, 5), **change})


@pytest.mark.parametrize(
    ("labels", "error", "argument"),
    [
        (torch.tensor([0, 1, 2, 3]), ValueError, "labels"),
        (LABELS[:3], ValueError, "labels"),
        (LABELS.double(), TypeError, "labels"),
    ],
)
def test_labels_that_do_not_fit_are_refused_before_anything_moves(labels, error, argument):
    learner, (x, _) = METHODS["TeCoA"].make("single"), batch(METHODS["TeCoA"])
    before = copy.deepcopy(learner.state_dict())
    with pytest.raises(error, match=rf"^TeCoA: expected {argument} "):
        learner(x, labels)
    assert all(torch.equal(before[name], value) for name, value in learner.state_dict().items())


def test_outputs_of_another_size_are_refused_before_anything_moves():
    narrow = nn.Sequential(teacher(), nn.Linear(5, 3).double()).eval()
    x = batch(METHODS["FARE"])[0]
    for learner, rest in (
        (FARE(student("single"), narrow, attack=FEW), ()),
        (SimCLIP(student("single"), narrow, attack=FEW), ()),
        (TeCoA(student("single"), torch.ones(3, 4).double(), attack=FEW), (LABELS,)),
    ):
        before = copy.deepcopy(learner.state_dict())
        with pytest.raises(ValueError, match=rf"^{type(learner).__name__}: expected model .*to return embeddings"):
            learner(x, *rest)
        assert all(torch.equal(before[name], value) for name, value in learner.state_dict().items())
