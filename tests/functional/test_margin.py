"""The difference of logits ratio and its targeted form."""

import itertools
import math
import re

import numpy as np
import pytest
import torch

from advcontrast.functional.margin import dlr, targeted_dlr

TOLERANCE = 1e-12  # relative, float64
HALF = [torch.float16, torch.bfloat16]


def logits(n=40, classes=6, scale=1.0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(2)
    return scale * torch.randn(n, classes, generator=generator, dtype=torch.float64).to(dtype)


def labels(n=40, classes=6):
    return torch.randint(classes, (n,), generator=torch.Generator().manual_seed(3))


def others(y, classes=6):
    return (y + 1 + torch.arange(len(y)) % (classes - 1)) % classes


def slow_dlr(row, y):
    ordered = sorted(row, reverse=True)
    return -(row[y] - max(z for i, z in enumerate(row) if i != y)) / (ordered[0] - ordered[2])


def slow_targeted(row, y, t):
    ordered = sorted(row, reverse=True)
    return -(row[y] - row[t]) / (ordered[0] - (ordered[2] + ordered[3]) / 2)


def both(z, y, target):
    return dlr(z, y), targeted_dlr(z, y, target)


@pytest.mark.parametrize("classes", [3, 4, 6, 50])
def test_dlr_is_the_definition(classes):
    z, y = logits(classes=classes), labels(classes=classes)
    expected = [slow_dlr(row, c) for row, c in zip(z.tolist(), y.tolist(), strict=True)]
    assert dlr(z, y).tolist() == pytest.approx(expected, rel=TOLERANCE)


@pytest.mark.parametrize("classes", [4, 6, 50])
def test_targeted_dlr_is_the_definition(classes):
    z, y = logits(classes=classes), labels(classes=classes)
    target = others(y, classes)
    expected = [slow_targeted(*row) for row in zip(z.tolist(), y.tolist(), target.tolist(), strict=True)]
    assert targeted_dlr(z, y, target).tolist() == pytest.approx(expected, rel=TOLERANCE)


def test_references_agree():
    module = pytest.importorskip("pyautoattack.autopgd_base")
    z, y = logits(), labels()
    ours = both(z, y, others(y))
    targeted = module.APGDAttack_targeted(None, eps=1.0)
    targeted.y_target = others(y)
    theirs = module.APGDAttack(None, eps=1.0).dlr_loss(z, y), targeted.dlr_loss_targeted(z, y)
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=0)


def test_dlr_is_positive_exactly_where_a_sample_is_misclassified():
    z, y = logits(400), labels(400)
    wrong = z.argmax(1) != y
    assert torch.equal(dlr(z, y) > 0, wrong)
    assert wrong.any()
    assert not wrong.all()


def test_dlr_of_a_correct_sample_is_at_least_minus_one():
    z = logits(400)
    assert (dlr(z, z.argmax(1)) >= -1).all()


def test_dlr_of_a_sample_one_class_from_correct_is_at_most_one():
    z = logits(400)
    assert (dlr(z, z.topk(2).indices[:, 1]) <= 1).all()


def test_targeted_dlr_is_positive_only_where_a_sample_is_misclassified():
    z, y = logits(400), labels(400)
    positive = targeted_dlr(z, y, others(y)) > 0
    assert positive.any()
    assert (z.argmax(1) != y)[positive].all()


def test_largest_targeted_dlr_has_the_sign_of_dlr():
    z, y = logits(4, 4), torch.zeros(4, dtype=torch.int64)
    best = torch.stack([targeted_dlr(z, y, torch.full_like(y, t)) for t in (1, 2, 3)]).amax(0)
    assert torch.equal(best.sign(), dlr(z, y).sign())


@pytest.mark.parametrize("factor", [2.0**-40, 0.5, 2.0**30])
def test_scale_changes_nothing(factor):
    z, y = logits(), labels()
    assert torch.equal(torch.stack(both(factor * z, y, others(y))), torch.stack(both(z, y, others(y))))


def test_shift_changes_nothing():
    z, y = logits(), labels()
    torch.testing.assert_close(both(z + 7, y, others(y)), both(z, y, others(y)), rtol=1e-9, atol=1e-9)


def test_permuted_classes_change_nothing():
    z, y, order = logits(), labels(), torch.tensor([3, 5, 0, 1, 4, 2])
    back = order.argsort()
    assert torch.equal(dlr(z[:, order], back[y]), dlr(z, y))
    assert torch.equal(targeted_dlr(z[:, order], back[y], back[others(y)]), targeted_dlr(z, y, others(y)))


def test_gradient_is_that_of_the_definition():
    z, y = logits(6).requires_grad_(), labels(6)
    assert torch.autograd.gradcheck(lambda z: dlr(z, y), z)
    assert torch.autograd.gradcheck(lambda z: targeted_dlr(z, y, others(y)), z)


