"""An error names the function or the norm that was called, whichever of its checks failed."""

import pytest
import torch
from torch import nn

from advcontrast import (
    DualBatchNorm1d,
    DualBatchNorm2d,
    DualBatchNorm3d,
    bn_branch,
    branch_parameters,
    checkpoint_context_fn,
    convert_to_dual_bn,
    set_bn_branch,
    update_bn,
)
from advcontrast.norm import DualNorm

NORMS = {DualBatchNorm1d: nn.BatchNorm1d, DualBatchNorm2d: nn.BatchNorm2d, DualBatchNorm3d: nn.BatchNorm3d}


def dual(**settings):
    return convert_to_dual_bn(nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)), **settings)


CASES = [
    ("bn_branch", lambda: bn_branch(dual(), "x").__enter__()),
    ("bn_branch", lambda: bn_branch(None, "adv").__enter__()),
    ("set_bn_branch", lambda: set_bn_branch(dual(), "x")),
    ("set_bn_branch", lambda: set_bn_branch(nn.Linear(4, 4), "adv")),
    ("branch_parameters", lambda: branch_parameters(dual(), "x")),
    ("branch_parameters", lambda: branch_parameters(None, "adv")),
    ("checkpoint_context_fn", lambda: checkpoint_context_fn(None)),
    ("update_bn", lambda: update_bn(None, [])),
    ("update_bn", lambda: update_bn(nn.Linear(4, 4), [torch.rand(2, 4)])),
    ("update_bn", lambda: update_bn(dual(), [torch.rand(2, 4)])),
    ("update_bn", lambda: update_bn(dual(), [torch.rand(2, 4)], "x")),
    ("update_bn", lambda: update_bn(dual(split="affine"), [torch.rand(2, 4)], "adv")),
    ("update_bn", lambda: update_bn(dual(), [], "adv")),
    ("update_bn", lambda: update_bn(dual(), None, "adv")),
    ("update_bn", lambda: update_bn(dual(), ["x"], "adv")),
    ("update_bn", lambda: update_bn(dual(), [torch.full((2, 4), torch.nan)], "adv")),
    ("DualNorm", lambda: DualNorm(None)),
    ("DualNorm", lambda: DualNorm(nn.LayerNorm(4), branches="ab")),
    ("DualNorm", lambda: DualNorm(nn.LayerNorm(4), branches=("a",))),
    ("DualNorm", lambda: DualNorm(nn.LayerNorm(4), branches=("a", "weight"))),
    ("DualNorm", lambda: DualNorm(nn.LayerNorm(4), split="none")),
    ("DualNorm", lambda: setattr(DualNorm(nn.LayerNorm(4)), "branch", "x")),
]


@pytest.mark.parametrize(("owner", "call"), CASES)
def test_an_error_begins_with_the_name_of_the_function(owner, call):
    with pytest.raises((TypeError, ValueError), match=f"^{owner}: expected "):
        call()


@pytest.mark.parametrize("owner", NORMS)
@pytest.mark.parametrize(
    "settings",
    [
        {"num_features": 0},
        {"eps": 0},
        {"momentum": 2},
        {"affine": None},
        {"track_running_stats": None},
        {"device": 1.5},
        {"dtype": torch.int64},
    ],
)
def test_a_refused_setting_is_one_of_the_norm(owner, settings):
    with pytest.raises((TypeError, ValueError), match=f"^{owner.__name__}: expected "):
        owner(**{"num_features": 4, **settings})


@pytest.mark.parametrize(("owner", "kind"), NORMS.items())
@pytest.mark.parametrize("settings", [{"branches": ("a",)}, {"split": "none"}])
def test_a_refused_wrap_is_one_of_the_norm(owner, kind, settings):
    with pytest.raises(ValueError, match=rf"^{owner.__name__}\.from_batchnorm: expected "):
        owner.from_batchnorm(kind(4), **settings)


@pytest.mark.parametrize("owner", NORMS)
def test_a_norm_of_another_kind_is_refused_by_the_norm(owner):
    with pytest.raises(TypeError, match=rf"^{owner.__name__}\.from_batchnorm: expected "):
        owner.from_batchnorm(nn.LayerNorm(4))
