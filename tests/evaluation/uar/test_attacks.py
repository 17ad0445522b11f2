"""Properties that the Frank-Wolfe, JPEG and elastic attacks share with every attack."""

import copy
import dataclasses
import math
import pickle
import re

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from advcontrast.evaluation.uar.elastic import ElasticAttack
from advcontrast.evaluation.uar.frank_wolfe import FrankWolfeAttack
from advcontrast.evaluation.uar.jpeg import JPEGAttack

ATTACKS = [
    FrankWolfeAttack(eps=4.0, steps=4),
    JPEGAttack(eps=0.5, steps=4),
    JPEGAttack(eps=4.0, steps=4, norm="l2"),
    JPEGAttack(eps=32.0, steps=4, norm="l1"),
    ElasticAttack(eps=0.5, steps=4),
]
every = pytest.mark.parametrize("attack", ATTACKS, ids=["fw", "jpeg_linf", "jpeg_l2", "jpeg_l1", "elastic"])


def images(n=3, dtype=torch.float32):
    small = torch.rand(n, 3, 4, 4, generator=torch.Generator().manual_seed(1), dtype=dtype)
    return F.interpolate(small, size=16, mode="bilinear")


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def network(dtype=torch.float32):
    torch.manual_seed(3)
    net = nn.Sequential(nn.Conv2d(3, 6, 3, 2), nn.BatchNorm2d(6), nn.Tanh(), nn.Flatten(), nn.Linear(294, 4))
    return net.to(dtype).eval()


def loss(model):
    return lambda x: model(x).logsumexp(1) - model(x)[:, 0]


def brightness(x):
    return x.flatten(1).sum(1)


@every
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_objective_grows_within_the_bounds(attack, dtype):
    x, objective = images(dtype=dtype), loss(network(dtype))
    ours = attack(objective, x, generator=seeded())
    assert ours.dtype == dtype
    assert ours.shape == x.shape
    assert ours.min() >= 0
    assert ours.max() <= 1
    assert (objective(ours) > objective(x)).all()


@every
def test_larger_balls_are_stronger(attack):
    x, objective = images(), loss(network())
    values = [
        objective(dataclasses.replace(attack, eps=attack.eps * scale)(objective, x, generator=seeded())).mean()
        for scale in (0.25, 0.5, 1, 2)
    ]
    assert values == sorted(values)


@every
def test_minimize_lowers_the_objective(attack):
    x, objective = images(), loss(network())
    ours = dataclasses.replace(attack, minimize=True)(objective, x, generator=seeded())
    assert (objective(ours) < objective(x)).all()


@every
def test_minimizing_is_maximizing_the_negative(attack):
    x, objective = images(), loss(network())
    expected = attack(lambda x: -objective(x), x, generator=seeded())
    assert torch.equal(dataclasses.replace(attack, minimize=True)(objective, x, generator=seeded()), expected)


@every
def test_a_mean_will_do_for_an_objective(attack):
    x, objective = images(dtype=torch.float64), loss(network(torch.float64))
    expected = attack(objective, x, generator=seeded())
    ours = attack(lambda x: objective(x).mean(), x, generator=seeded())
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-9)


@every
def test_samples_are_attacked_each_for_itself(attack):
    x, objective = images(dtype=torch.float64), loss(network(torch.float64))
    attack = dataclasses.replace(attack, random_start=False)
    alone = torch.cat([attack(objective, image[None]) for image in x])
    torch.testing.assert_close(attack(objective, x), alone, rtol=0, atol=1e-9)


@every
def test_generator_decides_where_to_start(attack):
    x, attack = images(), dataclasses.replace(attack, steps=0)
    first, second, other = (attack(brightness, x, generator=seeded(seed)) for seed in (0, 0, 1))
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


@every
def test_global_random_state_is_left_alone_where_a_generator_is_given(attack):
    before = torch.get_rng_state()
    attack(brightness, images(), generator=seeded())
    assert torch.equal(torch.get_rng_state(), before)


@every
def test_without_generator_the_global_one_decides(attack):
    torch.manual_seed(5)
    first = attack(brightness, images())
    torch.manual_seed(5)
    assert torch.equal(attack(brightness, images()), first)


@every
def test_without_a_random_start_nothing_is_drawn(attack):
    generator = seeded()
    before = generator.get_state()
    dataclasses.replace(attack, random_start=False)(brightness, images(), generator=generator)
    assert torch.equal(generator.get_state(), before)


@every
def test_same_seed_gives_the_same_images(attack):
    x, objective = images(), loss(network())
    assert torch.equal(attack(objective, x, generator=seeded()), attack(objective, x, generator=seeded()))


