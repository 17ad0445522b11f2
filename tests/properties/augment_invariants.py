"""Invariants of SimCLR's recipe, and of pairs of views, for any implementation."""

import math
from functools import cache
from typing import NamedTuple

import torch
from torchvision.transforms import InterpolationMode, RandomResizedCrop, v2
from torchvision.transforms import functional as TF

from advcontrast.augment import ViewParameters
from tests.augment.statistics import KS_LIMIT, N, ks, sigmas

# Largest measured difference in brackets.
PARITY = 4e-6  # (2.1e-6)
SUBSET = 1e-6  # (3.0e-7: torch multiplies batches of matrices in another order when there are fewer)
MANY = 64  # images enough to see that parameters vary


class Case(NamedTuple):
    n: int
    channels: int
    height: int
    width: int
    size: tuple[int, int]
    strength: float
    dtype: torch.dtype
    seed: int


def seeded(case, offset=0):
    return torch.Generator().manual_seed(case.seed + offset)


def images(case):
    x = torch.rand(case.n, case.channels, case.height, case.width, generator=seeded(case, 1), dtype=torch.float64)
    return (256 * x).to(torch.uint8) if case.dtype == torch.uint8 else x.to(case.dtype)


def floats(x):
    return x.float() / 255 if x.dtype == torch.uint8 else x


def build(implementation, case):
    return implementation(case.size, strength=case.strength)


def draw(augment, case, n=None):
    return augment.draw(case.n if n is None else n, case.height, case.width, seeded(case))


def subset(parameters, which):
    return ViewParameters(*(field[which] for field in parameters))


def by_torchvision(image, p, size):
    box = [int(edge) for edge in (p.top, p.left, p.height, p.width)]
    view = TF.resized_crop(image, *box, list(size), InterpolationMode.BICUBIC, antialias=True).clamp(0, 1)
    view = TF.hflip(view) if p.flip else view
    operations = (TF.adjust_brightness, TF.adjust_contrast, TF.adjust_saturation, TF.adjust_hue)
    amounts = (p.brightness, p.contrast, p.saturation, p.hue)
    for index in p.order.tolist() if p.jitter else []:
        view = operations[index](view, float(amounts[index]))
    return TF.rgb_to_grayscale(view, len(view)) if p.gray else view


def equals_torchvision(implementation, case):
    # Results one pixel wide are left out: there torch's antialiased interpolation repeats a row, and PIL does not.
    case = case._replace(size=(case.size[0], max(2, case.size[1])))
    augment, x = build(implementation, case), images(case)
    parameters = draw(augment, case)
    for index, view in enumerate(augment.apply(x, parameters)):
        expected = by_torchvision(floats(x)[index], subset(parameters, index), case.size)
        torch.testing.assert_close(view, expected, rtol=0, atol=PARITY)


def stays_in_the_unit_range(implementation, case):
    board = ((torch.arange(case.height)[:, None] + torch.arange(case.width)) % 2).to(images(case).dtype)
    board = board * 255 if case.dtype == torch.uint8 else board
    views = build(implementation, case)(board.expand(MANY, case.channels, -1, -1), seeded(case))
    assert views.min() >= 0
    assert views.max() <= 1


def a_call_is_a_draw_applied(implementation, case):
    augment, x = build(implementation, case), images(case)
    assert torch.equal(augment(x, seeded(case)), augment.apply(x, draw(augment, case)))


def can_be_replayed(implementation, case):
    augment, x = build(implementation, case), images(case)
    parameters = draw(augment, case)
    assert torch.equal(augment.apply(x, parameters), augment.apply(x, parameters))


def images_do_not_see_each_other(implementation, case):
    augment, x = build(implementation, case), images(case)
    parameters, which = draw(augment, case), list(range(0, case.n, 2))
    some, all_ = augment.apply(x[which], subset(parameters, which)), augment.apply(x, parameters)
    torch.testing.assert_close(some, all_[which], rtol=0, atol=SUBSET)


def shorter_draws_are_prefixes(implementation, case):
    augment = build(implementation, case)
    for few, many in zip(draw(augment, case), draw(augment, case, case.n + 3), strict=True):
        assert torch.equal(few, many[: case.n])


def every_image_has_its_own_parameters(implementation, case):
    augment = implementation(case.size)
    parameters = augment.draw(MANY, 32, 32, seeded(case))
    assert all(len(field.unique(dim=0)) > 1 for field in parameters)


def parameters_lie_in_their_ranges(implementation, case):
    p, s = draw(build(implementation, case), case, MANY), case.strength
    assert ((p.top >= 0) & (p.height >= 1) & (p.top + p.height <= case.height)).all()
    assert ((p.left >= 0) & (p.width >= 1) & (p.left + p.width <= case.width)).all()
    assert torch.equal(p.order.sort(1).values, torch.arange(4).expand(MANY, 4))
    for factor in (p.brightness, p.contrast, p.saturation):
        assert ((factor >= 1 - 0.4 * s) & (factor <= 1 + 0.4 * s)).all()
    assert (p.hue.abs() <= 0.1 * s).all()


def leaves_the_global_state_alone(implementation, case):
    before = torch.get_rng_state()
    build(implementation, case)(images(case), seeded(case))
    assert torch.equal(torch.get_rng_state(), before)


