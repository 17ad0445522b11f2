"""Robust accuracy against eps, steps and restarts: curves that cannot rise."""

import copy
import dataclasses
import math
import re
from dataclasses import dataclass, field

import pytest
import torch
from torch import nn

from advcontrast import PGDAttack
from advcontrast.attacks.apgd import APGDAttack
from advcontrast.evaluation import accuracy, robust_accuracy
from advcontrast.evaluation.accuracy.curves import RobustCurve, robust_curve
from advcontrast.evaluation.uar import ElasticAttack

ATTACK = PGDAttack(eps=0.1, step_size=0.05, steps=3)
STILL = dataclasses.replace(ATTACK, random_start=False)
EPS = (0, 0.02, 0.05, 0.1, 0.2)


def images(n=40):
    generator = torch.Generator().manual_seed(5)
    return torch.rand(n, 3, 2, 2, generator=generator), torch.randint(4, (n,), generator=generator)


def batches(size=16):
    x, y = images()
    return list(zip(x.split(size), y.split(size), strict=True))


@pytest.fixture(scope="module")
def model():
    """A classifier that is right on a good part of the images, and not robust on all of those."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        network = nn.Sequential(nn.Flatten(), nn.Linear(12, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 4)).eval()
    x, y = images()
    optimizer = torch.optim.Adam(network.parameters(), lr=0.01)
    for _ in range(60):
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(x), y).backward()
        optimizer.step()
    return network


@dataclass(frozen=True, kw_only=True)
class Spy:
    """Records what it is asked for, and blackens the images where ``eps`` is one of ``breaks``."""

    eps: float = 0.1
    step_size: float = 0.025
    steps: int = 3
    restarts: int = 1
    breaks: tuple[float, ...] = ()
    calls: list = field(default_factory=list)

    def __call__(self, objective, x, *, generator):
        self.calls.append((self, len(x), objective(x).shape))
        return torch.zeros_like(x) if self.eps in self.breaks else x


PIXELS = torch.tensor([[0.1, 0.9], [0.2, 0.8], [0.6, 0.4], [0.3, 0.7]])  # the brighter pixel is the class
ONES = torch.ones(4, dtype=torch.int64)  # black images are classified as 0


def test_linear_classifier_is_robust_up_to_its_margin():
    # Class 0 wins while x0 > x1; an attack of radius r closes a gap of 2 r.
    x = torch.tensor([[0.5 + gap / 2, 0.5 - gap / 2] for gap in (0.05, 0.15, 0.25, 0.35, -0.1)])
    data = [(x, torch.zeros(5, dtype=torch.int64))]
    curve = robust_curve(nn.Flatten(), data, ATTACK, eps=[0, 0.05, 0.1, 0.15, 0.2])
    assert curve.correct.int().tolist() == [
        [1, 1, 1, 1, 0],
        [0, 1, 1, 1, 0],
        [0, 0, 1, 1, 0],
        [0, 0, 0, 1, 0],
        [0, 0, 0, 0, 0],
    ]
    assert curve.accuracies == (0.8, 0.6, 0.4, 0.2, 0.0)


def test_images_broken_once_stay_broken():
    spy = Spy(breaks=(0.1,))
    curve = robust_curve(nn.Flatten(), [(PIXELS, ONES)], spy, eps=[0.05, 0.1, 0.2])
    assert curve.accuracies == (0.75, 0.0, 0.0)


def test_only_images_still_right_are_attacked():
    spy = Spy(breaks=(0.1,))
    robust_curve(nn.Flatten(), [(PIXELS, ONES)], spy, eps=[0.05, 0.1, 0.2])
    assert [(asked.eps, n, shape) for asked, n, shape in spy.calls] == [(0.05, 3, (3,)), (0.1, 3, (3,))]


def test_radius_zero_is_the_clean_accuracy_and_needs_no_attack(model):
    spy = Spy()
    curve = robust_curve(model, batches(), spy, eps=[0])
    assert torch.equal(curve.correct[0], accuracy(model, batches()).correct)
    assert spy.calls == []


@pytest.mark.parametrize("setting", [{"eps": [0.1]}, {"steps": [3]}, {"restarts": [1]}], ids=str)
def test_one_value_is_robust_accuracy(model, setting):
    attack = dataclasses.replace(STILL, restarts=1)
    expected = robust_accuracy(model, batches(), attack).correct
    assert 0 < expected.sum() < 40
    assert torch.equal(robust_curve(model, batches(), attack, **setting).correct[0], expected)


@pytest.mark.parametrize("setting", [{"eps": EPS}, {"steps": range(5)}, {"restarts": [1, 2, 5]}], ids=str)
@pytest.mark.parametrize("attack", [ATTACK, APGDAttack(eps=0.1, steps=3)], ids=["pgd", "apgd"])
def test_no_image_recovers(model, attack, setting):
    curve = robust_curve(model, batches(), attack, **setting)
    assert curve.correct.shape == (len(curve.values), 40)
    assert not (curve.correct[1:] & ~curve.correct[:-1]).any()
    assert not (curve.correct & ~accuracy(model, batches()).correct).any()


def test_each_radius_breaks_at_least_what_robust_accuracy_breaks(model):
    curve = robust_curve(model, batches(), STILL, eps=[0.05, 0.1])
    alone = robust_accuracy(model, batches(), dataclasses.replace(STILL, eps=0.05, step_size=0.025)).correct
    assert torch.equal(curve.correct[0], alone)
    assert torch.equal(curve.correct[1], alone & robust_accuracy(model, batches(), STILL).correct)


def test_step_size_keeps_its_ratio_to_the_radius():
    spy = Spy(eps=0.2, step_size=0.05)
    robust_curve(nn.Flatten(), [(PIXELS, ONES)], spy, eps=[0.1, 0.4])
    assert [(asked.eps, asked.step_size, asked.steps) for asked, *_ in spy.calls] == [(0.1, 0.025, 3), (0.4, 0.1, 3)]


def test_step_size_stays_along_steps():
    spy = Spy()
    robust_curve(nn.Flatten(), [(PIXELS, ONES)], spy, steps=[2, 7])
    assert [(asked.eps, asked.step_size, asked.steps) for asked, *_ in spy.calls] == [(0.1, 0.025, 2), (0.1, 0.025, 7)]


def test_restarts_add_the_runs_that_are_missing():
    spy = Spy()
    robust_curve(nn.Flatten(), [(PIXELS, ONES)], spy, restarts=[1, 2, 5])
    assert [asked.restarts for asked, *_ in spy.calls] == [1, 1, 3]


def test_settings_of_the_curve_are_reported():
    curve = robust_curve(nn.Flatten(), [(PIXELS, ONES)], ATTACK, steps=range(1, 3))
    assert (curve.parameter, curve.values) == ("steps", (1, 2))


def test_batches_are_walked_once_and_keep_their_order(model):
    x, y = images()
    whole = robust_curve(model, [(x, y)], STILL, eps=EPS).correct
    assert torch.equal(robust_curve(model, iter(batches(7)), STILL, eps=EPS).correct, whole)


def test_verdicts_are_bools_on_the_cpu(model):
    curve = robust_curve(model, batches(), ATTACK, eps=EPS)
    assert (curve.correct.dtype, curve.correct.device.type) == (torch.bool, "cpu")


def test_repr_shows_the_points():
    curve = RobustCurve("eps", (0.0, 8 / 255), torch.tensor([[True, True], [False, True]]))
    assert repr(curve) == "RobustCurve(eps 0: 100.00%, 0.03137: 50.00% of 2)"


def test_same_seed_is_used_by_default(model):
    zero = torch.Generator().manual_seed(0)
    expected = robust_curve(model, batches(), ATTACK, eps=EPS, generator=zero).correct
    assert torch.equal(robust_curve(model, batches(), ATTACK, eps=EPS).correct, expected)


def test_attack_draws_from_the_generator_that_was_passed(model):
    generator = torch.Generator().manual_seed(1)
    before = generator.get_state()
    robust_curve(model, batches(), ATTACK, steps=[1], generator=generator)
    assert not torch.equal(generator.get_state(), before)


def test_model_and_random_state_are_left_as_they_were(model):
    model = copy.deepcopy(model).train()
    model[1].weight.requires_grad_(False)
    gradients = [parameter.grad for parameter in model.parameters()]
    state, random_state = {k: v.clone() for k, v in model.state_dict().items()}, torch.get_rng_state()
    robust_curve(model, batches(), ATTACK, eps=EPS)
    assert all(module.training for module in model.modules())
    assert [p.requires_grad for p in model.parameters()] == [False, *[True] * 5]
    assert all(p.grad is grad for p, grad in zip(model.parameters(), gradients, strict=True))
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random_state)


def test_works_under_no_grad(model):
    expected = robust_curve(model, batches(), ATTACK, eps=EPS).correct
    with torch.no_grad():
        assert torch.equal(robust_curve(model, batches(), ATTACK, eps=EPS).correct, expected)


def test_batches_without_a_right_image_are_left_alone():
    spy = Spy()
    assert robust_curve(nn.Flatten(), [(PIXELS[:2], 0 * ONES[:2])], spy, eps=[0.1]).accuracies == (0.0,)
    assert spy.calls == []


@pytest.mark.parametrize(
    ("setting", "error", "message"),
    [
        ({}, ValueError, "expected exactly one of eps, steps, restarts"),
        ({"eps": [0], "steps": [1]}, ValueError, "expected exactly one of eps, steps, restarts"),
        ({"eps": 0.1}, TypeError, "expected eps"),
        ({"eps": "0.1"}, TypeError, "expected eps"),
        ({"eps": torch.tensor([0.1])}, TypeError, "expected eps"),
        ({"eps": []}, ValueError, "expected eps"),
        ({"eps": [0.1, 0.1]}, ValueError, "expected eps"),
        ({"steps": [2, 1]}, ValueError, "expected steps"),
        ({"eps": [-0.1]}, ValueError, "expected each of eps"),
        ({"eps": [math.nan]}, ValueError, "expected each of eps"),
        ({"eps": [True]}, TypeError, "expected each of eps"),
        ({"steps": [1.5]}, TypeError, "expected each of steps"),
        ({"steps": [-1]}, ValueError, "expected each of steps"),
        ({"restarts": [0]}, ValueError, "expected each of restarts"),
    ],
)  # fmt: skip
def test_wrong_settings(setting, error, message):
    with pytest.raises(error, match=re.escape(f"robust_curve: {message}")):
        robust_curve(nn.Flatten(), [(PIXELS, ONES)], ATTACK, **setting)


@dataclass
class Silent:
    eps: float = 0.1


@pytest.mark.parametrize(
    ("attack", "setting", "error", "message"),
    [
        (
            lambda objective, x, generator: x,
            {"eps": [0.1]},
            TypeError,
            "robust_curve: expected attack",
        ),
        (PGDAttack, {"eps": [0.1]}, TypeError, "attack"),
        (Silent(), {"eps": [0.1]}, TypeError, "attack"),
        ("pgd", {"steps": [1]}, TypeError, "attack"),
        (
            dataclasses.replace(ATTACK, eps=0),
            {"eps": [0.1]},
            ValueError,
            "robust_curve: expected an attack",
        ),
        (ATTACK, {"eps": [0.1, 8]}, ValueError, "PGDAttack: expected eps"),
    ],
)
def test_wrong_attack(attack, setting, error, message):
    with pytest.raises(error, match=re.escape(message)):
        robust_curve(nn.Flatten(), [(PIXELS, ONES)], attack, **setting)


def test_attack_without_the_setting_is_named_before_the_data_are_read():
    def data():
        raise AssertionError
        yield

    message = "expected attack"
    restless = dataclasses.make_dataclass("Restless", ["eps"], namespace={"__call__": lambda self, *_, **__: None})(0.1)
    with pytest.raises(TypeError, match=re.escape(message)):
        robust_curve(nn.Flatten(), data(), restless, restarts=[1])


def test_probabilities_are_refused():
    message = "robust_curve: expected logits"
    with pytest.raises(ValueError, match=re.escape(message)):
        robust_curve(nn.Sequential(nn.Flatten(), nn.Softmax(1)), [(PIXELS, ONES)], ATTACK, eps=[0.1])


def test_non_finite_logits_are_counted_and_refused():
    model = nn.Flatten()
    model.register_forward_hook(lambda _, __, out: out.masked_fill(torch.tensor([[0], [1], [1], [0]]).bool(), math.nan))
    message = "robust_curve: expected finite logits"
    with pytest.raises(ValueError, match=re.escape(message)):
        robust_curve(model, [(PIXELS, ONES)], ATTACK, eps=[0])


def test_empty_batches_are_refused():
    with pytest.raises(ValueError, match=re.escape("robust_curve: expected batches")):
        robust_curve(nn.Flatten(), [], ATTACK, eps=[0])


def test_wrong_generator():
    message = "robust_curve: expected generator"
    with pytest.raises(TypeError, match=re.escape(message)):
        robust_curve(nn.Flatten(), [(PIXELS, ONES)], ATTACK, eps=[0.1], generator=0)


def test_wrong_model():
    with pytest.raises(TypeError, match=re.escape("robust_curve: expected model")):
        robust_curve("resnet", [(PIXELS, ONES)], ATTACK, eps=[0.1])


def test_attack_that_chooses_its_step_size_is_varied_along_eps():
    x = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    network = nn.Sequential(nn.Flatten(), nn.Linear(768, 2)).eval()
    y = network(x).argmax(1)
    curve = robust_curve(network, [(x, y)], ElasticAttack(steps=2), eps=[0, 4])
    assert curve.accuracies[0] == 1.0
    assert curve.values == (0, 4)
