"""The balls themselves: exact in the dtype of the images, and careful with what they are given."""

import math
from fractions import Fraction
from types import SimpleNamespace

import pytest
import torch

from advcontrast import PGDAttack
from advcontrast.attacks.balls import BALLS, L2Ball, LinfBall, widest
from tests.properties.pgd_invariants import distance_is_at_most

NORMS = ["linf", "l2"]
DTYPES = [torch.float32, torch.float64]
INFINITE = (-math.inf, math.inf)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def images(*shape, dtype=torch.float32):
    return torch.rand(shape or (4, 3, 4, 4), generator=seeded(), dtype=dtype)


def exact(tensor):
    return [Fraction(value) for value in tensor.flatten().tolist()]


@pytest.mark.parametrize("size", [1e-5, 1 / 255, 0.031 / 7])
@pytest.mark.parametrize("scale", [1e-9, 1.0, 300.0])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("way", [1.0, -1.0])
def test_no_step_is_shorter_than_its_size_unless_it_ends_at_the_edge(dtype, scale, size, way):
    ball = LinfBall(scale * images(4, 64, dtype=dtype), 0.031, INFINITE)
    point = ball.random_point(seeded(1))
    moved = ball.step(point, torch.full_like(point, way), ball.lengths(size))
    edge = ball.upper if way > 0 else ball.lower
    for before, after, end in zip(exact(point), exact(moved), exact(edge), strict=True):
        assert after == end or abs(after - before) >= Fraction(size)


def test_lengths_are_those_of_the_mirrored_images():
    ball, mirrored = (LinfBall(way * 300 * images(4, 64), 0.031, INFINITE) for way in (1, -1))
    assert torch.equal(mirrored.lengths(1e-5), ball.lengths(1e-5))


def test_lengths_exceed_the_size_by_rounding_only():
    ball = LinfBall(images(4, 64), 8 / 255, (0.0, 1.0))
    assert (ball.lengths(2 / 255) - 2 / 255).abs().max() < 2e-7


def test_steps_in_the_widest_dtype_would_end_at_the_same_corner():
    x = images(4, 64)
    ball = LinfBall(x, 0.031, (0.0, 1.0))
    point, wide = x, x.double()
    lower, upper = ball.lower.double(), ball.upper.double()
    for _ in range(10):
        point = ball.step(point, torch.ones_like(x), ball.lengths(0.0031))
        wide = (wide + 0.0031).clamp(lower, upper)
    assert torch.equal(point, wide.float())


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize(
    "size", [0.1, torch.tensor([0.1, 0.2, 0.3, 0.4]).view(4, 1, 1, 1)], ids=["one", "of each sample"]
)
def test_step_leaves_what_it_is_given_alone(norm, size):
    x = images()
    ball = BALLS[norm](x, 0.2, (0.0, 1.0))
    given = [x, ball.random_point(seeded()), torch.randn(x.shape, generator=seeded())]
    before = [tensor.clone() for tensor in given]
    ball.step(given[1], given[2], size)
    ball.project(given[1])
    assert all(map(torch.equal, given, before))


@pytest.mark.parametrize("norm", NORMS)
def test_every_sample_may_have_its_own_size(norm):
    x, sizes = images(), [0.01, 0.02, 0.03, 0.04]
    gradient = torch.randn(x.shape, generator=seeded())
    ball = BALLS[norm](x, 0.2, INFINITE)
    together = ball.step(x, gradient, torch.tensor(sizes).view(4, 1, 1, 1))
    for i, size in enumerate(sizes):
        torch.testing.assert_close(together[i], ball.step(x, gradient, size)[i], rtol=0, atol=1e-7)


@pytest.mark.parametrize("norm", NORMS)
def test_points_keep_their_layout_whatever_that_of_the_gradient(norm):
    x = images().contiguous(memory_format=torch.channels_last)
    ball = BALLS[norm](x, 0.2, (0.0, 1.0))
    gradient = torch.randn(x.shape, generator=seeded())
    for point in (ball.random_point(seeded()), ball.project(x), ball.step(x, gradient, ball.lengths(0.1))):
        assert point.stride() == x.stride()
        assert point.dtype == x.dtype


@pytest.mark.parametrize("eps", [1e-6, 0.031, 0.5])
@pytest.mark.parametrize("size", [1e-6, 0.2, 1e6])
@pytest.mark.parametrize("dtype", DTYPES)
def test_steps_of_any_length_stay_in_the_sphere_in_exact_arithmetic(dtype, size, eps):
    x = 2 * images(6, 3, 5, 5, dtype=dtype) - 1
    ball = L2Ball(x, eps, (-1.0, 1.0))
    point = ball.random_point(seeded(1))
    for step in range(4):
        point = ball.step(point, torch.randn(x.shape, generator=seeded(step), dtype=dtype), size)
        distance_is_at_most(eps, "l2", point, x)


def far_points(dtype, shape=(20, 3, 4, 4), low=0.0, high=1.0):
    x = (low + (high - low) * images(*shape, dtype=torch.float64)).to(dtype)
    return x, x + torch.randn(shape, generator=seeded(1), dtype=dtype)