def only_the_generator_decides(implementation, case):
    augment, x, views = build(implementation, case), images(case), []
    with torch.random.fork_rng():
        for seed in (1, 2):
            torch.manual_seed(seed)
            views.append(augment(x, seeded(case)))
    assert torch.equal(*views)


def strength_zero_only_mirrors(implementation, case):
    case = case._replace(width=case.height, size=(case.height, case.height), strength=0)
    augment, x = build(implementation, case), images(case)
    flip = draw(augment, case).flip.view(-1, 1, 1, 1)
    assert torch.equal(augment(x, seeded(case)), torch.where(flip, floats(x).flip(3), floats(x)))


def keeps_dtype_and_shape(implementation, case):
    x = images(case)
    views = build(implementation, case)(x, seeded(case))
    assert views.dtype == floats(x).dtype
    assert views.shape == (case.n, case.channels, *case.size)


def keeps_the_memory_format(implementation, case):
    augment, x = build(implementation, case), torch.rand(2, 3, case.height + 1, case.width + 1)
    views = augment(x.contiguous(memory_format=torch.channels_last), seeded(case))
    assert views.is_contiguous(memory_format=torch.channels_last)
    assert augment(x, seeded(case)).is_contiguous()


def leaves_its_input_alone(implementation, case):
    x = images(case)
    before = x.clone()
    build(implementation, case)(x, seeded(case))
    assert torch.equal(x, before)


@cache
def _crops_of_torchvision():
    with torch.random.fork_rng():
        torch.manual_seed(1)
        boxes = [RandomResizedCrop.get_params(torch.empty(3, 32, 32), [0.1, 1.0], [3 / 4, 4 / 3]) for _ in range(N)]
    return torch.tensor(boxes).double().T


def draws_as_the_recipe_says(implementation, case):
    p = implementation(case.size).draw(N, 32, 32, seeded(case))
    ours, theirs = torch.stack(p[:4]).double(), _crops_of_torchvision()
    for a, b in zip(ours, theirs, strict=True):
        assert ks(a, b) < KS_LIMIT
    assert ks(ours[3] / ours[2], theirs[3] / theirs[2]) < KS_LIMIT
    for hits, probability in ((p.flip, 0.5), (p.jitter, 0.8), (p.gray, 0.2)):
        assert sigmas(hits, probability) < 3.9
    for operation in range(4):
        assert sigmas(p.order[:, 0] == operation, 1 / 4) < 3.9


def draws_are_independent(implementation, case):
    p = implementation(case.size).draw(N, 32, 32, seeded(case))
    fields = [p.height * p.width, p.flip, p.jitter, p.order[:, 0], *p[7:]]
    correlations = torch.corrcoef(torch.stack([field.double() for field in fields])).fill_diagonal_(0)
    assert correlations.abs().max() < 4.5 / math.sqrt(N)


def the_views_of_a_pair_differ(pair, case):
    x1, x2 = pair(case.size)(torch.rand(MANY, 3, 32, 32, generator=seeded(case, 1)), seeded(case))
    assert (x1 != x2).flatten(1).any(1).float().mean() > 0.9


def a_pair_is_deterministic(pair, case):
    augment, x = pair(case.size, strength=case.strength), images(case)
    assert all(map(torch.equal, augment(x, seeded(case)), augment(x, seeded(case))))


def a_pair_leaves_the_global_state_alone(pair, case):
    before = torch.get_rng_state()
    pair(case.size, transform=_noisy)(images(case), seeded(case))
    assert torch.equal(torch.get_rng_state(), before)


def a_pair_transforms_with_the_generator(pair, case):
    augment, x, views = pair(case.size, transform=_noisy), images(case), []
    with torch.random.fork_rng():
        for seed in (1, 2):
            torch.manual_seed(seed)
            views.append(augment(x, seeded(case)))
    assert all(map(torch.equal, *views))


def a_pair_transforms_image_by_image(pair, case):
    same = torch.rand(1, 3, 32, 32, generator=seeded(case, 1)).expand(8, -1, -1, -1)
    views = pair(case.size, transform=v2.RandomResizedCrop(8))(same, seeded(case))
    assert all(len(view.flatten(1).unique(dim=0)) > 1 for view in views)


def a_generator_moves_on(pair, case):
    generator, x = seeded(case), torch.rand(8, 3, 16, 16, generator=seeded(case, 1))
    for augment in (pair(case.size), pair(case.size, transform=_noisy)):
        assert not torch.equal(augment(x, generator)[0], augment(x, generator)[0])


def _noisy(x):
    return (x + torch.rand_like(x)) / 2


RECIPE = (
    equals_torchvision,
    stays_in_the_unit_range,
    a_call_is_a_draw_applied,
    can_be_replayed,
    images_do_not_see_each_other,
    shorter_draws_are_prefixes,
    every_image_has_its_own_parameters,
    parameters_lie_in_their_ranges,
    leaves_the_global_state_alone,
    only_the_generator_decides,
    strength_zero_only_mirrors,
    keeps_dtype_and_shape,
    keeps_the_memory_format,
    leaves_its_input_alone,
)
DRAWS = (draws_as_the_recipe_says, draws_are_independent)
PAIR = (
    the_views_of_a_pair_differ,
    a_pair_is_deterministic,
    a_pair_leaves_the_global_state_alone,
    a_pair_transforms_with_the_generator,
    a_pair_transforms_image_by_image,
    a_generator_moves_on,
)
