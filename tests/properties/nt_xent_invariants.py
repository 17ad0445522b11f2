"""Invariants of NT-Xent, as functions that raise AssertionError where an implementation breaks one."""

import math
from functools import partial
from typing import NamedTuple

import torch
from torch.nn import functional as F

T64 = 1e-12  # relative to max(1, |expected|), float64; rounding stays a hundred times below
T32 = 2e-6  # the same in float32, divided by the temperature where that is below 1
TILES = (1, 2, 3, 5, 64)


class Case(NamedTuple):
    """One batch: ``pairs`` rows of ``features`` numbers for each view, drawn from ``seed``."""

    pairs: int
    features: int
    temperature: float
    seed: int

    def generator(self):
        return torch.Generator().manual_seed(self.seed)

    def views(self, dtype=torch.float64):
        z = torch.randn(2, self.pairs, self.features, generator=self.generator(), dtype=torch.float64)
        return z.to(dtype).unbind(0)


def oracle(z1, z2, temperature):
    """Evaluate the definition on Python floats, one product at a time."""
    rows = []
    for row in [*z1.tolist(), *z2.tolist()]:
        largest = max(map(abs, row)) or 1.0
        length = math.sqrt(math.fsum((value / largest) ** 2 for value in row)) or 1.0
        rows.append([value / largest / length for value in row])
    losses = []
    for i, anchor in enumerate(rows):
        scores = [math.fsum(a * b for a, b in zip(anchor, row, strict=True)) / temperature for row in rows]
        partner = scores[(i + len(z1)) % len(rows)]
        largest = max(scores)
        total = math.fsum(math.exp(score - largest) for j, score in enumerate(scores) if j != i)
        losses.append(largest + math.log(total) - partner if total else math.inf)
    return math.fsum(losses) / len(losses)


def near(actual, expected, tolerance=T64):
    actual, expected = float(actual), float(expected)
    assert abs(actual - expected) <= tolerance * max(1.0, abs(expected)), f"{actual} instead of {expected}"


def near_tensor(actual, expected, tolerance):
    torch.testing.assert_close(actual, expected, rtol=0, atol=tolerance)


def gradients(loss, z1, z2, temperature, **options):
    z1, z2 = (z.detach().clone().requires_grad_() for z in (z1, z2))
    value = loss(z1, z2, temperature, **options)
    slopes = torch.autograd.grad(value, (z1, z2), allow_unused=True)
    assert None not in slopes, "a view without gradient"
    return slopes


def equals_the_definition(loss, case):
    z1, z2 = case.views()
    near(loss(z1, z2, case.temperature), oracle(z1, z2, case.temperature))


def equals_masked_cross_entropy(loss, case):
    z1, z2 = case.views()
    unit = F.normalize(torch.cat([z1, z2]))
    logits = (unit @ unit.T / case.temperature).fill_diagonal_(-math.inf)
    target = torch.arange(2 * case.pairs).roll(case.pairs)
    near(loss(z1, z2, case.temperature), F.cross_entropy(logits, target))


def views_may_be_swapped(loss, case):
    z1, z2 = case.views()
    near(loss(z2, z1, case.temperature), loss(z1, z2, case.temperature))


def pairs_may_be_permuted(loss, case):
    z1, z2 = case.views()
    order = torch.randperm(case.pairs, generator=case.generator())
    near(loss(z1[order], z2[order], case.temperature), loss(z1, z2, case.temperature))


def partners_may_be_swapped(loss, case):
    z1, z2 = case.views()
    swap = torch.rand(case.pairs, 1, generator=case.generator()) < 0.5
    near(loss(z1.where(swap, z2), z2.where(swap, z1), case.temperature), loss(z1, z2, case.temperature))


def row_scale_is_ignored(loss, case):
    z1, z2 = case.views()
    scales = torch.randn(2, case.pairs, 1, generator=case.generator(), dtype=torch.float64).mul(3).exp()
    near(loss(z1 * scales[0], z2 * scales[1], case.temperature), loss(z1, z2, case.temperature))


