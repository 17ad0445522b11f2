"""Robustness and richness of features, against slow loops and closed forms."""

import math
import re

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from advcontrast.functional.representation import (
    breakaway_risk,
    effective_rank,
    margin_ratio,
    nearest_neighbour_accuracy,
    overlap_risk,
    uniformity,
)

TOLERANCE = 1e-12  # relative, float64
HALF = [torch.float16, torch.bfloat16]


def features(n=7, d=3, spread=0.8):
    """Return clean features, and adversarial ones near enough that some but not all break away."""
    clean = torch.randn(n, d, dtype=torch.float64)
    return clean, clean + spread * torch.randn(n, d, dtype=torch.float64)


def ranks(clean, adv):
    """Count for each row the others that are closer, pair by pair."""
    clean, adv = clean.tolist(), adv.tolist()
    counts = []
    for i, row in enumerate(adv):
        own = math.dist(row, clean[i])
        counts.append(sum(math.dist(row, other) < own for j, other in enumerate(clean) if j != i))
    return counts


@pytest.mark.parametrize(("n", "d"), [(2, 1), (5, 2), (9, 1), (12, 7), (40, 2)])
def test_breakaway_risk_is_the_mean_over_all_ordered_pairs(n, d):
    clean, adv = features(n, d)
    assert breakaway_risk(clean, adv).item() == pytest.approx(sum(ranks(clean, adv)) / (n * (n - 1)), rel=TOLERANCE)


@pytest.mark.parametrize("top", [1, 2, 5])
def test_nearest_neighbour_accuracy_is_the_share_of_images_with_few_rivals(top):
    clean, adv = features(40, 2)
    expected = sum(rank < top for rank in ranks(clean, adv)) / 40
    assert 0 < expected < 1
    assert nearest_neighbour_accuracy(clean, adv, top=top).item() == expected


def test_nearest_neighbour_accuracy_asks_for_the_nearest_by_default():
    clean, adv = features(40, 2)
    assert torch.equal(nearest_neighbour_accuracy(clean, adv), nearest_neighbour_accuracy(clean, adv, top=1))


def test_every_row_counts_where_the_distances_come_in_several_blocks():
    # The image at i is driven to k - 1/4 for a k > i: 2 (k - i) - 1 places are nearer, as far as there are that many.
    n, k = 1100, 1000
    clean = torch.arange(n, dtype=torch.float64)[:, None]
    adv = torch.full((n, 1), k - 0.25, dtype=torch.float64)
    adv[k:] = clean[k:]
    rivals = [min(2 * (k - i) - 1, n - 1 - i) for i in range(k)]
    assert breakaway_risk(clean, adv).item() == pytest.approx(sum(rivals) / (n * (n - 1)), rel=TOLERANCE)
    assert nearest_neighbour_accuracy(clean, adv).item() == (n - k) / n
    assert nearest_neighbour_accuracy(clean, adv, top=2).item() == (n - k + 1) / n


def test_every_row_has_the_tolerance_of_its_own_length_in_every_block():
    # The tolerance of the long rows, in the first block, would hide that short ones are driven onto their neighbours.
    clean = torch.cat([1e7 * torch.arange(1, 513), torch.arange(1, 89)]).double()[:, None]
    adv = clean.clone()
    adv[512:] += 1
    assert breakaway_risk(clean, adv).item() == pytest.approx(87 / (600 * 599), rel=TOLERANCE)


def test_without_an_attack_nothing_breaks_away():
    clean, _ = features(50)
    assert breakaway_risk(clean, clean).item() == 0
    assert nearest_neighbour_accuracy(clean, clean).item() == 1


def test_exchanged_images_all_break_away():
    clean = torch.tensor([[0.0], [1.0]])
    assert breakaway_risk(clean, clean.flip(0)).item() == 1
    assert nearest_neighbour_accuracy(clean, clean.flip(0)).item() == 0


def test_image_halfway_to_another_has_not_broken_away():
    clean, adv = torch.tensor([[0.0], [1.0]]), torch.tensor([[0.5], [1.0]])
    assert breakaway_risk(clean, adv).item() == 0
    assert nearest_neighbour_accuracy(clean, adv).item() == 1


@pytest.mark.parametrize("noise", [0, 1e-6], ids=["exact", "rounded"])
def test_copies_of_an_image_are_no_rivals(noise):
    clean, _ = features(30, 16)
    clean = clean.repeat(3, 1).float()
    clean = clean * (1 + noise * torch.randn(90, 16))
    adv = clean + 1e-3 * torch.randn(90, 16)
    assert breakaway_risk(clean, adv).item() == 0
    assert nearest_neighbour_accuracy(clean, adv).item() == 1


