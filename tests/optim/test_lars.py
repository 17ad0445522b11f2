"""LARS: its formula, its exceptions, its state."""

import copy
import io
import math
import re

import pytest
import torch
from torch import nn

from advcontrast.optim.lars import LARS

TOLERANCE = 1e-12  # relative, float64
SHAPES = [(4, 3, 2, 2), (7,), (5, 4), (), (1, 1), (3,)]


def parameter(*values):
    return nn.Parameter(torch.tensor(values, dtype=torch.float64))


def parameters():
    return [nn.Parameter(torch.randn(shape, dtype=torch.float64)) for shape in SHAPES]


def set_gradients(params):
    for p in params:
        p.grad = torch.randn_like(p)


def slow_step(w, g, v, *, lr, momentum=0.9, weight_decay=1e-6, trust=1e-3, exclude_1d=False):
    """One step for one tensor given as a list of numbers, written from the definition."""
    rate = 1.0
    if not exclude_1d:
        long, steep = math.hypot(*w), math.hypot(*g)
        if long > 0 and steep > 0:
            rate = trust * long / (steep + weight_decay * long)
        g = [b + weight_decay * a for a, b in zip(w, g, strict=True)]
    v = [momentum * a + lr * rate * b for a, b in zip(v, g, strict=True)]
    return [a - b for a, b in zip(w, v, strict=True)], v


@pytest.mark.parametrize("exclude_1d", [False, True])
@pytest.mark.parametrize("settings", [{}, {"momentum": 0.5, "weight_decay": 0.1, "trust": 0.02}, {"momentum": 0}])
def test_twenty_steps_are_the_definition(settings, exclude_1d):
    params = parameters()
    optimizer = LARS(params, 2.0, exclude_1d=exclude_1d, **settings)
    slow = [(p.flatten().tolist(), [0.0] * p.numel()) for p in params]
    for step in range(20):
        set_gradients(params)
        lr = optimizer.param_groups[0]["lr"] = 2.0 / (1 + step)
        for i, p in enumerate(params):
            without = exclude_1d and p.dim() <= 1
            slow[i] = slow_step(
                slow[i][0], p.grad.flatten().tolist(), slow[i][1], lr=lr, exclude_1d=without, **settings
            )
        optimizer.step()
    for p, (expected, _) in zip(params, slow, strict=True):
        assert p.flatten().tolist() == pytest.approx(expected, rel=1e-10, abs=TOLERANCE)


def test_two_steps_on_one_number_have_a_closed_form():
    w = parameter(8.0)
    optimizer = LARS([w], lr=0.5, momentum=0.5, weight_decay=0.25, trust=0.125)
    # rate = 1/8 * 8 / (2 + 1/4 * 8) = 1/4, so the step is 1/2 * 1/4 * (2 + 1/4 * 8) = 1/2.
    w.grad = torch.tensor([2.0], dtype=torch.float64)
    optimizer.step()
    assert w.item() == 7.5
    # The decay alone makes no gradient: rate 1, step = 1/2 * 1/2 + 1/2 * (1/4 * 7.5).
    w.grad = torch.tensor([0.0], dtype=torch.float64)
    optimizer.step()
    assert w.item() == 7.5 - 0.25 - 0.9375


def test_length_of_the_first_step_does_not_depend_on_the_gradient():
    steps = []
    for scale in (1e-6, 1.0, 1e6):
        w = parameter(3.0, 4.0)
        w.grad = scale * torch.tensor([1.0, 1.0], dtype=torch.float64)
        LARS([w], lr=1.0, weight_decay=0.0, trust=0.1).step()
        steps.append((w - parameter(3.0, 4.0)).norm().item())
    assert steps == pytest.approx([0.5] * 3, rel=TOLERANCE)


def test_bias_that_starts_at_zero_moves_at_the_full_rate():
    bias = parameter(0.0, 0.0)
    bias.grad = torch.tensor([1.0, -2.0], dtype=torch.float64)
    LARS([bias], lr=0.5).step()
    assert bias.tolist() == [-0.5, 1.0]


def test_gradient_of_zero_with_no_decay_moves_nothing():
    w = parameter(3.0, 4.0)
    w.grad = torch.zeros(2, dtype=torch.float64)
    LARS([w], lr=5.0, weight_decay=0.0).step()
    assert w.tolist() == [3.0, 4.0]


def test_learning_rate_of_a_step_stays_in_the_momentum():
    w = parameter(0.0)
    optimizer = LARS([w], lr=1.0, momentum=0.5)
    w.grad = torch.ones(1, dtype=torch.float64)
    optimizer.step()
    optimizer.param_groups[0]["lr"] = 0.0
    optimizer.step()
    assert w.item() == -1.5


def test_exclude_1d_leaves_norms_and_biases_unadapted_and_without_decay():
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)).double()
    set_gradients(model.parameters())
    before = copy.deepcopy(model)
    LARS(model.parameters(), lr=0.5, weight_decay=0.1, exclude_1d=True).step()
    for index in (0, 1):
        bias, old = model[index].bias, before[index].bias
        torch.testing.assert_close(bias, old - 0.5 * bias.grad, rtol=TOLERANCE, atol=0)
    moved = (model[0].weight - before[0].weight).norm() / before[0].weight.norm()
    assert moved < 1e-3


