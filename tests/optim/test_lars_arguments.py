"""Arguments that LARS refuses."""

import math
import re

import pytest
import torch
from torch import nn

from advcontrast.optim.lars import LARS


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"lr": -1}, ValueError, "lr"),
        ({"lr": math.nan}, ValueError, "lr"),
        ({"lr": "5"}, TypeError, "lr"),
        ({"momentum": 1.1}, ValueError, "momentum"),
        ({"weight_decay": -1}, ValueError, "weight_decay"),
        ({"trust": 0}, ValueError, "trust"),
        ({"exclude_1d": 1}, TypeError, "exclude_1d"),
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
    with pytest.raises(error, match=f"^LARS: expected {message} "):
        make(settings)


@pytest.mark.parametrize(
    ("params", "error", "message"),
    [
        (None, TypeError, "params to be"),
        (torch.ones(3), TypeError, "params to be"),
        ([], ValueError, "at least 1 parameter"),
        (["weight"], TypeError, "each of params to be"),
        ([{"lr": 1.0}], TypeError, "a group to be"),
        ([nn.Parameter(torch.ones(1)) * 2], ValueError, "params to be"),
    ],
)
def test_wrong_parameters(params, error, message):
    with pytest.raises(error, match=f"^{re.escape('LARS: expected ' + message)}"):
        LARS(params, lr=1.0)


@pytest.mark.parametrize(
    ("group", "message"),
    [(None, "a group to be"), ({"params": 5}, "params to be"), ({"params": [5]}, "each of params to be")],
)
def test_wrong_group(group, message):
    optimizer = LARS([nn.Parameter(torch.ones(1))], lr=1.0)
    with pytest.raises(TypeError, match=f"^{re.escape('LARS: expected ' + message)}"):
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
    with pytest.raises(TypeError, match=r"^LARS: expected closure"):
        LARS([weight], lr=1.0).step("")
    assert weight == 1
