"""Attributes of a dual norm are those of the branch in use, for reading and for writing."""

import re

import pytest
import torch
from torch import nn

from advcontrast import DualBatchNorm2d, bn_branch, convert_to_dual_bn, export_branch
from advcontrast.norm import DualNorm


def images():
    return 3 * torch.rand(5, 4, 6, 6, generator=torch.Generator().manual_seed(1)) + 1


def momentum(norm):
    norm.momentum = 1.0


def added_momentum(norm):
    norm.momentum += 0.25


def eps(norm):
    norm.eps = 10.0


def weight(norm):
    norm.weight = nn.Parameter(torch.full_like(norm.weight, 5.0))


def registered_weight(norm):
    norm.register_parameter("weight", nn.Parameter(torch.full_like(norm.weight, 5.0)))


def added_bias(norm):
    with torch.no_grad():
        norm.bias += 1.5


def no_bias(norm):
    norm.bias = None


def running_mean(norm):
    norm.running_mean = torch.full((4,), 7.0)


def registered_running_mean(norm):
    norm.register_buffer("running_mean", torch.full((4,), 7.0))


def batch_statistics_only(norm):
    norm.track_running_stats = False
    norm.running_mean = norm.running_var = norm.num_batches_tracked = None


WRITES = [eps, weight, registered_weight, added_bias, no_bias]
BATCH_NORM_WRITES = [momentum, added_momentum, running_mean, registered_running_mean, batch_statistics_only]
CASES = [(nn.LayerNorm, (6,), write) for write in WRITES]
CASES += [(nn.GroupNorm, (2, 4), write) for write in WRITES]
CASES += [(nn.BatchNorm2d, (4,), write) for write in WRITES + BATCH_NORM_WRITES]


def moved(norm):
    """Return the outputs in both modes and the state afterwards."""
    outputs = [norm.train()(images()), norm.eval()(images())]
    return [*outputs, *norm.state_dict().values()]


def equal(found, expected):
    return len(found) == len(expected) and all(map(torch.equal, found, expected))


@pytest.mark.parametrize("branch", ["clean", "adv"])
@pytest.mark.parametrize(("kind", "arguments", "write"), CASES, ids=lambda case: getattr(case, "__name__", ""))
def test_a_write_changes_the_branch_in_use_alone(kind, arguments, write, branch):
    written, untouched = kind(*arguments), kind(*arguments)
    dual = DualNorm(kind(*arguments))
    names = list(vars(dual))
    write(written)
    with bn_branch(dual, branch):
        write(dual)
    other = {"clean": "adv", "adv": "clean"}[branch]
    assert list(vars(dual)) == names
    assert [*dual.state_dict()] == [
        *(f"clean.{key}" for key in (written if branch == "clean" else untouched).state_dict()),
        *(f"adv.{key}" for key in (written if branch == "adv" else untouched).state_dict()),
    ]
    with bn_branch(dual, branch):
        found = [dual.train()(images()), dual.eval()(images())]
    assert equal(found, moved(written)[:2])
    assert equal(moved(export_branch(dual, branch)), moved(written))
    assert equal(moved(getattr(dual, other)), moved(untouched))


@pytest.mark.parametrize(("split", "write"), [("affine", running_mean), ("stats", weight), ("stats", no_bias)])
def test_shared_tensors_are_written_for_all_branches(split, write):
    dual = DualBatchNorm2d.from_batchnorm(nn.BatchNorm2d(4), split=split)
    with bn_branch(dual, "adv"):
        write(dual)
    for name in ("running_mean",) if split == "affine" else ("weight", "bias"):
        assert getattr(dual.clean, name) is getattr(dual.adv, name)
    assert equal(moved(dual.clean), moved(write(plain := nn.BatchNorm2d(4)) or plain))


def test_a_deletion_is_one_of_the_branch_in_use():
    dual = DualNorm(nn.LayerNorm(6))
    with bn_branch(dual, "adv"):
        del dual.bias
    assert hasattr(dual.clean, "bias")
    assert not hasattr(dual.adv, "bias")


@pytest.mark.parametrize(("split", "name"), [("affine", "running_mean"), ("stats", "weight")])
def test_a_deletion_of_what_branches_share_is_one_of_all(split, name):
    dual = DualBatchNorm2d.from_batchnorm(nn.BatchNorm2d(4), split=split)
    delattr(dual, name)
    assert not hasattr(dual.clean, name)
    assert not hasattr(dual.adv, name)


