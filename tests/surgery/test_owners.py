"""An error names the function that was called, whichever of its checks failed."""

import pytest
import torch
from torch import nn

from advcontrast import convert_to_dual_bn, export_branch, interpolate_branches, load_published


def plain():
    return nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))


def dual(**settings):
    return convert_to_dual_bn(plain(), **settings)


CASES = [
    ("convert_to_dual_bn", lambda: convert_to_dual_bn(None)),
    ("convert_to_dual_bn", lambda: convert_to_dual_bn(plain(), norms="batch")),
    ("convert_to_dual_bn", lambda: convert_to_dual_bn(plain(), split="none")),
    ("convert_to_dual_bn", lambda: convert_to_dual_bn(plain(), inplace=None)),
    ("convert_to_dual_bn", lambda: convert_to_dual_bn(plain(), filter_fn=1)),
    ("convert_to_dual_bn", lambda: convert_to_dual_bn(plain(), branches="ab")),
    ("convert_to_dual_bn", lambda: convert_to_dual_bn(plain(), branches=("a",))),
    ("convert_to_dual_bn", lambda: convert_to_dual_bn(plain(), branches=("a", "weight"))),
    ("convert_to_dual_bn", lambda: convert_to_dual_bn(nn.Sequential(nn.LazyBatchNorm1d()))),
    ("export_branch", lambda: export_branch(None, "adv")),
    ("export_branch", lambda: export_branch(plain(), "adv")),
    ("export_branch", lambda: export_branch(dual(), "x")),
    ("export_branch", lambda: export_branch(nn.DataParallel(dual()), "adv")),
    ("interpolate_branches", lambda: interpolate_branches(None, {"clean": 1})),
    ("interpolate_branches", lambda: interpolate_branches(dual(), {"clean": 2})),
    ("interpolate_branches", lambda: interpolate_branches(dual(), {"clean": 0.5})),
    ("interpolate_branches", lambda: interpolate_branches(dual(), {"clean": 0.5, "x": 0.5})),
    ("interpolate_branches", lambda: interpolate_branches(dual(), 0.5)),
    ("interpolate_branches", lambda: interpolate_branches(plain(), {"clean": 1})),
    ("load_published", lambda: load_published(None, {}, layout="acl")),
    ("load_published", lambda: load_published(plain(), {}, layout="acl")),
    ("load_published", lambda: load_published(dual(), None, layout="acl")),
    ("load_published", lambda: load_published(dual(), {0: torch.zeros(1)}, layout="acl")),
    ("load_published", lambda: load_published(dual(), {}, ignore=0, layout="acl")),
    ("load_published", lambda: load_published(dual(), {}, layout="acl")),
]


@pytest.mark.parametrize(("owner", "call"), CASES)
def test_an_error_begins_with_the_name_of_the_function(owner, call):
    with pytest.raises((TypeError, ValueError), match=f"^{owner}: expected "):
        call()
