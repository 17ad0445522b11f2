"""The divergence of two predictions, and TRADES."""

import math
import re

import pytest
import torch
from torch.nn import functional as F

from advcontrast.functional import kl_divergence, trades

TOLERANCE = 1e-12  # relative, float64
LABELS = torch.tensor([0, 4, 2, 2, 1, 3])


def logits(n=6, classes=5, scale=1.0):
    return scale * torch.randn(n, classes, dtype=torch.float64), scale * torch.randn(n, classes, dtype=torch.float64)


def log_softmax(row):
    largest = max(row)
    normaliser = largest + math.log(math.fsum(math.exp(value - largest) for value in row))
    return [value - normaliser for value in row]


def slow_kl(row, other):
    p, q = log_softmax(row), log_softmax(other)
    return math.fsum(math.exp(a) * (a - b) for a, b in zip(p, q, strict=True))


@pytest.mark.parametrize("scale", [0.1, 1.0, 20.0])
def test_kl_is_the_definition(scale):
    p, q = logits(scale=scale)
    expected = [slow_kl(a, b) for a, b in zip(p.tolist(), q.tolist(), strict=True)]
    assert kl_divergence(p, q).tolist() == pytest.approx(expected, rel=TOLERANCE, abs=TOLERANCE)


def test_kl_of_two_classes_has_a_closed_form():
    p, q = torch.rand(2, 50, dtype=torch.float64)
    expected = p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()
    ours = kl_divergence(torch.stack([p, 1 - p], 1).log(), torch.stack([q, 1 - q], 1).log())
    torch.testing.assert_close(ours, expected, rtol=1e-10, atol=TOLERANCE)


def test_kl_is_not_negative():
    p, q = logits(1000, scale=3.0)
    assert (kl_divergence(p, q) > -TOLERANCE).all()


def test_kl_of_equal_predictions_is_exactly_zero():
    p, _ = logits(scale=50.0)
    assert torch.equal(kl_divergence(p, p.clone()), torch.zeros(6, dtype=torch.float64))


def test_kl_is_not_symmetric():
    p, q = logits()
    assert not torch.allclose(kl_divergence(p, q), kl_divergence(q, p), rtol=1e-3)


def test_constant_added_to_the_logits_changes_nothing():
    p, q = logits()
    shifts = 10 * torch.randn(2, 6, 1, dtype=torch.float64)
    torch.testing.assert_close(kl_divergence(p + shifts[0], q + shifts[1]), kl_divergence(p, q), rtol=0, atol=1e-13)


@pytest.mark.parametrize("scale", [50, 110, 1000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_extreme_logits_keep_value_and_both_gradients_finite(dtype, scale):
    p, q = ((scale * value).to(dtype).requires_grad_() for value in logits())
    loss = trades(p, q, LABELS[:6])
    loss.backward()
    assert loss.isfinite()
    assert p.grad.isfinite().all()
    assert q.grad.isfinite().all()


def test_gradients_equal_finite_differences_in_both_branches():
    p, q = (value.requires_grad_() for value in logits())
    assert torch.autograd.gradcheck(kl_divergence, (p, q))
    assert torch.autograd.gradcheck(lambda p, q: trades(p, q, LABELS), (p, q))


def test_trades_is_the_definition():
    p, q = logits()
    expected = 0.0
    for row, other, label in zip(p.tolist(), q.tolist(), LABELS.tolist(), strict=True):
        expected += (-log_softmax(row)[label] + 2.5 * slow_kl(row, other)) / 6
    assert trades(p, q, LABELS, 2.5).item() == pytest.approx(expected, rel=TOLERANCE)


def test_trades_weighs_the_divergence_with_6_by_default():
    p, q = logits()
    assert torch.equal(trades(p, q, LABELS), trades(p, q, LABELS, beta=6.0))


def test_trades_without_divergence_is_cross_entropy():
    p, q = logits()
    assert torch.equal(trades(p, q, LABELS, beta=0), F.cross_entropy(p, LABELS))


def test_trades_without_perturbation_is_cross_entropy():
    p, _ = logits()
    assert torch.equal(trades(p, p.clone(), LABELS), F.cross_entropy(p, LABELS))


def test_trades_is_a_mean_over_the_batch():
    p, q = logits()
    twice = trades(p.repeat(2, 1), q.repeat(2, 1), LABELS.repeat(2))
    torch.testing.assert_close(twice, trades(p, q, LABELS), rtol=TOLERANCE, atol=0)


def test_kl_has_no_gradient_where_both_predictions_agree():
    p, _ = logits()
    q = p.clone().requires_grad_()
    kl_divergence(p, q).sum().backward()
    assert q.grad.abs().max() < TOLERANCE


GOOD = torch.zeros(6, 5)


@pytest.mark.parametrize(
    ("p", "q", "error", "message"),
    [
        (GOOD, GOOD[:5], ValueError, "expected logits and other to have"),
        (GOOD[:, :1], GOOD[:, :1], ValueError, "same shape [N, C] with C >= 2"),
        (GOOD[0], GOOD[0], ValueError, "same shape [N, C] with C >= 2"),
        (GOOD.long(), GOOD, TypeError, "expected logits to be"),
        (GOOD, [0.0], TypeError, "expected other to be"),
    ],
)
@pytest.mark.parametrize("function", [kl_divergence, lambda p, q: trades(p, q, LABELS)], ids=["kl", "trades"])
def test_wrong_logits(function, p, q, error, message):
    with pytest.raises(error, match=re.escape(message)):
        function(p, q)


ELSEWHERE = "on one device"


@pytest.mark.parametrize("function", [kl_divergence, lambda p, q: trades(p, q, LABELS)], ids=["kl", "trades"])
def test_logits_on_two_devices(function):
    with pytest.raises(ValueError, match=re.escape(f"kl_divergence: expected logits and other {ELSEWHERE}")):
        function(GOOD, GOOD.to("meta"))


def test_trades_refuses_labels_on_another_device():
    with pytest.raises(ValueError, match=re.escape(f"trades: expected logits and labels {ELSEWHERE}")):
        trades(GOOD, GOOD, LABELS.to("meta"))


@pytest.mark.parametrize(
    ("beta", "error", "got"),
    [(-1, ValueError, "-1"), (math.nan, ValueError, "nan"), (math.inf, ValueError, "inf"), ("6", TypeError, "str")],
)
def test_wrong_beta(beta, error, got):
    message = f"trades: expected beta to be a finite number >= 0, got {got}"
    with pytest.raises(error, match=re.escape(message)):
        trades(GOOD, GOOD, LABELS, beta)


@pytest.mark.parametrize(
    ("labels", "error", "message"),
    [
        (LABELS.float(), TypeError, "expected labels to be"),
        (LABELS.int(), TypeError, "expected labels to be"),
        (LABELS[:5], ValueError, "expected labels of shape"),
        (LABELS + 1, ValueError, "expected labels within"),
        (LABELS - 100, ValueError, "expected labels within"),
    ],
)
def test_trades_refuses_wrong_labels(labels, error, message):
    with pytest.raises(error, match=re.escape(f"trades: {message}")):
        trades(*logits(), labels)
