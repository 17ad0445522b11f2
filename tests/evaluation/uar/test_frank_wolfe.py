"""The L1 ball and its corners: closed forms, a slow loop, and the ball kept exactly."""

import math
import re

import pytest
import torch

from advcontrast.evaluation.uar.frank_wolfe import FrankWolfeAttack


def images(*shape, dtype=torch.float64):
    return torch.rand(shape or (4, 3, 5, 5), generator=torch.Generator().manual_seed(1), dtype=dtype)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def weights(n):
    return torch.randn(n, generator=seeded(2), dtype=torch.float64)


def best_corner(x, slope, eps, low, high):
    """Spend the budget pixel by pixel, from the steepest on."""
    ours = x.clone()
    for pixel in sorted(range(len(x)), key=lambda i: -abs(slope[i].item())):
        target = high if slope[pixel] > 0 else low
        move = min(eps, abs(target - x[pixel].item()))
        ours[pixel] += math.copysign(move, slope[pixel].item())
        eps -= move
    return ours


@pytest.mark.parametrize("eps", [0.05, 0.7, 3.0, 12.3, 1000.0])
@pytest.mark.parametrize("steps", [1, 3])
def test_linear_objective_ends_at_the_corner(eps, steps):
    x, w = images(4, 60), weights(60)
    ours = FrankWolfeAttack(eps=eps, steps=steps)(lambda x: x @ w, x, generator=seeded())
    expected = torch.stack([best_corner(row, w, eps, 0.0, 1.0) for row in x])
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-9)


def test_corners_lie_at_the_given_bounds():
    x, w = images(4, 60) - 0.5, weights(60)
    ours = FrankWolfeAttack(eps=5.0, steps=2, bounds=(-0.5, 2.0))(lambda x: x @ w, x, generator=seeded())
    expected = torch.stack([best_corner(row, w, 5.0, -0.5, 2.0) for row in x])
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-9)


def test_result_is_the_mean_of_the_corners():
    x, w = images(3, 20), weights(20)
    point = x
    for step in range(5):
        slope = 3 * torch.cos(3 * point) * w
        corner = torch.stack([best_corner(a, b, 2.0, 0.0, 1.0) for a, b in zip(x, slope, strict=True)])
        point = point + (corner - point) / (step + 1)
    ours = FrankWolfeAttack(eps=2.0, steps=5, random_start=False)(lambda x: (3 * x).sin() @ w, x)
    torch.testing.assert_close(ours, point, rtol=0, atol=1e-9)


def test_pixels_without_a_gradient_stay():
    x = images(2, 10)
    ours = FrankWolfeAttack(eps=100.0, steps=3)(lambda x: x[:, :4].sum(1), x, generator=seeded())
    assert torch.equal(ours[:, 4:], x[:, 4:])
    assert torch.equal(ours[:, :4], torch.ones(2, 4, dtype=torch.float64))


def nonlinear(x):
    return (7 * x).sin().flatten(1).sum(1)


@pytest.mark.parametrize("eps", [1e-3, 0.3, 195 / 255, 6.0, 98.0])
@pytest.mark.parametrize("steps", [0, 1, 7])
def test_ball_and_bounds_are_never_left(eps, steps):
    x = images(3, 3, 32, 32, dtype=torch.float32)
    ours = FrankWolfeAttack(eps=eps, steps=steps)(nonlinear, x, generator=seeded())
    length = max(math.fsum(row) for row in (ours.double() - x.double()).abs().flatten(1).tolist())
    assert length <= eps
    assert ours.min() >= 0
    assert ours.max() <= 1


@pytest.mark.parametrize("eps", [0.3, 195 / 255, 6.0])
def test_budget_is_used_up(eps):
    x = images(3, 3, 32, 32, dtype=torch.float32)
    ours = FrankWolfeAttack(eps=eps, steps=1)(nonlinear, x, generator=seeded())
    assert ((ours.double() - x.double()).abs().flatten(1).sum(1) > eps - 4e-4).all()