@pytest.mark.parametrize("eps", [0.0, 1e-3, 0.03, 0.5, 1.0])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("low", "high"), [(-1.0, 1.0), (-100.0, -50.0)], ids=["signed", "negative"])
def test_projected_points_are_in_the_sphere_in_exact_arithmetic(low, high, dtype, eps):
    x, point = far_points(dtype, low=low, high=high)
    for row, centre in zip(L2Ball(x, eps, INFINITE).project(point), x, strict=True):
        assert sum((a - b) ** 2 for a, b in zip(exact(row), exact(centre), strict=True)) <= Fraction(eps) ** 2


@pytest.mark.parametrize(("dtype", "loss"), [(torch.float32, 1e-4), (torch.float64, 1e-12)])
def test_l2_projection_keeps_the_direction_and_uses_the_radius_up(dtype, loss):
    x, point = far_points(dtype)
    moved, wanted = (L2Ball(x, 0.5, INFINITE).project(point) - x).flatten(1), (point - x).flatten(1)
    assert (moved.norm(dim=1) > 0.5 * (1 - loss)).all()
    torch.testing.assert_close(torch.cosine_similarity(moved, wanted), torch.ones(20, dtype=dtype), rtol=0, atol=1e-6)


def test_l2_points_inside_stay_where_they_are():
    x, point = far_points(torch.float64)
    near = x + 0.01 * (point - x)
    torch.testing.assert_close(L2Ball(x, 1.0, INFINITE).project(near), near, rtol=0, atol=1e-15)


def test_l2_samples_are_projected_one_by_one():
    x, point = far_points(torch.float64)
    alone = [L2Ball(x[i : i + 1], 0.5, INFINITE).project(point[i : i + 1]) for i in range(20)]
    assert torch.equal(L2Ball(x, 0.5, INFINITE).project(point), torch.cat(alone))


def test_l2_projection_of_single_numbers():
    moved = L2Ball(torch.tensor([0.0, 1.0]).double(), 0.5, INFINITE).project(torch.tensor([3.0, 1.0]).double())
    torch.testing.assert_close(moved, torch.tensor([0.5, 1.0]).double(), rtol=1e-12, atol=0)


@pytest.mark.parametrize("scale", [1e-37, 1e-30, 1e-10, 1e30])
def test_the_direction_of_an_l2_step_does_not_depend_on_the_length_of_the_gradient(scale):
    x, gradient = torch.zeros(2, 24), torch.ones(2, 24)
    moved = L2Ball(x, 1.0, INFINITE).step(x, scale * gradient, 0.5)
    torch.testing.assert_close(moved, 0.5 * gradient / math.sqrt(24), rtol=1e-5, atol=0)


def test_a_gradient_of_subnormal_numbers_does_no_harm():
    x = images()
    moved = L2Ball(x, 1.0, (0.0, 1.0)).step(x, 1e-45 * torch.eye(4).expand(4, 3, 4, 4), 0.5)
    assert moved.isfinite().all()
    distance_is_at_most(1.0, "l2", moved, x)


def test_gradients_whose_sum_overflows_are_finite():
    calls, x = [], images(2, 8)

    def steep(x):
        calls.append(x)
        return (x * 1e31).sum(1) * 1e5

    ours = PGDAttack(eps=0.25, step_size=0.25, steps=2, random_start=False)(steep, x)
    assert torch.equal(ours, LinfBall(x, 0.25, (0.0, 1.0)).upper)
    assert len(calls) == 2


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_single_value_of_the_gradient_that_is_not_finite_is_found(value):
    x = images(4, 8)
    weights = torch.ones(4, 8)
    weights[2, 3] = value
    # A value that stays finite with such a gradient.
    x[2, 3] = 0.0

    class Spoilt(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.sum(1)

        @staticmethod
        def backward(ctx, gradient):
            return gradient[:, None] * weights

    message = "PGDAttack: expected the gradient of the objective to be"
    with pytest.raises(ValueError, match=message):
        PGDAttack()(Spoilt.apply, x)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("bounds", [(0.0, 1.0), INFINITE])
def test_a_single_pixel_that_is_not_finite_is_found(bounds, value):
    x = images(4, 8)
    x[2, 3] = value
    with pytest.raises(ValueError, match="PGDAttack: expected x to be"):
        PGDAttack(bounds=bounds)(lambda x: x.sum(1), x)


def test_the_words_on_pixels_outside_name_their_range():
    x = images(4, 8)
    x[2, 3], x[0, 0] = 1.5, -0.25
    with pytest.raises(ValueError, match="x within"):
        PGDAttack()(lambda x: x.sum(1), x)


@pytest.mark.parametrize("norm", NORMS)
def test_a_step_is_one_graph(norm):
    x, gradient = images(), torch.randn(4, 3, 4, 4, generator=seeded())

    def step(x, gradient):
        ball = BALLS[norm](x, 0.2, (0.0, 1.0))
        return ball.step(ball.project(x), gradient, ball.lengths(0.1))

    compiled = torch.compile(step, backend="eager", fullgraph=True)
    assert torch.equal(compiled(x, gradient), step(x, gradient))


@pytest.mark.parametrize(("device", "dtype"), [("cpu", torch.float64), ("cuda", torch.float64), ("mps", torch.float32)])
def test_only_where_there_is_no_float64_is_float32_the_widest(device, dtype):
    x = SimpleNamespace(dtype=torch.float32, device=torch.device(device))
    assert widest(x) == dtype