def test_attributes_of_no_norm_are_those_of_the_dual_norm():
    dual = DualNorm(nn.LayerNorm(6))
    dual.stage = 3
    dual.branch = "adv"
    assert dual.stage == 3
    assert "stage" not in vars(dual.clean)
    del dual.stage
    assert not hasattr(dual, "stage")


def test_a_norm_of_a_branch_can_be_replaced():
    dual, norm = DualNorm(nn.LayerNorm(6)), nn.LayerNorm(6)
    dual.adv = norm
    dual.add_module("clean", norm)
    assert dual.adv is dual.clean is norm


@pytest.mark.parametrize(("split", "name"), [("affine", "running_mean"), ("stats", "weight")])
@pytest.mark.parametrize("replace", [setattr, DualBatchNorm2d.add_module], ids=["assigned", "added"])
def test_a_norm_that_replaces_that_of_a_branch_shares_what_the_others_share(replace, split, name):
    dual = DualBatchNorm2d.from_batchnorm(nn.BatchNorm2d(4), split=split)
    before = getattr(dual.clean, name)
    replace(dual, "adv", nn.BatchNorm2d(4))
    assert getattr(dual.adv, name) is getattr(dual.clean, name) is before


@pytest.mark.parametrize("replace", [setattr, DualNorm.add_module], ids=["assigned", "added"])
def test_a_branch_cannot_be_replaced_by_anything_but_a_norm(replace):
    dual = DualNorm(nn.LayerNorm(6))
    before = dual.adv
    with pytest.raises(TypeError, match=r"^DualNorm: expected adv"):
        replace(dual, "adv", None)
    assert dual.adv is before


@pytest.mark.parametrize(
    "write",
    [
        lambda dual: setattr(dual, "gate", nn.Parameter(torch.zeros(1))),
        lambda dual: setattr(dual, "gate", nn.ReLU()),
        lambda dual: dual.register_parameter("gate", None),
        lambda dual: dual.register_buffer("gate", torch.zeros(1)),
        lambda dual: dual.add_module("gate", nn.ReLU()),
        lambda dual: dual.register_module("gate", nn.ReLU()),
    ],
)
def test_a_dual_norm_refuses_new_attributes_that_no_branch_has(write):
    dual = DualNorm(nn.LayerNorm(6))
    message = (
        "DualNorm: expected its branches to stay, and parameters, buffers and modules to be those of a branch, got "
        "'gate'. Change the norms of the branches themselves: dual.clean, dual.adv."
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        write(dual)
    assert dual.branches == ("clean", "adv")
    assert len(dual.state_dict()) == 4


def test_a_branch_cannot_be_deleted():
    dual = DualNorm(nn.LayerNorm(6))
    with pytest.raises(ValueError, match=r"^DualNorm: expected its branches to stay"):
        del dual.adv
    assert dual.branches == ("clean", "adv")


def test_a_loop_over_all_modules_reaches_every_branch():
    model = convert_to_dual_bn(nn.Sequential(nn.BatchNorm2d(4)))
    for module in model.modules():
        if hasattr(module, "momentum"):
            module.momentum = 0.02
    assert model[0].clean.momentum == model[0].adv.momentum == 0.02


def test_the_mode_is_that_of_every_branch():
    dual = DualBatchNorm2d(4)
    dual.training = False
    for branch in dual.branches:
        dual.branch = branch
        assert torch.equal(dual(images()), getattr(dual, branch).eval()(images()))
        assert dual.num_batches_tracked == 0


def test_a_branch_of_another_structure_is_refused_where_branches_share_tensors():
    dual = DualNorm(nn.BatchNorm1d(3), split="affine")
    before = dual.adv
    with pytest.raises(ValueError, match=r"^DualNorm: expected adv to have the parts of the other branches"):
        dual.adv = nn.Sequential(nn.BatchNorm1d(3), nn.ReLU())
    assert dual.adv is before


@pytest.mark.parametrize("name", ["active", "branch", "_private"])
def test_a_module_does_not_become_a_branch(name):
    dual = DualBatchNorm2d(4)
    with pytest.raises(ValueError, match="DualBatchNorm2d: expected its branches to stay"):
        setattr(dual, name, nn.BatchNorm2d(4))
    assert dual.branches == ("clean", "adv")