def test_all_parameters_are_adapted_by_default():
    w = parameter(3.0, 4.0)
    set_gradients([w])
    LARS([w], lr=1.0).step()
    assert (w - parameter(3.0, 4.0)).norm().item() < 0.01


def test_settings_of_the_acl_code_are_the_defaults():
    defaults = LARS([parameter(1.0)], 5.0).defaults
    assert defaults == {"lr": 5.0, "momentum": 0.9, "weight_decay": 1e-6, "trust": 1e-3, "exclude_1d": False}


def test_groups_have_their_own_settings():
    params = parameters()
    alone = copy.deepcopy(params)
    set_gradients(params)
    for p, other in zip(params, alone, strict=True):
        other.grad = p.grad.clone()
    LARS([{"params": params[:2], "lr": 0.1}, {"params": params[2:], "trust": 0.5}], lr=2.0).step()
    LARS(alone[:2], lr=0.1).step()
    LARS(alone[2:], lr=2.0, trust=0.5).step()
    assert all(torch.equal(p, other) for p, other in zip(params, alone, strict=True))


def test_parameters_without_gradient_are_skipped():
    moving, still = parameter(1.0), parameter(1.0)
    optimizer = LARS([moving, still], lr=1.0)
    moving.grad = torch.ones(1, dtype=torch.float64)
    optimizer.step()
    assert moving.item() != 1.0
    assert still.item() == 1.0
    assert still not in optimizer.state


def test_step_without_any_gradient_does_nothing():
    params = parameters()
    before = copy.deepcopy(params)
    LARS(params, lr=1.0).step()
    assert all(torch.equal(p, old) for p, old in zip(params, before, strict=True))


def test_gradients_are_left_alone():
    params = parameters()
    set_gradients(params)
    before = [p.grad.clone() for p in params]
    LARS(params, lr=1.0, weight_decay=0.1, exclude_1d=True).step()
    assert all(torch.equal(p.grad, old) for p, old in zip(params, before, strict=True))


def test_closure_is_called_with_gradients_enabled_and_its_loss_returned():
    w = parameter(2.0)
    optimizer = LARS([w], lr=1.0)

    def closure():
        optimizer.zero_grad()
        loss = (w**2).sum()
        loss.backward()
        return loss

    assert optimizer.step(closure).item() == 4.0
    assert w.item() < 2.0


def run(optimizer, params, steps):
    for step in steps:
        for i, p in enumerate(params):
            p.grad = torch.randn(p.shape, dtype=p.dtype, generator=torch.Generator().manual_seed(100 * step + i))
        optimizer.step()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_resumed_run_equals_the_uninterrupted_one(dtype):
    params = [nn.Parameter(p.detach().to(dtype)) for p in parameters()]
    optimizer = LARS(params, 2.0)
    run(optimizer, params, range(3))
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    resumed = copy.deepcopy(params)
    file.seek(0)
    again = LARS(resumed, 1.0, momentum=0.1)
    again.load_state_dict(torch.load(file, weights_only=True))
    run(optimizer, params, range(3, 6))
    run(again, resumed, range(3, 6))
    assert all(torch.equal(p, other) for p, other in zip(params, resumed, strict=True))


def test_optimizer_works_with_a_scheduler_of_pytorch():
    w = parameter(0.0)
    optimizer = LARS([w], lr=1.0, momentum=0)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5**step)
    w.grad = torch.ones(1, dtype=torch.float64)
    optimizer.step()
    scheduler.step()
    assert optimizer.param_groups[0]["lr"] == 0.5


def test_no_value_is_read_on_the_host():
    params = [nn.Parameter(torch.empty(3, 2, device="meta")), nn.Parameter(torch.empty(2, device="meta"))]
    optimizer = LARS(params, 1.0)
    for p in params:
        p.grad = torch.empty_like(p)
    optimizer.step()
    assert len(optimizer.state) == 2


def test_half_precision_weights_stay_half_precision():
    w = nn.Parameter(torch.ones(4, 4, dtype=torch.bfloat16))
    w.grad = torch.ones_like(w)
    LARS([w], 100.0).step()
    assert w.dtype == torch.bfloat16
    assert w.isfinite().all()
    assert (w < 1).all()


def test_sparse_gradient_is_refused_before_anything_moves():
    dense, embedding = parameter(1.0), nn.Embedding(3, 2, sparse=True)
    dense.grad = torch.ones(1, dtype=torch.float64)
    embedding(torch.tensor([0])).sum().backward()
    optimizer = LARS([dense, embedding.weight], lr=1.0)
    message = "LARS: expected dense gradients"
    with pytest.raises(RuntimeError, match=re.escape(message)):
        optimizer.step()
    assert dense.item() == 1.0
