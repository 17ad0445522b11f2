"""Learning from a teacher, alone and with few labels."""

import math
import re

import pytest
import torch
from torch.nn import functional as F

from advcontrast.functional import distillation, kl_divergence, semi_supervised
from tests.functional.test_divergence import log_softmax, slow_kl

TOLERANCE = 1e-12  # relative, float64
LABELS = torch.tensor([0, -1, 2, -1, 1, 3])
UNLABELLED = torch.full((6,), -1)


def logits(count=2, n=6, classes=5, scale=1.0):
    return tuple(scale * torch.randn(n, classes, dtype=torch.float64) for _ in range(count))


def slow_distillation(row, teacher, temperature):
    q = log_softmax([value / temperature for value in row])
    p = log_softmax([value / temperature for value in teacher])
    return -math.fsum(math.exp(a) * b for a, b in zip(p, q, strict=True))


def slow_semi_supervised(clean, adv, labels, teacher, alpha, temperature, beta):
    total = 0.0
    for natural, row, label, target in zip(*(v.tolist() for v in (clean, adv, labels, teacher)), strict=True):
        soft = temperature**2 * slow_distillation(row, target, temperature)
        total += soft if label == -1 else alpha * -log_softmax(row)[label] + (1 - alpha) * soft
        total += beta * slow_kl(natural, row)
    return total / len(labels)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4])
def test_distillation_is_the_definition(temperature):
    z, t = logits(scale=3.0)
    expected = [slow_distillation(a, b, temperature) for a, b in zip(z.tolist(), t.tolist(), strict=True)]
    assert distillation(z, t, temperature).tolist() == pytest.approx(expected, rel=TOLERANCE)


def test_distillation_has_temperature_1_by_default():
    z, t = logits()
    assert torch.equal(distillation(z, t), distillation(z, t, 1.0))


def test_distillation_of_the_teacher_itself_is_the_entropy():
    p = torch.tensor([[0.5, 0.25, 0.25]], dtype=torch.float64)
    assert distillation(2 * p.log(), 2 * p.log(), 2.0).item() == pytest.approx(1.5 * math.log(2), rel=TOLERANCE)


def test_distillation_at_infinite_temperature_is_the_logarithm_of_the_classes():
    torch.testing.assert_close(
        distillation(*logits(), 1e12), torch.full((6,), math.log(5), dtype=torch.float64), rtol=1e-10, atol=0
    )


def test_distillation_is_entropy_plus_divergence():
    z, t = logits()
    torch.testing.assert_close(distillation(z, t), distillation(t, t) + kl_divergence(t, z), rtol=TOLERANCE, atol=0)


def test_distillation_of_a_sure_teacher_is_cross_entropy():
    (z,) = logits(1)
    labels = LABELS.clamp(min=0)
    sure = 1e4 * F.one_hot(labels, 5).double()
    torch.testing.assert_close(
        distillation(z, sure), F.cross_entropy(z, labels, reduction="none"), rtol=TOLERANCE, atol=0
    )


@pytest.mark.parametrize("scale", [50, 110, 1000, 1e30])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_extreme_logits_keep_distillation_and_both_gradients_finite(dtype, scale):
    z, t = ((scale * value).to(dtype).requires_grad_() for value in logits())
    value = distillation(z, t, 0.5)
    value.sum().backward()
    assert value.isfinite().all()
    assert z.grad.isfinite().all()
    assert t.grad.isfinite().all()


def test_distillation_has_the_gradients_of_finite_differences_in_both_arguments():
    z, t = (value.requires_grad_() for value in logits())
    assert torch.autograd.gradcheck(lambda z, t: distillation(z, t, 2.0), (z, t))


@pytest.mark.parametrize(("alpha", "temperature", "beta"), [(0.5, 1.0, 6.0), (0.2, 3, 0.5), (0, 2.0, 0), (1, 0.5, 1)])
@pytest.mark.parametrize("labels", [LABELS, UNLABELLED, LABELS.clamp(min=0)], ids=["some", "none", "all"])
def test_semi_supervised_is_the_definition(labels, alpha, temperature, beta):
    clean, adv, teacher = logits(3)
    ours = semi_supervised(clean, adv, labels, teacher, alpha=alpha, temperature=temperature, beta=beta)
    expected = slow_semi_supervised(clean, adv, labels, teacher, alpha, temperature, beta)
    assert ours.item() == pytest.approx(expected, rel=TOLERANCE)