@every
def test_model_and_images_are_left_as_they_were(attack):
    model, x = network(), images().requires_grad_()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    copied = x.detach().clone()
    attack(loss(model), x)
    assert torch.equal(x, copied)
    assert x.grad is None
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@every
@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_works_where_gradients_are_off(attack, context):
    model = network()
    expected = attack(loss(model), images(), generator=seeded())
    with context():
        ours = attack(loss(model), images(), generator=seeded())
    assert torch.equal(ours, expected)
    assert not ours.requires_grad
    ours.requires_grad_()


@every
def test_autocast_around_the_call_leaves_float32_images(attack):
    model = network()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ours = attack(loss(model), images(), generator=seeded())
    assert ours.dtype == torch.float32
    assert (loss(model)(ours) > loss(model)(images())).all()


@every
def test_memory_format_is_kept(attack):
    ours = attack(brightness, images().to(memory_format=torch.channels_last))
    assert ours.is_contiguous(memory_format=torch.channels_last)


@every
def test_empty_batches_come_back(attack):
    assert attack(brightness, torch.zeros(0, 3, 16, 16)).shape == (0, 3, 16, 16)


@every
def test_images_a_rounding_error_outside_are_clamped(attack):
    ours = dataclasses.replace(attack, eps=0, random_start=False)(brightness, torch.full((1, 3, 16, 16), 1 + 2e-7))
    assert ours.max() <= 1


@every
def test_repr_and_copies_make_equal_attacks(attack):
    attack = dataclasses.replace(attack, random_start=False)
    for remade in (eval(repr(attack)), copy.deepcopy(attack), pickle.loads(pickle.dumps(attack))):
        assert remade == attack


@every
def test_settings_are_fixed(attack):
    with pytest.raises(dataclasses.FrozenInstanceError):
        attack.eps = 1.0


@every
@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"eps": -1}, ValueError, "eps"),
        ({"eps": math.nan}, ValueError, "eps"),
        ({"eps": math.inf}, ValueError, "eps"),
        ({"eps": "1"}, TypeError, "eps"),
        ({"steps": -1}, ValueError, "steps"),
        ({"steps": 2.0}, TypeError, "steps"),
        ({"random_start": 1}, TypeError, "random_start"),
        ({"minimize": None}, TypeError, "minimize"),
    ],
)
def test_wrong_settings(attack, settings, error, message):
    with pytest.raises(error, match=re.escape(f"{type(attack).__name__}: expected {message}")):
        dataclasses.replace(attack, **settings)


GOOD = images()


@every
@pytest.mark.parametrize(
    ("objective", "x", "error", "message"),
    [
        (None, GOOD, TypeError, "objective"),
        (brightness, (GOOD * 255).byte(), TypeError, "x"),
        (brightness, GOOD.half(), TypeError, "x"),
        (brightness, GOOD.numpy(), TypeError, "x"),
        (brightness, GOOD.round() * 2 - 1, ValueError, "x"),
        (brightness, GOOD * math.nan, ValueError, "x"),
        (brightness, torch.tensor(0.5), ValueError, "x"),
        (lambda x: x, GOOD, ValueError, "objective"),
        (lambda x: brightness(x)[:2], GOOD, ValueError, "objective"),
        (
            lambda x: brightness(x) * math.nan,
            GOOD,
            ValueError,
            "the value of the objective",
        ),
        (
            lambda x: brightness(x).tolist(),
            GOOD,
            TypeError,
            "the value of the objective",
        ),
    ],
)
def test_wrong_calls(attack, objective, x, error, message):
    with pytest.raises(error, match=re.escape(f"{type(attack).__name__}: expected {message}")):
        attack(objective, x)


@every
def test_objectives_must_depend_on_the_images(attack):
    message = "expected objective to depend on x"
    with pytest.raises(ValueError, match=re.escape(message)):
        attack(lambda x: brightness(x.detach()), GOOD)


@every
def test_wrong_generator(attack):
    with pytest.raises(TypeError, match=f"{type(attack).__name__}: expected generator"):
        attack(brightness, GOOD, generator=0)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@every
def test_device_is_kept_and_the_result_is_that_of_the_cpu(attack):
    x, model = images(dtype=torch.float64), network(torch.float64)
    attack = dataclasses.replace(attack, random_start=False)
    expected = attack(loss(model), x)
    ours = attack(loss(model.cuda()), x.cuda())
    assert ours.is_cuda
    torch.testing.assert_close(ours.cpu(), expected, rtol=0, atol=1e-9)
