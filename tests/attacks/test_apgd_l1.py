"""Auto-PGD in the L1 norm."""

import pytest
import torch
from torch import nn

from advcontrast import PGDAttack
from advcontrast.attacks import APGDAttack, ClassificationObjective
from advcontrast.attacks.apgd import Iterate, _SparseRun
from advcontrast.attacks.balls import L1Ball

BOUNDS = (0.0, 1.0)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def images(n=6, *shape, dtype=torch.float64, seed=0):
    return torch.rand(n, *(shape or (3, 4, 4)), generator=seeded(seed), dtype=dtype)


def distances(x, point):
    """Return the exact sums of the differences, as far as float64 has them."""
    return (point.double() - x.double()).abs().flatten(1).sum(1)


def nearest(x, point, eps):
    """Return the nearest point of ball and box by bisection on the threshold, sample by sample."""
    found = []
    for centre, far in zip(x, point, strict=True):
        move = far - centre
        room = torch.where(move > 0, 1 - centre, centre)
        low, high = 0.0, float(move.abs().max())
        for _ in range(200):
            middle = (low + high) / 2
            total = torch.minimum((move.abs() - middle).clamp_min(0), room).sum()
            low, high = (middle, high) if total > eps else (low, middle)
        found.append(centre + move.sign() * torch.minimum((move.abs() - high).clamp_min(0), room))
    return torch.stack(found)


@pytest.mark.parametrize("eps", [0.0, 0.3, 2.0, 100.0])
@pytest.mark.parametrize("spread", [0.01, 1.0, 10.0])
def test_a_projection_is_the_nearest_point(eps, spread):
    x = images()
    point = x + spread * torch.randn(x.shape, generator=seeded(1), dtype=x.dtype)
    found = L1Ball(x, eps, BOUNDS).project(point)
    torch.testing.assert_close(found, nearest(x, point, eps), rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("eps", [0.0, 1e-3, 0.5, 12.0])
def test_points_lie_inside(dtype, eps):
    x = images(8, 3, 32, 32, dtype=dtype)
    ball = L1Ball(x, eps, BOUNDS)
    for point in (ball.random_point(seeded()), ball.project(x + torch.randn(x.shape, dtype=dtype, generator=seeded()))):
        assert point.dtype == dtype
        assert distances(x, point).max() <= eps
        assert point.min() >= 0
        assert point.max() <= 1


def test_random_points_are_uniform_in_the_ball():
    x = torch.full((20_000, 2), 0.5, dtype=torch.float64)
    point = L1Ball(x, 0.4, BOUNDS).random_point(seeded()) - x
    # The radius of a uniform point of a plane has the distribution r^2.
    share = ((distances(x, x + point) / 0.4) < 0.5).double().mean()
    assert share == pytest.approx(0.25, abs=0.02)
    assert point.mean(0).abs().max() < 0.01


def best_linear(x, weights, eps):
    """Return the largest value of a linear function in ball and box: the steepest coordinates move to the edge."""
    room = torch.where(weights > 0, 1 - x, x).flatten(1)
    order = weights.flatten(1).abs().argsort(1, descending=True)
    left = torch.full((len(x),), float(eps), dtype=x.dtype)
    gain = torch.zeros(len(x), dtype=x.dtype)
    for index in order.unbind(1):
        move = torch.minimum(room.gather(1, index[:, None])[:, 0], left)
        gain += move * weights.flatten(1).abs().gather(1, index[:, None])[:, 0]
        left -= move
    return gain + (x * weights).flatten(1).sum(1)


@pytest.mark.parametrize("eps", [0.5, 3.0])
def test_a_linear_objective_comes_near_its_maximum(eps):
    x = images()
    weights = torch.randn(x.shape, generator=seeded(2), dtype=x.dtype)
    attack = APGDAttack(norm="l1", eps=eps, steps=100)
    adv = attack(lambda z: (z * weights[: len(z)]).flatten(1).sum(1), x, generator=seeded())
    start = (x * weights).flatten(1).sum(1)
    gained = ((adv * weights).flatten(1).sum(1) - start) / (best_linear(x, weights, eps) - start)
    assert gained.min() > 0.95
    assert gained.max() <= 1 + 1e-9
    assert distances(x, adv).max() <= eps


def network():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Flatten(), nn.Linear(48, 32), nn.Tanh(), nn.Linear(32, 5)).eval()


@pytest.mark.parametrize("loss", ["ce", "dlr", "dlr-targeted"])
def test_a_classifier_is_fooled_more_often_than_by_noise(loss):
    model, x = network(), images(40, dtype=torch.float32)
    y = model(x).argmax(1)
    adv = APGDAttack(norm="l1", eps=4.0, steps=30, loss=loss, targets=3)(
        ClassificationObjective(model, y), x, generator=seeded()
    )
    noise = L1Ball(x, 4.0, BOUNDS).random_point(seeded())
    right = [(model(z).argmax(1) == y).float().mean() for z in (adv, noise)]
    assert right[0] < right[1] - 0.2
    assert distances(x, adv).max() <= 4.0


@pytest.mark.parametrize("steps", [0, 1, 2, 5])
def test_few_steps(steps):
    x = images()
    calls = []
    adv = APGDAttack(norm="l1", eps=1.0, steps=steps)(
        lambda z: (calls.append(1), z.flatten(1).sum(1))[1], x, generator=seeded()
    )
    assert len(calls) == steps + 3
    assert distances(x, adv).max() <= 1.0


def test_steps_become_sparser_and_shorter_where_the_best_point_does_not():
    x = torch.zeros(2, 10, dtype=torch.float64)
    point = x.clone()
    point[0, :3], point[1] = 0.1, 0.1  # three coordinates have changed, and all
    start = Iterate(point, torch.zeros(2, dtype=torch.float64), point)
    run = _SparseRun(start, 1.5)
    run.adapt(x)
    assert run.share.tolist() == pytest.approx([0.2, 1 / 1.5])
    assert run.size.tolist() == pytest.approx([1.5, 1.0])


def test_an_empty_batch():
    assert APGDAttack(norm="l1", eps=1.0)(lambda z: z.flatten(1).sum(1), images()[:0]).shape == (0, 3, 4, 4)


def test_pgd_has_no_l1_norm():
    with pytest.raises(ValueError, match=r"^PGDAttack: expected norm to be one of"):
        PGDAttack(norm="l1")
