"""Drawn parameters have the distribution of torchvision's RandomResizedCrop, ColorJitter and friends."""

import math
from functools import cache
from itertools import combinations

import pytest
import torch
from torchvision.transforms import ColorJitter, RandomResizedCrop

from advcontrast.augment import SimCLRAugment
from tests.augment.statistics import KS_LIMIT, N, ks, sigmas

IMAGES = [(32, 32), (24, 60)]
FACTORS = ("brightness", "contrast", "saturation", "hue")
CHI2_23 = 49.73  # 99.9 % point of the chi-square distribution with 23 degrees of freedom


def seeded(seed):
    return torch.Generator().manual_seed(seed)


@cache
def our_draw(height, width, strength=1.0):
    return SimCLRAugment(32, strength=strength).draw(N, height, width, seeded(0))


@cache
def their_crops(height, width, smallest=0.1):
    image = torch.empty(3, height, width)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        crops = [RandomResizedCrop.get_params(image, [smallest, 1.0], [3 / 4, 4 / 3]) for _ in range(N)]
    return torch.tensor(crops).double().T


@cache
def their_factors():
    jitter = ColorJitter(0.4, 0.4, 0.4, 0.1)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        draws = [
            ColorJitter.get_params(jitter.brightness, jitter.contrast, jitter.saturation, jitter.hue)[1:]
            for _ in range(N)
        ]
    return dict(zip(FACTORS, torch.tensor(draws, dtype=torch.float64).T, strict=True))


def crop_figures(top, left, height, width):
    return {
        "area": height * width,
        "log ratio": (width / height).log(),
        "top": top,
        "left": left,
        "height": height,
        "width": width,
    }


@pytest.mark.parametrize("figure", ["area", "log ratio", "top", "left", "height", "width"])
@pytest.mark.parametrize(("height", "width"), IMAGES)
def test_crops_are_distributed_as_torchvisions(height, width, figure):
    ours = crop_figures(*(field.double() for field in our_draw(height, width)[:4]))
    theirs = crop_figures(*their_crops(height, width))
    assert ks(ours[figure], theirs[figure]) < KS_LIMIT


def test_strength_scales_the_smallest_crop():
    ours = crop_figures(*(field.double() for field in our_draw(32, 32, 0.5)[:4]))
    theirs = crop_figures(*their_crops(32, 32, 0.55))
    assert ks(ours["area"], theirs["area"]) < KS_LIMIT


@pytest.mark.parametrize("factor", FACTORS)
def test_colour_factors_are_distributed_as_torchvisions(factor):
    assert ks(getattr(our_draw(32, 32), factor), their_factors()[factor]) < KS_LIMIT


@pytest.mark.parametrize("factor", FACTORS)
def test_strength_scales_the_colour_factors(factor):
    neutral = 0 if factor == "hue" else 1
    half, full = (getattr(our_draw(32, 32, strength), factor) - neutral for strength in (0.5, 1.0))
    torch.testing.assert_close(half, full / 2, rtol=0, atol=1e-15)


@pytest.mark.parametrize("strength", [1.0, 0.5])
@pytest.mark.parametrize(("field", "probability", "scaled"), [("flip", 0.5, 0), ("jitter", 0.8, 1), ("gray", 0.2, 1)])
def test_chances_have_their_probability(field, probability, scaled, strength):
    expected = probability * (strength if scaled else 1)
    assert sigmas(getattr(our_draw(32, 32, strength), field), expected) < 3.29


def test_all_24_orders_are_equally_likely():
    order = our_draw(32, 32).order
    code = (order * torch.tensor([64, 16, 4, 1])).sum(1)
    counts = code.unique(return_counts=True)[1].double()
    assert len(counts) == 24
    assert ((counts - N / 24).square() / (N / 24)).sum() < CHI2_23


def figures(parameters):
    columns = {name: field.double() for name, field in parameters._asdict().items() if name != "order"}
    return columns | {f"place of operation {k}": (parameters.order == k).double().argmax(1).double() for k in range(4)}


def correlation(a, b):
    return torch.corrcoef(torch.stack([a, b]))[0, 1].abs().item()


def test_parameters_of_an_image_are_independent():
    drawn = figures(our_draw(32, 32))
    # A crop's place depends on its size, and an operation's place on that of the others.
    related = [{"top", "height", "left", "width"}, {name for name in drawn if name.startswith("place")}]
    pairs = [pair for pair in combinations(drawn, 2) if not any(set(pair) <= group for group in related)]
    assert len(pairs) == 93
    assert max(correlation(drawn[a], drawn[b]) for a, b in pairs) < 4 / math.sqrt(N)


def test_the_two_views_are_independent():
    generator = seeded(0)
    first, second = (figures(SimCLRAugment(32).draw(N, 32, 32, generator)) for _ in range(2))
    assert max(correlation(first[name], second[name]) for name in first) < 4 / math.sqrt(N)


def test_neighbouring_images_are_independent():
    drawn = figures(our_draw(32, 32))
    assert max(correlation(field[:-1], field[1:]) for field in drawn.values()) < 4 / math.sqrt(N)


def test_draws_of_fewer_images_are_the_first_of_more():
    augment = SimCLRAugment(32)
    few, many = augment.draw(5, 32, 32, seeded(0)), augment.draw(9, 32, 32, seeded(0))
    assert all(torch.equal(a, b[:5]) for a, b in zip(few, many, strict=True))


@pytest.mark.parametrize(("height", "width"), [(10, 40), (40, 10)])
def test_crops_that_never_fit_fall_back_to_the_largest_central_one(height, width):
    image = torch.empty(3, height, width)
    fallback = RandomResizedCrop.get_params(image, [1.0, 1.0], [3 / 4, 4 / 3])
    drawn = SimCLRAugment(32, strength=0).draw(3, height, width)
    assert [tuple(map(int, box)) for box in zip(*drawn[:4], strict=True)] == [fallback] * 3