def test_slightly_different_images_are_rivals():
    clean = torch.tensor([[1.0, 0.0], [1.0, 1e-4]])
    assert breakaway_risk(clean, clean.flip(0)).item() == 1


def test_encoder_of_one_point_has_no_risk():
    point = torch.full((20, 4), 0.3)
    assert breakaway_risk(point, point).item() == 0
    assert nearest_neighbour_accuracy(point, point).item() == 1


def test_small_distances_are_not_lost_to_cancellation():
    clean = 1000 + torch.arange(40.0)[:, None].repeat(1, 8)
    adv = clean.roll(1, 0).clone()
    adv[0] = clean[0]
    assert nearest_neighbour_accuracy(clean, adv).item() == 1 / 40


def margins(clean, other, adv, adv_other):
    lists = zip(*(z.tolist() for z in (clean, other, adv, adv_other)), strict=True)
    return [(math.dist(c, aa) - math.dist(c, a)) / math.dist(c, cc) for c, cc, a, aa in lists]


def four(n=20, d=3):
    return torch.randn(4, n, d, dtype=torch.float64)


def test_margin_ratio_is_the_definition():
    corners = four()
    assert margin_ratio(*corners).tolist() == pytest.approx(margins(*corners), rel=1e-10)


def test_margin_is_one_without_an_attack():
    clean, other, _, _ = four()
    assert margin_ratio(clean, other, clean, other).tolist() == pytest.approx([1] * 20, rel=TOLERANCE)


def test_margin_is_zero_where_both_meet_halfway():
    clean, other, _, _ = four()
    middle = (clean + other) / 2
    assert margin_ratio(clean, other, middle, middle).tolist() == pytest.approx([0] * 20, abs=TOLERANCE)


def test_margin_is_minus_one_where_both_change_places():
    clean, other, _, _ = four()
    assert margin_ratio(clean, other, other, clean).tolist() == pytest.approx([-1] * 20, rel=TOLERANCE)


@pytest.mark.parametrize("noise", [0, 1e-6], ids=["exact", "rounded"])
def test_margin_of_an_image_and_its_copy_is_one(noise):
    clean, _, adv, adv_other = four()
    other = clean * (1 + noise * torch.rand(20, 1))
    assert margin_ratio(clean, other, adv, adv_other).tolist() == [1.0] * 20


def test_margin_at_the_origin_is_one():
    zero = torch.zeros(3, 2)
    assert margin_ratio(zero, zero, zero, zero).tolist() == [1.0] * 3


def test_margin_takes_a_single_pair():
    assert margin_ratio(*four(1)).shape == (1,)


def test_overlap_risk_is_the_share_of_negative_margins():
    assert overlap_risk(torch.tensor([-1.0, 1e-30, -1e-30, 0.0, 1.0])).item() == 0.4


def test_overlap_risk_of_one_pair_is_all_or_nothing():
    assert [overlap_risk(torch.tensor([margin])).item() for margin in (-0.5, 0.5)] == [1, 0]


@pytest.mark.parametrize(("n", "t"), [(2, 2.0), (9, 2.0), (9, 0.5)])
def test_uniformity_is_the_definition(n, t):
    z, _ = features(n)
    unit = [[x / math.hypot(*row) for x in row] for row in z.tolist()]
    total = math.fsum(math.exp(-t * math.dist(a, b) ** 2) for i, a in enumerate(unit) for b in unit[:i])
    assert uniformity(z, t=t).item() == pytest.approx(math.log(total / (n * (n - 1) / 2)), rel=TOLERANCE)


def test_uniformity_is_sharpened_with_2_by_default():
    z, _ = features()
    assert torch.equal(uniformity(z), uniformity(z, t=2.0))