def test_gradient_does_not_vanish_where_the_classifier_is_sure():
    z, y = logits(scale=1e4), logits().argmax(1)
    sure = z.clone().requires_grad_()
    (slope,) = torch.autograd.grad(torch.nn.functional.cross_entropy(sure, y), sure)
    (ours,) = torch.autograd.grad(dlr(sure, y).sum(), sure)
    assert (slope == 0).all(1).any()
    assert (ours != 0).any(1).all()


TIES = torch.tensor(list(itertools.product([0.0, 1.0], repeat=4)), dtype=torch.float64)


@pytest.mark.parametrize("y", range(4))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, *HALF])
def test_ties_have_finite_values_and_gradients(dtype, y):
    z, classes = TIES.to(dtype).requires_grad_(), torch.full((16,), y)
    for value in both(z, classes, (classes + 1) % 4):
        assert value.isfinite().all()
        assert torch.autograd.grad(value.sum(), z)[0].isfinite().all()


def test_tie_of_three_that_include_the_class_has_value_zero():
    assert dlr(torch.tensor([[1.0, 1.0, 1.0, 0.0]]), torch.tensor([1])).tolist() == [0]


def test_tie_of_three_above_the_class_leaves_the_numerator():
    assert dlr(torch.tensor([[3.0, 3.0, 3.0, 1.0]]), torch.tensor([3])).tolist() == [2]


def test_tie_of_all_pushes_the_class_down_and_the_target_up():
    z = torch.zeros(1, 4, requires_grad=True)
    value = targeted_dlr(z, torch.tensor([0]), torch.tensor([2]))
    assert torch.autograd.grad(value.sum(), z)[0].tolist() == [[-1, 0, 1, 0]]


@pytest.mark.parametrize("dtype", HALF)
def test_half_precision_is_computed_in_float32(dtype):
    z, y = logits(dtype=dtype), labels()
    ours = both(z, y, others(y))
    assert all(torch.equal(a, b) for a, b in zip(ours, both(z.float(), y, others(y)), strict=True))


def test_dtype_of_float64_is_kept():
    assert all(value.dtype == torch.float64 for value in both(logits(), labels(), others(labels())))


def test_empty_batch_has_no_values():
    z, y = torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64)
    assert [value.shape for value in both(z, y, y)] == [(0,), (0,)]


Z, Y = torch.arange(20.0).view(4, 5), torch.arange(4)
BAD = [
    (None, Y, TypeError, "logits to be"),
    (Z.long(), Y, TypeError, "logits to be"),
    (Z.numpy(), Y, TypeError, "logits to be"),
    (Z[0], Y, ValueError, "logits of shape"),
    (Z[:, :2], Y, ValueError, "logits of shape"),
    (Z[..., None], Y, ValueError, "logits of shape"),
    (Z, Y.int(), TypeError, "y to be"),
    (Z, Y.tolist(), TypeError, "y to be"),
    (Z, np.arange(4), TypeError, "y to be"),
    (Z, Y[:3], ValueError, "y of shape"),
    (Z, Y[:, None], ValueError, "y of shape"),
    (Z, Y + 2, ValueError, "y within"),
    (Z, Y - 1, ValueError, "y within"),
    (Z, Y.to("meta"), ValueError, "logits and y on one device"),
]


@pytest.mark.parametrize(("z", "y", "error", "message"), BAD)
def test_wrong_arguments(z, y, error, message):
    with pytest.raises(error, match=re.escape(f"dlr: expected {message.format(least=3)}")):
        dlr(z, y)
    with pytest.raises(error, match=re.escape(f"targeted_dlr: expected {message.format(least=4)}")):
        targeted_dlr(z, y, Y + 1)


def test_three_classes_are_too_few_for_a_target():
    with pytest.raises(ValueError, match=re.escape("targeted_dlr: expected logits of shape [N, C] with C >= 4, got")):
        targeted_dlr(Z[:, :3], Y % 3, (Y + 1) % 3)


@pytest.mark.parametrize(
    ("target", "error", "message"),
    [
        (Y.float(), TypeError, "target to be"),
        (3, TypeError, "target to be"),
        (Y[:2], ValueError, "target of shape"),
        (Y.to("meta"), ValueError, "logits and target on one device"),
        (Y + 2, ValueError, "target within"),
        (torch.tensor([0, 2, 2, 4]), ValueError, "target to differ"),
    ],
)
def test_wrong_targets(target, error, message):
    with pytest.raises(error, match=re.escape(f"targeted_dlr: expected {message}")):
        targeted_dlr(Z, Y, target)


def test_not_a_number_stays_visible():
    z = torch.tensor([[math.nan, 1.0, 2.0, 3.0]])
    assert all(value.isnan().all() for value in both(z, torch.tensor([1]), torch.tensor([0])))
