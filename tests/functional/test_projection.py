"""Balls whose edges are exact: checked with rational numbers, which do not round."""

import math
from fractions import Fraction

import pytest
import torch

from advcontrast.functional import linf_box
from advcontrast.functional.projection import rounded_radius, sample_norm

DTYPES = [torch.float32, torch.float64]
EPS = [0.0, 1 / 255, 2 / 255, 4 / 255, 8 / 255, 16 / 255, 0.031, 0.25, 1e-6]


def centres(kind, dtype):
    if kind == "grid":
        return torch.arange(256, dtype=dtype) / 255
    uniform = torch.rand(300, generator=torch.Generator().manual_seed(0), dtype=dtype)
    if kind == "uniform":
        return uniform
    if kind == "signed":
        return 2 * uniform - 1
    return (2 * uniform - 1) * torch.logspace(-40, 0, 300, dtype=torch.float64).to(dtype)


def pairs(*tensors):
    return zip(*([Fraction(value) for value in tensor.flatten().tolist()] for tensor in tensors), strict=True)


def largest_below(number, dtype):
    rounded = torch.tensor(number, dtype=dtype)
    if Fraction(rounded.item()) > Fraction(number):
        rounded = torch.nextafter(rounded, torch.tensor(-math.inf, dtype=dtype))
    return Fraction(rounded.item())


@pytest.mark.parametrize("eps", EPS)
@pytest.mark.parametrize("kind", ["grid", "uniform", "signed", "tiny"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_corners_are_the_outermost_numbers_inside(dtype, kind, eps):
    x = centres(kind, dtype)
    lower, upper = linf_box(x, eps, (-1.0, 1.0))
    radius = largest_below(eps, dtype)
    infinity = torch.full_like(x, math.inf)
    beyond_lower, beyond_upper = torch.nextafter(lower, -infinity), torch.nextafter(upper, infinity)
    for at, low, below, high, above in pairs(x, lower, beyond_lower, upper, beyond_upper):
        assert at - low <= radius
        assert high - at <= radius
        assert low == -1 or at - below > radius
        assert high == 1 or above - at > radius


@pytest.mark.parametrize("eps", EPS)
@pytest.mark.parametrize("kind", ["grid", "uniform"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_corners_satisfy_the_checks_that_users_write(dtype, kind, eps):
    x = centres(kind, dtype)
    for corner in linf_box(x, eps):
        assert (corner - x).abs().max() <= eps
        assert (corner - x).abs().max().item() <= eps
        assert corner.min() >= 0
        assert corner.max() <= 1


def test_rounded_sum_would_leave_the_ball():
    x = centres("grid", torch.float32)
    outside = [high - at > Fraction(8 / 255) for at, high in pairs(x, x + 8 / 255)]
    assert sum(outside) > 20


def test_bounds_that_the_dtype_lacks_are_rounded_inwards():
    lower, upper = linf_box(torch.zeros(1), 1.0, (-0.1, 0.1))
    assert Fraction(lower.item()) >= Fraction(-0.1)
    assert Fraction(upper.item()) <= Fraction(0.1)


def test_infinite_bounds_bound_nothing():
    lower, upper = linf_box(torch.tensor([-1e30, 5.0]), 2.0, (-math.inf, math.inf))
    assert lower[1] == 3
    assert upper[1] == 7
    assert lower[0] <= -1e30 <= upper[0]


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_least_that_rounding_can_lose_counts(dtype):
    x = torch.tensor([torch.finfo(dtype).smallest_normal], dtype=dtype) * 2**-20
    assert x > 0
    lower, upper = linf_box(torch.cat([x, -x]), 100.0, (-math.inf, math.inf))
    assert lower[0] > -100
    assert upper[1] < 100


@pytest.mark.parametrize("dtype", DTYPES)
def test_radius_zero_leaves_the_centre(dtype):
    x = centres("signed", dtype)
    lower, upper = linf_box(x, 0.0, (-1, 1))
    assert torch.equal(lower, x)
    assert torch.equal(upper, x)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((torch.zeros(2), -0.1), ValueError, "expected eps to be"),
        ((torch.zeros(2), math.nan), ValueError, "expected eps to be"),
        ((torch.zeros(2), 0.1, (1.0, 0.0)), ValueError, r"expected bounds \(low, high\) with low < high"),
        (
            (torch.zeros(2, dtype=torch.uint8), 0.1),
            TypeError,
            "expected x to be a torch.float32 or torch.float64 tensor",
        ),
        (([0.0], 0.1), TypeError, "expected x to be"),
    ],
)
def test_box_refuses_wrong_arguments(arguments, error, message):
    with pytest.raises(error, match=f"^linf_box: {message}"):
        linf_box(*arguments)


def test_the_default_device_does_not_matter():
    x = torch.rand(4)
    expected = linf_box(x, 0.1)
    with torch.device("meta"):
        assert all(map(torch.equal, linf_box(x, 0.1), expected))


def test_the_remedy_for_other_images_is_named():
    with pytest.raises(TypeError, match=r"got torch\.uint8\. Pass float images\.$"):
        linf_box(torch.zeros(2, 3, dtype=torch.uint8), 0.1)


def test_the_reserve_for_rounding_counts_all_values_of_a_sample():
    images = torch.linspace(0, 1, 2 * 3072).view(2, 3, 32, 32)
    assert torch.equal(rounded_radius(images, 0.5).view(2, 1), rounded_radius(images.flatten(1), 0.5))


def test_a_norm_can_be_more_exact_than_its_values():
    x = torch.rand(3, 3072, generator=torch.Generator().manual_seed(0))
    assert torch.equal(sample_norm(x, dtype=torch.float64), torch.linalg.vector_norm(x.double(), dim=1)[:, None])
