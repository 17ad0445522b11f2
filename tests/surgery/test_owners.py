"""An error names the function that was called, whichever of its checks failed."""

import pytest
import torch
from torch import nn

from advcontrast import blend, convert_to_dual_bn, export_branch, load_acl_checkpoint


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
    ("blend", lambda: blend(None, 0.5)),
    ("blend", lambda: blend(dual(), 2)),
    ("blend", lambda: blend(dual(), 0.5, branches=("clean",))),
    ("blend", lambda: blend(dual(), 0.5, branches=("clean", "x"))),
    ("blend", lambda: blend(plain(), 0.5)),
    ("load_acl_checkpoint", lambda: load_acl_checkpoint(None, {})),
    ("load_acl_checkpoint", lambda: load_acl_checkpoint(plain(), {})),
    ("load_acl_checkpoint", lambda: load_acl_checkpoint(dual(), None)),
    ("load_acl_checkpoint", lambda: load_acl_checkpoint(dual(), {0: torch.zeros(1)})),
    ("load_acl_checkpoint", lambda: load_acl_checkpoint(dual(), {}, ignore=0)),
    ("load_acl_checkpoint", lambda: load_acl_checkpoint(dual(), {})),
]


@pytest.mark.parametrize(("owner", "call"), CASES)
def test_an_error_begins_with_the_name_of_the_function(owner, call):
    with pytest.raises((TypeError, ValueError), match=f"^{owner}: expected "):
        call()