def test_semi_supervised_has_a_closed_form():
    # Clean 1/2 and 1/2, adversarial 3/4 and 1/4, teacher 1/3 and 2/3; sample 0 has label 1, sample 1 has none.
    clean = torch.zeros(2, 2, dtype=torch.float64)
    adv = torch.tensor([[3.0, 1.0]] * 2, dtype=torch.float64).log()
    teacher = torch.tensor([[1.0, 2.0]] * 2, dtype=torch.float64).log()
    soft = -(math.log(3 / 4) + 2 * math.log(1 / 4)) / 3
    hard = math.log(4)
    expected = (0.25 * hard + 0.75 * soft + soft) / 2 + 6 * math.log(4 / 3) / 2
    ours = semi_supervised(clean, adv, torch.tensor([1, -1]), teacher, alpha=0.25)
    assert ours.item() == pytest.approx(expected, rel=TOLERANCE)


def test_semi_supervised_has_the_settings_of_acl_by_default():
    clean, adv, teacher = logits(3)
    explicit = semi_supervised(clean, adv, LABELS, teacher, alpha=0.5, temperature=1.0, beta=6.0)
    assert torch.equal(semi_supervised(clean, adv, LABELS, teacher), explicit)


def test_alpha_1_with_all_labels_is_cross_entropy_and_divergence():
    clean, adv, teacher = logits(3)
    labels = LABELS.clamp(min=0)
    expected = F.cross_entropy(adv, labels) + 6 * kl_divergence(clean, adv).mean()
    torch.testing.assert_close(
        semi_supervised(clean, adv, labels, teacher, alpha=1), expected, rtol=TOLERANCE, atol=TOLERANCE
    )


def test_alpha_0_ignores_the_labels():
    clean, adv, teacher = logits(3)
    ours = semi_supervised(clean, adv, LABELS, teacher, alpha=0)
    assert torch.equal(ours, semi_supervised(clean, adv, UNLABELLED, teacher, alpha=0))


def test_parts_are_weighed_by_their_number_of_samples():
    clean, adv, teacher = logits(3)

    def part(rows):
        return len(rows) * semi_supervised(clean[rows], adv[rows], LABELS[rows], teacher[rows]) / 6

    torch.testing.assert_close(
        part([0, 2, 4, 5]) + part([1, 3]), semi_supervised(clean, adv, LABELS, teacher), rtol=TOLERANCE, atol=0
    )


def test_order_of_the_samples_does_not_matter():
    clean, adv, teacher = logits(3)
    order = torch.tensor([5, 3, 0, 1, 4, 2])
    shuffled = semi_supervised(clean[order], adv[order], LABELS[order], teacher[order])
    torch.testing.assert_close(shuffled, semi_supervised(clean, adv, LABELS, teacher), rtol=TOLERANCE, atol=0)


def test_semi_supervised_has_the_gradients_of_finite_differences_in_both_branches():
    clean, adv, teacher = logits(3)
    clean.requires_grad_()
    adv.requires_grad_()
    assert torch.autograd.gradcheck(lambda a, b: semi_supervised(a, b, LABELS, teacher, temperature=2), (clean, adv))


def test_teacher_gets_no_gradient():
    clean, adv, teacher = (value.requires_grad_() for value in logits(3))
    semi_supervised(clean, adv, LABELS, teacher).backward()
    assert teacher.grad is None