def test_uniformity_counts_every_pair_where_the_distances_come_in_several_blocks():
    # Half of the rows point one way and half the other: n / 2 of the n - 1 others lie across.
    n = 1200
    z = torch.ones(n, 2)
    z[n // 2 :] *= -3
    across = n / 2 / (n - 1)
    assert uniformity(z).item() == pytest.approx(math.log(1 - across + across * math.exp(-8)), rel=1e-10)


def test_uniformity_of_one_direction_is_zero():
    z = torch.rand(10, 1).add(0.1) * torch.randn(3)
    assert uniformity(z).item() == pytest.approx(0, abs=1e-12)


def test_uniformity_of_opposite_features_is_the_least():
    assert uniformity(torch.tensor([[1.0, 2.0], [-1.0, -2.0]])).item() == pytest.approx(-8, rel=TOLERANCE)


def test_uniformity_of_many_dimensions_is_about_minus_four():
    assert uniformity(torch.randn(300, 256)).item() == pytest.approx(-4 + 8 / 256, abs=0.01)


def test_row_of_zeros_is_one_away_from_the_sphere():
    z = torch.tensor([[0.0, 0.0], [3.0, 4.0]])
    assert uniformity(z).item() == pytest.approx(-2, rel=TOLERANCE)


def test_gradient_of_the_uniformity_equals_finite_differences():
    z, _ = features()
    assert torch.autograd.gradcheck(uniformity, z.requires_grad_())


def test_gradient_of_the_uniformity_is_finite_for_equal_rows_and_rows_of_zeros():
    z = torch.tensor([[1.0, 2.0], [1.0, 2.0], [0.0, 0.0], [0.0, 0.0]], requires_grad=True)
    uniformity(z).backward()
    assert z.grad.isfinite().all()


@pytest.mark.parametrize("values", [[1.0], [3.0, 3.0], [4.0, 2.0, 1.0], [5.0, 0.0, 1.0]])
def test_effective_rank_is_the_entropy_of_the_singular_values(values):
    left, right = (torch.linalg.qr(torch.randn(6, 6, dtype=torch.float64))[0] for _ in range(2))
    singular = torch.zeros(6, dtype=torch.float64)
    singular[: len(values)] = torch.tensor(values)
    p = [value / sum(values) for value in values if value]
    expected = math.exp(-math.fsum(x * math.log(x) for x in p))
    assert effective_rank(left @ singular.diag() @ right).item() == pytest.approx(expected, rel=1e-10)


def test_effective_rank_of_an_orthogonal_basis_is_its_size():
    assert effective_rank(torch.cat([torch.eye(5), -torch.eye(5)])).item() == pytest.approx(5, rel=TOLERANCE)


@pytest.mark.parametrize("constant", [0.3, 0.0, 1e30])
def test_effective_rank_of_a_constant_is_one(constant):
    assert effective_rank(torch.full((200, 64), constant)).item() == pytest.approx(1, abs=1e-10)


@pytest.mark.parametrize("shape", [(3, 50), (50, 3)])
def test_effective_rank_is_bounded_by_both_sides(shape):
    assert 2 < effective_rank(torch.randn(shape)).item() <= 3


PAIRS = [breakaway_risk, nearest_neighbour_accuracy]
SINGLE = [uniformity, effective_rank]
MEASURES = [*PAIRS, lambda c, a: uniformity(a), lambda c, a: effective_rank(a), lambda c, a: margin_ratio(c, a, a, c)]
NAMES = ["breakaway", "nearest", "uniformity", "rank", "margin"]


@pytest.mark.parametrize("scale", [2.0**600, 2.0**-600])
@pytest.mark.parametrize("measure", MEASURES, ids=NAMES)
def test_scale_of_the_features_does_not_matter(measure, scale):
    clean, adv = features(20)
    torch.testing.assert_close(measure(clean * scale, adv * scale), measure(clean, adv), rtol=TOLERANCE, atol=0)


@pytest.mark.parametrize("measure", MEASURES, ids=NAMES)
def test_result_is_float64(measure):
    clean, adv = (z.float() for z in features())
    assert measure(clean, adv).dtype == torch.float64


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("measure", MEASURES, ids=NAMES)
def test_features_of_half_precision_are_computed_with_in_float64(measure, dtype):
    clean, adv = (z.to(dtype) for z in features(20))
    assert torch.equal(measure(clean, adv), measure(clean.double(), adv.double()))


@pytest.mark.parametrize("measure", MEASURES, ids=NAMES)
def test_autocast_changes_nothing(measure):
    clean, adv = (z.float() for z in features(40))
    expected = measure(clean, adv)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(measure(clean, adv), expected)


@pytest.mark.parametrize("measure", MEASURES, ids=NAMES)
def test_features_are_left_as_they_were(measure):
    pair = [z.requires_grad_() for z in features()]
    before = [z.detach().clone() for z in pair]
    measure(*pair)
    assert all(torch.equal(z, old) for z, old in zip(pair, before, strict=True))


class Largest(TorchDispatchMode):
    """Notes the size of the largest tensor that an operation returns."""

    numel = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor):
            self.numel = max(self.numel, out.numel())
        return out