@pytest.mark.parametrize("steps", [0, 3])
def test_radius_zero_gives_the_images(steps):
    x = images(dtype=torch.float32)
    assert torch.equal(FrankWolfeAttack(eps=0, steps=steps)(nonlinear, x, generator=seeded()), x)


def test_start_is_uniform_in_the_ball():
    # The square |a| + |b| <= 1: the radius r has density 2 r, mean 2/3; the four sides are alike.
    x = torch.full((4000, 2), 0.5, dtype=torch.float64)
    start = FrankWolfeAttack(eps=0.25, steps=0)(nonlinear, x, generator=seeded())
    delta = 4 * (start - x)
    radius = delta.abs().sum(1)
    assert radius.max() <= 1
    assert abs(radius.mean() - 2 / 3) < 0.02
    assert abs((radius < 0.5).double().mean() - 0.25) < 0.03
    assert abs(delta[:, 0] / radius).mean().sub(0.5).abs() < 0.02
    assert delta.mean(0).abs().max() < 0.03


def test_start_without_a_random_one_is_the_image():
    x = images()
    assert torch.equal(FrankWolfeAttack(steps=0, random_start=False)(nonlinear, x), x)


def test_objective_sees_the_random_start_once():
    seen = []

    def objective(x):
        seen.append(x.detach().clone())
        return x.sum(1)

    x = images(2, 30)
    ours = FrankWolfeAttack(eps=1.0, steps=3)(objective, x, generator=seeded())
    assert torch.equal(seen[0], FrankWolfeAttack(eps=1.0, steps=0)(objective, x, generator=seeded()))
    torch.testing.assert_close(seen[1], ours, rtol=0, atol=1e-12)
    assert len(seen) == 3


@pytest.mark.parametrize("shape", [(5,), (5, 1), (1, 4), (2, 3, 4, 5, 2)])
def test_any_number_of_dimensions(shape):
    x = images(*shape)
    ours = FrankWolfeAttack(eps=0.2, steps=2)(lambda x: (x**2).reshape(len(x), -1).sum(1), x, generator=seeded())
    assert ours.shape == shape
    assert (ours.reshape(len(x), -1).pow(2).sum(1) > x.reshape(len(x), -1).pow(2).sum(1)).all()


@pytest.mark.parametrize(
    ("bounds", "error", "message"),
    [
        ((-math.inf, 1.0), ValueError, "finite bounds"),
        ((0.0, math.inf), ValueError, "finite bounds"),
        ((1.0, 0.0), ValueError, "bounds (low, high)"),
        ([0, 1], TypeError, "bounds"),
    ],
)
def test_wrong_bounds(bounds, error, message):
    with pytest.raises(error, match=re.escape(f"FrankWolfeAttack: expected {message}")):
        FrankWolfeAttack(bounds=bounds)


def test_infinite_gradients_are_refused():
    message = "FrankWolfeAttack: expected the gradient of the objective"
    with pytest.raises(ValueError, match=re.escape(message)):
        FrankWolfeAttack(random_start=False)(lambda x: (x - x.detach()).sqrt().sum(1), images(2, 4))


def test_of_equally_steep_pixels_the_first_take_the_budget():
    x = torch.full((2, 100), 0.25, dtype=torch.float64)
    adv = FrankWolfeAttack(eps=10.0, steps=1, random_start=False)(lambda x: x.sum(1), x)
    expected = torch.cat([torch.ones(13), torch.tensor([0.5]), torch.full((86,), 0.25)]).double().expand(2, -1)
    torch.testing.assert_close(adv, expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("way", [1, -1])
def test_rounding_carries_no_pixel_beyond_the_bounds(way):
    low, high = sorted((-1.0 * way, 0.001 * way))
    x = way * (0.001 - images(4, 250))
    adv = FrankWolfeAttack(eps=1e4, steps=1, random_start=False, bounds=(low, high))(lambda x: way * x.sum(1), x)
    assert low <= adv.min()
    assert adv.max() <= high