def rotation_is_ignored(loss, case):
    z1, z2 = case.views()
    noise = torch.randn(case.features, case.features, generator=case.generator(), dtype=torch.float64)
    rotation = torch.linalg.qr(noise).Q
    near(loss(z1 @ rotation, z2 @ rotation, case.temperature), loss(z1, z2, case.temperature), 1e-11)


def collapse_costs_log_of_the_others(loss, case):
    z1, _ = case.views()
    same = z1[:1].repeat(case.pairs, 1)
    near(loss(same, same, case.temperature), math.log(2 * case.pairs - 1))


def orthonormal_pairs_have_a_closed_form(loss, case):
    z = torch.eye(case.pairs, dtype=torch.float64)
    near(loss(z, z, case.temperature), math.log1p((2 * case.pairs - 2) * math.exp(-1 / case.temperature)))


def lowest_is_the_simplex(loss, case):
    n, t = case.pairs, case.temperature
    lowest = math.log1p((2 * n - 2) * math.exp(-n / ((n - 1) * t)))
    simplex = torch.eye(n, dtype=torch.float64) - 1 / n
    near(loss(simplex, simplex, t), lowest)
    value = loss(*case.views(), t).item()
    assert lowest - T64 <= value <= math.log1p((2 * n - 2) * math.exp(2 / t)) + T64


def high_temperature_forgets_the_embeddings(loss, case):
    near(loss(*case.views(), 1e9), math.log(2 * case.pairs - 1), 1e-8)


def low_temperature_stays_exact(loss, case):
    for temperature in (0.01, 0.003):
        z1, z2 = case.views()
        near(loss(z1, z2, temperature), oracle(z1, z2, temperature), T64 / temperature)
        z1, z2 = case.views(torch.float32)
        near(loss(z1, z2, temperature), oracle(z1, z2, temperature), T32 / temperature)


def float32_is_accurate(loss, case):
    z1, z2 = case.views(torch.float32)
    value = loss(z1, z2, case.temperature)
    assert value.dtype == torch.float32
    near(value, oracle(z1, z2, case.temperature), T32 * max(1, 1 / case.temperature))


def half_precision_inputs_cost_no_accuracy(loss, case):
    for dtype in (torch.float16, torch.bfloat16):
        for temperature in (0.01, case.temperature):
            z1, z2 = case.views(dtype)
            value = loss(z1, z2, temperature)
            assert value.dtype == torch.float32
            near(value, oracle(z1, z2, temperature), T32 * max(1, 1 / temperature))


def autocast_costs_no_accuracy(loss, case):
    z1, z2 = case.views(torch.float32)
    for tile in (None, 3):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            value = loss(z1, z2, 0.01, tile=tile)
        assert value.dtype == torch.float32
        near(value, oracle(z1, z2, 0.01), T32 / 0.01)


def zero_rows_are_harmless(loss, case):
    z1, z2 = case.views()
    z1[0] = 0
    near(loss(z1, z2, case.temperature), oracle(z1, z2, case.temperature))
    for1, for2 = gradients(loss, z1, z2, case.temperature)
    assert torch.equal(for1[0], torch.zeros_like(for1[0]))
    assert for1.isfinite().all()
    assert for2.isfinite().all()
    zero = torch.zeros_like(z1)
    near(loss(zero, zero, case.temperature), math.log(2 * case.pairs - 1))
    for slope in gradients(loss, zero, zero, case.temperature):
        assert torch.equal(slope, zero)


def duplicates_are_ordinary(loss, case):
    z1, z2 = case.views()
    z1[1] = z1[0]
    z2[1] = z1[0]
    near(loss(z1, z2, case.temperature), oracle(z1, z2, case.temperature))


def any_range_of_float32_is_fine(loss, case):
    z1, z2 = case.views(torch.float32)
    z1, z2 = z1 / z1.abs().amax(), z2 / z2.abs().amax()
    for scale in (1e-30, 1e30):
        value = loss(z1 * scale, z2 * scale, case.temperature)
        near(value, oracle(z1, z2, case.temperature), 2 * T32 * max(1, 1 / case.temperature))


def gradient_equals_finite_differences(loss, case):
    z1, z2 = (z.clone().requires_grad_() for z in case.views())
    for tile in (None, 3):
        tiled = partial(loss, temperature=case.temperature, tile=tile)
        assert torch.autograd.gradcheck(tiled, (z1, z2), atol=1e-6, rtol=1e-5, raise_exception=False)


