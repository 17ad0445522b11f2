"""The search among coefficients: where it is, how far it goes, and that it is PGD and Frank-Wolfe."""

import math
import re

import pytest
import torch
from torch.nn import functional as F

from advcontrast import PGDAttack
from advcontrast.evaluation.uar.frank_wolfe import FrankWolfeAttack
from advcontrast.evaluation.uar.jpeg import JPEGAttack, jpeg_decode, jpeg_encode

SIZE = (16, 32)
NORMS = ["linf", "l2", "l1"]
ORDER = {"linf": math.inf, "l2": 2, "l1": 1}


def images(n=3, contrast=0.2, dtype=torch.float64):
    """Images that stay away from black and white, where clamping would hide what was changed."""
    small = torch.rand(n, 3, 3, 5, generator=torch.Generator().manual_seed(1), dtype=dtype)
    return 0.5 + contrast * (F.interpolate(small, size=SIZE, mode="bilinear") - 0.5)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def coded(x):
    return jpeg_decode(jpeg_encode(x), size=SIZE)


def change(ours, x):
    """Return the change of the coefficients, in half quantisation steps."""
    return (2 * (jpeg_encode(ours) - jpeg_encode(x))).flatten(1)


def linear(x):
    return (x * torch.randn(x.shape[1:], generator=seeded(2), dtype=x.dtype)).flatten(1).sum(1)


def slope_at(x):
    """The gradient of the linear objective with respect to the coefficients."""
    code = jpeg_encode(x).requires_grad_()
    return torch.autograd.grad(linear(jpeg_decode(code, size=SIZE)).sum(), code)[0]


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("eps", [0.05, 0.2])
@pytest.mark.parametrize("steps", [0, 5])
def test_change_of_the_coefficients_stays_in_the_ball(norm, eps, steps):
    x = images()
    delta = change(JPEGAttack(eps=eps, steps=steps, norm=norm)(linear, x, generator=seeded()), x)
    length = delta.norm(ORDER[norm], dim=1)
    assert (length <= eps + 1e-9).all()
    assert (length > 0.9 * eps).all()


@pytest.mark.parametrize("norm", ["l2", "l1"])
def test_sparse_attacks_move_no_coefficient_by_more_than_one_step(norm):
    x = images()
    ours = JPEGAttack(eps=8.0, steps=20, norm=norm, random_start=False)(lambda x: 3 * x.mean((1, 2, 3)), x)
    assert abs(change(ours, x).abs().max() - 2) < 1e-6


def test_dense_attack_moves_coefficients_as_far_as_it_is_told():
    x = images()
    ours = JPEGAttack(eps=6.0, step_size=6.0, steps=1, random_start=False)(linear, x)
    expected = jpeg_decode(jpeg_encode(x) + 3 * slope_at(x).sign(), size=SIZE).clamp(0, 1)
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-12)


def test_linear_objective_ends_at_the_corner_of_the_cube():
    x = images()
    ours = JPEGAttack(eps=0.1, steps=9)(linear, x, generator=seeded())
    expected = jpeg_decode(jpeg_encode(x) + 0.05 * slope_at(x).sign(), size=SIZE)
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("norm", NORMS)
def test_search_is_that_of_the_other_attacks(norm):
    x = images()
    code = jpeg_encode(x)
    search = {
        "linf": PGDAttack(eps=0.5, step_size=0.25, steps=4, bounds=(-math.inf, math.inf)),
        "l2": PGDAttack(eps=0.5, step_size=0.25, steps=4, norm="l2", bounds=(-2.0, 2.0)),
        "l1": FrankWolfeAttack(eps=0.5, steps=4, bounds=(-2.0, 2.0)),
    }[norm]

    def image(v):
        return jpeg_decode(code + v / 2, size=SIZE).clamp(0, 1)

    v = search(lambda v: linear(image(v) ** 2), torch.zeros_like(code), generator=seeded())
    ours = JPEGAttack(eps=0.5, steps=4, norm=norm)(lambda x: linear(x**2), x, generator=seeded())
    assert torch.equal(ours, image(v))


def test_step_size_is_eps_by_the_root_of_steps():
    x = images()
    given = JPEGAttack(eps=0.4, step_size=0.2, steps=4)(lambda x: linear(x**2), x, generator=seeded())
    assert torch.equal(JPEGAttack(eps=0.4, steps=4)(lambda x: linear(x**2), x, generator=seeded()), given)
    other = JPEGAttack(eps=0.4, step_size=0.1, steps=4)(lambda x: linear(x**2), x, generator=seeded())
    assert not torch.equal(other, given)


@pytest.mark.parametrize("norm", NORMS)
def test_radius_zero_codes_the_image(norm):
    x = images()
    assert torch.equal(JPEGAttack(eps=0, norm=norm)(linear, x, generator=seeded()), coded(x))


def test_result_is_clamped():
    x = images(contrast=2.0).clamp(0, 1)
    ours = JPEGAttack(eps=4.0, steps=2)(linear, x, generator=seeded())
    assert ours.min() == 0
    assert ours.max() == 1


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"eps": -1}, ValueError, "eps"),
        ({"norm": "l0"}, ValueError, "norm"),
        ({"norm": "L1"}, ValueError, "norm"),
        ({"norm": 1}, TypeError, "norm"),
        (
            {"step_size": 0},
            ValueError,
            "step_size",
        ),
        ({"step_size": "a"}, TypeError, "step_size"),
        (
            {"step_size": 0.1, "norm": "l1"},
            ValueError,
            "no step_size for norm 'l1'",
        ),
    ],
)
def test_wrong_settings(settings, error, message):
    with pytest.raises(error, match=re.escape(f"JPEGAttack: expected {message}")):
        JPEGAttack(**settings)


@pytest.mark.parametrize("shape", [(2, 3, 16, 24), (2, 1, 16, 16), (2, 3, 256), (2, 3, 28, 28)])
@pytest.mark.parametrize("norm", NORMS)
def test_wrong_shapes(norm, shape):
    message = "jpeg_encode: expected x"
    with pytest.raises(ValueError, match=re.escape(message)):
        JPEGAttack(norm=norm)(linear, torch.zeros(shape))
