"""Bent images: what stays, how far pixels come from, and what decides it."""

import math
import re

import pytest
import torch

from advcontrast import PGDAttack
from advcontrast.evaluation.uar.elastic import ElasticAttack, smooth, warp


def images(n=3, dtype=torch.float64):
    return torch.rand(n, 3, 12, 10, generator=torch.Generator().manual_seed(1), dtype=dtype)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def nonlinear(x):
    weights = torch.randn(x.shape[1:], generator=seeded(2), dtype=x.dtype)
    return (x * weights).flatten(1).sum(1).sin()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_radius_zero_gives_the_images_exactly(dtype):
    x = images(dtype=dtype)
    assert torch.equal(ElasticAttack(eps=0)(nonlinear, x, generator=seeded()), x)


@pytest.mark.parametrize("value", [0.0, 0.3, 1.0])
def test_inside_of_a_constant_image_is_a_fixed_point(value):
    x = torch.full((2, 3, 12, 12), value)
    ours = ElasticAttack(eps=2.0, steps=3)(nonlinear, x, generator=seeded())
    assert torch.equal(ours[..., 2:-2, 2:-2], x[..., 2:-2, 2:-2])


def test_black_image_is_a_fixed_point():
    x = torch.zeros(2, 3, 8, 8)
    assert torch.equal(ElasticAttack(eps=3.0)(nonlinear, x, generator=seeded()), x)


@pytest.mark.parametrize("steps", [0, 6])
@pytest.mark.parametrize("eps", [0.4, 1.0, 1.7])
def test_pixels_come_from_within_eps(eps, steps):
    # Two channels hold the column and the row of each pixel.
    column, row = torch.linspace(0, 1, 21).expand(21, 21), torch.linspace(0, 1, 21)[:, None].expand(21, 21)
    x = torch.stack([column, row]).double()[None]
    ours = ElasticAttack(eps=eps, steps=steps)(nonlinear, x, generator=seeded())
    moved = 20 * (ours - x)[..., 2:-2, 2:-2].abs().max()
    assert moved <= eps + 1e-9
    assert moved > 0.5 * eps


@pytest.mark.parametrize("shift", [1, 2, -1])
def test_whole_steps_shift_the_image(shift):
    x = torch.linspace(0.1, 0.9, 9, dtype=torch.float64).expand(1, 1, 7, 9)
    eps = abs(shift)
    attack = ElasticAttack(eps=eps, step_size=eps, steps=1, random_start=False)
    ours = attack(lambda x: math.copysign(1, shift) * x[..., 2:-2].sum(), x)
    torch.testing.assert_close(ours[..., 1:-1, 2:-2], x[..., 1:-1, 2 + shift : 7 + shift], rtol=0, atol=1e-12)


def test_outside_of_the_image_is_black():
    # All that makes a white image darker is to take its last column and row from beyond the edge.
    x = torch.ones(1, 1, 5, 5)
    attack = ElasticAttack(eps=1.0, steps=4, kernel_size=1, random_start=False, minimize=True)
    expected = torch.nn.functional.pad(torch.ones(1, 1, 4, 4), (0, 1, 0, 1))
    assert torch.equal(attack(lambda x: x.sum(), x), expected)


def test_search_is_that_of_pgd_among_smoothed_flows():
    x = images()
    search = PGDAttack(eps=1.5, step_size=0.75, steps=4, bounds=(-math.inf, math.inf))

    def image(flow):
        return warp(x, smooth(flow, kernel_size=3, std=0.8))

    flow = search(lambda f: nonlinear(image(f)), torch.zeros(3, 2, 12, 10, dtype=x.dtype), generator=seeded())
    ours = ElasticAttack(eps=1.5, steps=4, kernel_size=3, kernel_std=0.8)(nonlinear, x, generator=seeded())
    assert torch.equal(ours, image(flow))


def test_step_size_is_eps_by_the_root_of_steps():
    x = images()
    given = ElasticAttack(eps=1.0, step_size=0.5, steps=4)(nonlinear, x, generator=seeded())
    assert torch.equal(ElasticAttack(eps=1.0, steps=4)(nonlinear, x, generator=seeded()), given)
    other = ElasticAttack(eps=1.0, step_size=0.25, steps=4)(nonlinear, x, generator=seeded())
    assert not torch.equal(other, given)


def test_defaults_are_those_for_cifar():
    assert (ElasticAttack().kernel_size, ElasticAttack().kernel_std) == (5, 96 / 224)


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_any_number_of_channels(channels):
    x = torch.rand(2, channels, 6, 7)
    assert ElasticAttack()(nonlinear, x, generator=seeded()).shape == x.shape


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"eps": -1}, ValueError, "eps"),
        (
            {"step_size": 0},
            ValueError,
            "step_size",
        ),
        ({"step_size": "a"}, TypeError, "step_size"),
        ({"kernel_size": 4}, ValueError, "kernel_size"),
        ({"kernel_size": 0}, ValueError, "kernel_size"),
        ({"kernel_size": 5.0}, TypeError, "kernel_size"),
        ({"kernel_std": 0}, ValueError, "kernel_std"),
    ],
)
def test_wrong_settings(settings, error, message):
    with pytest.raises(error, match=re.escape(f"ElasticAttack: expected {message}")):
        ElasticAttack(**settings)


@pytest.mark.parametrize("shape", [(3, 8, 8), (2, 192), (2, 3, 2, 8), (2, 3, 8, 2)])
def test_wrong_shapes(shape):
    message = "ElasticAttack: expected x"
    with pytest.raises(ValueError, match=re.escape(message)):
        ElasticAttack()(nonlinear, torch.zeros(shape))