@pytest.mark.parametrize("scale", [50, 110, 1000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_extreme_logits_keep_semi_supervised_and_both_gradients_finite(dtype, scale):
    clean, adv, teacher = ((scale * value).to(dtype).requires_grad_() for value in logits(3))
    loss = semi_supervised(clean, adv, LABELS, teacher)
    loss.backward()
    assert loss.isfinite()
    assert clean.grad.isfinite().all()
    assert adv.grad.isfinite().all()


def test_semi_supervised_reads_no_value_of_an_accelerator():
    inputs = [torch.empty(6, 5, device="meta", requires_grad=True) for _ in range(3)]
    loss = semi_supervised(inputs[0], inputs[1], torch.empty(6, dtype=torch.int64, device="meta"), inputs[2])
    loss.backward()
    assert inputs[1].grad.shape == (6, 5)


GOOD = torch.zeros(6, 5)
SAME = "distillation: expected logits and teacher_logits to have"


@pytest.mark.parametrize(
    ("z", "t", "error", "message"),
    [
        (GOOD, GOOD[:5], ValueError, SAME),
        (GOOD[:, :1], GOOD[:, :1], ValueError, SAME),
        (GOOD[0], GOOD[0], ValueError, SAME),
        (GOOD.long(), GOOD, TypeError, "distillation: expected logits to be"),
        (GOOD, LABELS, TypeError, "distillation: expected teacher_logits to be"),
    ],
)
def test_distillation_refuses_wrong_logits(z, t, error, message):
    with pytest.raises(error, match=re.escape(message)):
        distillation(z, t)


@pytest.mark.parametrize(
    ("call", "owner"),
    [
        (lambda: distillation(GOOD, GOOD.to("meta")), "distillation: expected logits and teacher_logits"),
        (
            lambda: semi_supervised(GOOD, GOOD, LABELS, GOOD.to("meta")),
            "distillation: expected logits and teacher_logits",
        ),
        (lambda: semi_supervised(GOOD, GOOD, LABELS.to("meta"), GOOD), "semi_supervised: expected logits and labels"),
    ],
)
def test_tensors_on_two_devices(call, owner):
    message = f"{owner} on one device, got cpu and meta. Move them to the device of the model."
    with pytest.raises(ValueError, match=re.escape(message)):
        call()


@pytest.mark.parametrize(
    ("temperature", "error", "got"),
    [(0, ValueError, "0"), (-1, ValueError, "-1"), (math.nan, ValueError, "nan"), ("1", TypeError, "str")],
)
@pytest.mark.parametrize(
    "call",
    [lambda t: distillation(GOOD, GOOD, t), lambda t: semi_supervised(GOOD, GOOD, LABELS, GOOD, temperature=t)],
    ids=["distillation", "semi_supervised"],
)
def test_wrong_temperature(call, temperature, error, got):
    message = f"expected temperature to be a finite number > 0, got {got}"
    with pytest.raises(error, match=re.escape(message)):
        call(temperature)


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"alpha": -0.1}, ValueError, "expected alpha to be"),
        ({"alpha": 1.5}, ValueError, "expected alpha to be"),
        ({"beta": -1}, ValueError, "expected beta to be"),
        ({"beta": None}, TypeError, "expected beta to be"),
    ],
)
def test_semi_supervised_refuses_wrong_weights(settings, error, message):
    with pytest.raises(error, match=re.escape(f"semi_supervised: {message}")):
        semi_supervised(GOOD, GOOD, LABELS, GOOD, **settings)


@pytest.mark.parametrize(
    ("labels", "error", "message"),
    [
        (LABELS.float(), TypeError, "expected labels to be"),
        (LABELS[:5], ValueError, "expected labels of shape"),
        (LABELS + 2, ValueError, "expected labels within"),
        (LABELS - 1, ValueError, "expected labels within"),
    ],
)
def test_semi_supervised_refuses_wrong_labels(labels, error, message):
    with pytest.raises(error, match=re.escape(f"semi_supervised: {message}")):
        semi_supervised(GOOD, GOOD, labels, GOOD)


@pytest.mark.parametrize(("teacher", "got"), [(LABELS, "torch.int64"), (GOOD.tolist(), "list"), (None, "NoneType")])
def test_semi_supervised_refuses_a_teacher_without_logits(teacher, got):
    with pytest.raises(TypeError, match=f"^semi_supervised: expected teacher_logits to be .*, got {got}"):
        semi_supervised(GOOD, GOOD, LABELS, teacher)
