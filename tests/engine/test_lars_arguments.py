"""What LARS refuses."""

import math
import re

import pytest
import torch
from torch import nn

from advcontrast.engine.lars import LARS


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
