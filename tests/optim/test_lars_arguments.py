"""What LARS refuses."""

import math
import re

import pytest
import torch
from torch import nn

from advcontrast.optim.lars import LARS


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"lr": -1}, ValueError, "lr to be a finite number >= 0, got -1. The ACL code has a peak of 5.0."),
        ({"lr": math.nan}, ValueError, "lr to be a finite number >= 0, got nan. "),
        ({"lr": "5"}, TypeError, "lr to be a finite number >= 0, got str. "),
        ({"momentum": 1.1}, ValueError, "momentum to be a finite number >= 0 and <= 1, got 1.1. 0.9 is usual."),
        ({"weight_decay": -1}, ValueError, "weight_decay to be a finite number >= 0, got -1. The ACL code has 1e-6."),
        ({"trust": 0}, ValueError, "trust to be a finite number > 0, got 0. 1e-3 is usual."),
        (
            {"exclude_1d": 1},
            TypeError,
            "exclude_1d to be True or False, got 1. True leaves norms and biases unadapted.",
        ),
    ],
)
@pytest.mark.parametrize(
    "make",
    [
        lambda settings: LARS([nn.Parameter(torch.ones(1))], **{"lr": 1.0, **settings}),
        lambda settings: LARS([{"params": [nn.Parameter(torch.ones(1))], **settings}], lr=1.0),
    ],
    ids=["default", "group"],
)
def test_wrong_settings(make, settings, error, message):
    with pytest.raises(error, match=re.escape(f"LARS: expected {message}")):
        make(settings)


PARAMS = "Pass model.parameters(), or dicts with params and settings of their own."


@pytest.mark.parametrize(
    ("params", "error", "message"),
    [
        (None, TypeError, "params to be an iterable, got NoneType. " + PARAMS),
        (torch.ones(3), TypeError, "params to be an iterable, got torch.float32. " + PARAMS),
        ([], ValueError, "at least 1 parameter, got none. " + PARAMS),
        (["weight"], TypeError, "params to hold tensors, got str. " + PARAMS),
        ([{"lr": 1.0}], TypeError, "a group to be a dict with params, got one of ['lr']. " + PARAMS),
        (
            [nn.Parameter(torch.ones(1)) * 2],
            ValueError,
            "params to be leaves, got the result of an operation. Pass the tensors that it was computed from.",
        ),
    ],
)
def test_wrong_parameters(params, error, message):
    with pytest.raises(error, match=f"^{re.escape('LARS: expected ' + message)}$"):
        LARS(params, lr=1.0)


@pytest.mark.parametrize(
    ("group", "message"),
    [
        (None, "a group to be a dict with params, got NoneType. " + PARAMS),
        ({"params": 5}, "params to be an iterable, got int. " + PARAMS),
        ({"params": [5]}, "params to hold tensors, got int. " + PARAMS),
    ],
)
def test_wrong_group(group, message):
    optimizer = LARS([nn.Parameter(torch.ones(1))], lr=1.0)
    with pytest.raises(TypeError, match=f"^{re.escape('LARS: expected ' + message)}$"):
        optimizer.add_param_group(group)
    assert len(optimizer.param_groups) == 1


@pytest.mark.parametrize(
    "params",
    [
        lambda model: model.parameters(),
        lambda model: model.named_parameters(),
        lambda model: [{"params": model.parameters()}],
        lambda model: [{"params": model.weight}, {"params": [model.bias]}],
    ],
    ids=["iterator", "named", "group", "groups"],
)
def test_parameters_are_taken_as_every_optimizer_takes_them(params):
    model = nn.Linear(2, 2)
    optimizer = LARS(params(model), lr=1.0)
    held = [p for group in optimizer.param_groups for p in group["params"]]
    assert all(one is other for one, other in zip(held, model.parameters(), strict=True))


def test_closure_that_is_no_function():
    weight = nn.Parameter(torch.ones(1))
    weight.grad = torch.ones(1)
    message = "LARS: expected closure to be callable, got str. Pass a function that returns the loss, or None."
    with pytest.raises(TypeError, match=f"^{re.escape(message)}$"):
        LARS([weight], lr=1.0).step("")
    assert weight == 1