@pytest.mark.parametrize("measure", MEASURES[:3], ids=NAMES[:3])
def test_memory_does_not_grow_with_the_square_of_the_images(measure):
    sizes = []
    for n in (1024, 2048):
        with torch.no_grad(), Largest() as largest:
            measure(torch.randn(n, 2), torch.randn(n, 2))
        sizes.append(largest.numel)
    assert sizes[1] == 2 * sizes[0] < 2048**2


GOOD = torch.ones(4, 3)
NAN = torch.full((4, 3), math.nan)
BOTH = "clean and adv of shape"


@pytest.mark.parametrize(
    ("clean", "adv", "error", "message"),
    [
        (GOOD, GOOD[:3], ValueError, BOTH),
        (GOOD, GOOD[:, :2], ValueError, BOTH),
        (GOOD[:1], GOOD[:1], ValueError, BOTH),
        (GOOD[:0], GOOD[:0], ValueError, BOTH),
        (GOOD[0], GOOD[0], ValueError, BOTH),
        (GOOD[None], GOOD[None], ValueError, BOTH),
        (GOOD[:, :0], GOOD[:, :0], ValueError, BOTH),
        (GOOD.long(), GOOD, TypeError, "clean to be a floating point tensor"),
        (GOOD, GOOD.tolist(), TypeError, "adv to be a floating point tensor"),
        (GOOD, NAN, ValueError, "adv to be finite"),
        (GOOD / 0, GOOD, ValueError, "clean to be finite"),
        (GOOD, GOOD.to("meta"), ValueError, "clean and adv on one device"),
    ],
)
@pytest.mark.parametrize("measure", PAIRS)
def test_wrong_pairs_of_features(measure, clean, adv, error, message):
    with pytest.raises(error, match=re.escape(f"{measure.__name__}: expected {message}")):
        measure(clean, adv)


@pytest.mark.parametrize(
    ("z", "error", "message"),
    [
        (GOOD[:1], ValueError, "z of shape"),
        (GOOD[0], ValueError, "z of shape"),
        (GOOD[:, :0], ValueError, "z of shape"),
        (GOOD.int(), TypeError, "z to be a floating point tensor"),
        (NAN, ValueError, "z to be finite"),
    ],
)
@pytest.mark.parametrize("measure", SINGLE)
def test_wrong_features(measure, z, error, message):
    with pytest.raises(error, match=re.escape(f"{measure.__name__}: expected {message}")):
        measure(z)


@pytest.mark.parametrize(
    ("which", "bad", "message"),
    [
        (3, GOOD[:3], "clean and other and adv and adv_other of shape"),
        (2, NAN, "adv to be finite"),
    ],
)
def test_wrong_features_for_margins(which, bad, message):
    four = [GOOD, GOOD, GOOD, GOOD]
    four[which] = bad
    with pytest.raises(ValueError, match=re.escape(f"margin_ratio: expected {message}")):
        margin_ratio(*four)


@pytest.mark.parametrize(
    ("top", "error", "message"),
    [
        (0, ValueError, "top to be"),
        (1.0, TypeError, "top to be"),
        (True, TypeError, "top to be"),
        (4, ValueError, "top below"),
    ],
)
def test_wrong_top(top, error, message):
    with pytest.raises(error, match=re.escape(f"nearest_neighbour_accuracy: expected {message}")):
        nearest_neighbour_accuracy(GOOD, GOOD, top=top)


@pytest.mark.parametrize(
    ("t", "error", "got"),
    [(0, ValueError, "0"), (-2, ValueError, "-2"), (math.nan, ValueError, "nan"), ("2", TypeError, "str")],
)
def test_wrong_sharpness(t, error, got):
    message = f"uniformity: expected t to be a finite number > 0, got {got}"
    with pytest.raises(error, match=re.escape(message)):
        uniformity(GOOD, t=t)


@pytest.mark.parametrize(
    ("margins", "error", "message"),
    [
        (GOOD, ValueError, "margins of shape"),
        (GOOD[0, :0], ValueError, "margins of shape"),
        (NAN[0], ValueError, "margins to be finite"),
        ([0.1], TypeError, "margins to be a"),
    ],
)
def test_wrong_margins(margins, error, message):
    with pytest.raises(error, match=re.escape(f"overlap_risk: expected {message}")):
        overlap_risk(margins)