def second_derivative_equals_finite_differences(loss, case):
    z1, z2 = (z[:2].clone().requires_grad_() for z in case.views())
    try:
        right = torch.autograd.gradgradcheck(partial(loss, temperature=0.5), (z1, z2), atol=1e-5, rtol=1e-4)
    except RuntimeError as error:
        raise AssertionError("no second derivative") from error
    assert right


def gradient_is_tangent(loss, case):
    tolerance = T64 * max(1, 1 / case.temperature)
    views = case.views()
    for z, slope in zip(views, gradients(loss, *views, case.temperature), strict=True):
        near_tensor((z * slope).sum(1), torch.zeros_like(z[:, 0]), tolerance)


def gradient_does_not_turn(loss, case):
    z1, z2 = case.views()
    for1, for2 = gradients(loss, z1, z2, case.temperature)
    moment = torch.cat([z1, z2]).T @ torch.cat([for1, for2])
    near_tensor(moment, moment.T.contiguous(), 1e-11 * max(1, 1 / case.temperature))


def swapped_views_swap_gradients(loss, case):
    z1, z2 = case.views()
    for1, for2 = gradients(loss, z1, z2, case.temperature)
    swapped2, swapped1 = gradients(loss, z2, z1, case.temperature)
    near_tensor(swapped1, for1, 1e-11 / min(1, case.temperature))
    near_tensor(swapped2, for2, 1e-11 / min(1, case.temperature))


def gradient_shrinks_with_scale(loss, case):
    z1, z2 = case.views()
    for scale in (1e-6, 7.0):
        for1, _ = gradients(loss, z1, z2, case.temperature)
        scaled, _ = gradients(loss, z1 * scale, z2, case.temperature)
        near_tensor(scaled * scale, for1, 1e-11 / min(1, case.temperature))


def every_tile_gives_the_dense_result(loss, case):
    z1, z2 = case.views()
    dense, slopes = loss(z1, z2, case.temperature), gradients(loss, z1, z2, case.temperature)
    for tile in TILES:
        near(loss(z1, z2, case.temperature, tile=tile), dense)
        for tiled, slope in zip(gradients(loss, z1, z2, case.temperature, tile=tile), slopes, strict=True):
            near_tensor(tiled, slope, T64 * max(1, 1 / case.temperature))


def one_view_alone_gets_its_gradient(loss, case):
    z1, z2 = case.views()
    expected, _ = gradients(loss, z1, z2, case.temperature)
    for tile in (None, 2):
        alone = z1.clone().requires_grad_()
        loss(alone, z2, case.temperature, tile=tile).backward()
        near_tensor(alone.grad, expected, T64 * max(1, 1 / case.temperature))


def arguments_stay_as_they_were(loss, case):
    z1, z2 = case.views()
    before = z1.clone(), z2.clone()
    gradients(loss, z1, z2, case.temperature, tile=2)
    loss(z1, z2, case.temperature)
    assert torch.equal(z1, before[0])
    assert torch.equal(z2, before[1])


SLOW = (gradient_equals_finite_differences, second_derivative_equals_finite_differences)
FAST = (
    equals_the_definition,
    equals_masked_cross_entropy,
    views_may_be_swapped,
    pairs_may_be_permuted,
    partners_may_be_swapped,
    row_scale_is_ignored,
    rotation_is_ignored,
    collapse_costs_log_of_the_others,
    orthonormal_pairs_have_a_closed_form,
    lowest_is_the_simplex,
    high_temperature_forgets_the_embeddings,
    low_temperature_stays_exact,
    float32_is_accurate,
    half_precision_inputs_cost_no_accuracy,
    autocast_costs_no_accuracy,
    zero_rows_are_harmless,
    duplicates_are_ordinary,
    any_range_of_float32_is_fine,
    gradient_is_tangent,
    gradient_does_not_turn,
    swapped_views_swap_gradients,
    gradient_shrinks_with_scale,
    every_tile_gives_the_dense_result,
    one_view_alone_gets_its_gradient,
    arguments_stay_as_they_were,
)
