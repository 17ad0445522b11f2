"""Conversion replaces every batch norm and nothing else."""

import copy
import pickle

import pytest
import torch
from timm.layers import BatchNormAct2d
from torch import nn

from advcontrast import (
    DualBatchNorm1d,
    DualBatchNorm2d,
    DualBatchNorm3d,
    bn_branch,
    branch_parameters,
    convert_to_dual_bn,
)
from advcontrast.norm import DualBatchNorm


def network():
    layers = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 5), nn.BatchNorm1d(5)
    return nn.Sequential(*layers)


def images():
    return torch.rand(6, 3, 4, 4)


@pytest.mark.parametrize(
    ("plain", "dual"),
    [
        (nn.BatchNorm1d, DualBatchNorm1d),
        (nn.BatchNorm2d, DualBatchNorm2d),
        (nn.BatchNorm3d, DualBatchNorm3d),
        (nn.SyncBatchNorm, DualBatchNorm2d),
        (BatchNormAct2d, DualBatchNorm2d),
    ],
)
def test_each_kind_of_norm_becomes_its_dual(plain, dual):
    model = convert_to_dual_bn(nn.Sequential(plain(3)))
    assert type(model[0]) is dual
    assert type(model[0].clean) is type(model[0].adv) is plain


@pytest.mark.parametrize("norm", [nn.GroupNorm(1, 3), nn.LayerNorm(3), nn.InstanceNorm2d(3)])
def test_other_norms_stay(norm):
    model = nn.Sequential(norm, nn.BatchNorm2d(3))
    assert convert_to_dual_bn(model)[0] is norm


def test_conversion_works_in_place():
    model = network()
    assert convert_to_dual_bn(model) is model
    assert isinstance(model[1], DualBatchNorm2d)


def test_a_copy_leaves_the_original_alone():
    model = network()
    before = copy.deepcopy(model.state_dict())
    modules = list(model.modules())
    dual = convert_to_dual_bn(model, inplace=False)
    with torch.no_grad():
        for tensor in dual.state_dict().values():
            tensor.zero_()
    assert list(model.modules()) == modules
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_the_root_itself_may_be_a_norm():
    norm = nn.BatchNorm2d(3)
    weight = norm.weight
    assert convert_to_dual_bn(norm) is norm
    assert type(norm) is DualBatchNorm2d
    assert norm.clean.weight is weight


def test_converting_twice_changes_nothing():
    model = convert_to_dual_bn(network())
    modules = list(model.modules())
    assert list(convert_to_dual_bn(model).modules()) == modules


def test_norms_that_came_later_are_converted_without_touching_the_dual_ones():
    model = convert_to_dual_bn(network())
    first = model[1]
    model.append(nn.BatchNorm1d(5))
    convert_to_dual_bn(model)
    assert model[1] is first
    assert isinstance(model[6], DualBatchNorm1d)


def test_a_norm_used_twice_in_a_row_stays_one():
    norm = nn.BatchNorm2d(3)
    model = convert_to_dual_bn(nn.Sequential(norm, norm))
    assert isinstance(model[0], DualBatchNorm2d)
    assert model[0] is model[1]


def test_a_norm_of_two_parents_stays_one():
    norm = nn.BatchNorm2d(3)
    model = convert_to_dual_bn(nn.Sequential(nn.Sequential(norm), nn.Sequential(nn.ReLU(), norm)))
    assert isinstance(model[0][0], DualBatchNorm2d)
    assert model[0][0] is model[1][1]


def test_an_empty_slot_stays_empty():
    model = network()
    model.register_module("absent", None)
    assert convert_to_dual_bn(model).absent is None


@pytest.mark.parametrize("branch", ["clean", "adv"])
def test_tied_parameters_stay_tied(branch):
    model = nn.Sequential(nn.BatchNorm2d(3), nn.BatchNorm2d(3))
    model[1].weight = model[0].weight
    convert_to_dual_bn(model)
    assert getattr(model[0], branch).weight is getattr(model[1], branch).weight


def test_frozen_norms_stay_frozen_and_in_eval_mode():
    model = network()
    model[1].eval().requires_grad_(False)
    dual = convert_to_dual_bn(model)[1]
    assert not any(module.training for module in dual.modules())
    assert not any(parameter.requires_grad for parameter in dual.parameters())


SETTINGS = [{"affine": False}, {"track_running_stats": False}, {"momentum": None}, {"affine": False, "momentum": 0.0}]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("branch", ["clean", "adv"])
def test_settings_and_dtypes_survive(settings, dtype, branch):
    plain = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, **settings)).to(dtype)
    dual = convert_to_dual_bn(plain, inplace=False)
    for _ in range(3):
        x = images().to(dtype)
        with bn_branch(dual, branch):
            assert torch.equal(dual(x), plain(x))
    plain.eval(), dual.eval()
    with bn_branch(dual, branch):
        assert torch.equal(dual(x), plain(x))


def test_filter_fn_sees_each_norm_and_its_full_name():
    seen = {}
    model = nn.Sequential(network(), nn.BatchNorm1d(5))
    norms = {"0.1": nn.BatchNorm2d, "0.5": nn.BatchNorm1d, "1": nn.BatchNorm1d}
    convert_to_dual_bn(model, filter_fn=lambda module, name: seen.setdefault(name, type(module)))
    assert seen == norms


def test_filter_fn_is_asked_about_a_shared_norm_under_each_name():
    norm, seen = nn.BatchNorm2d(3), []
    convert_to_dual_bn(nn.Sequential(norm, norm), filter_fn=lambda module, name: seen.append(name) is None)
    assert seen == ["0", "1"]


def test_filter_fn_chooses():
    model = convert_to_dual_bn(network(), filter_fn=lambda module, name: name != "5")
    assert isinstance(model[1], DualBatchNorm2d)
    assert type(model[5]) is nn.BatchNorm1d


def test_nothing_to_convert_warns_and_changes_nothing():
    model = nn.Sequential(nn.Linear(3, 3))
    message = r"^convert_to_dual_bn: expected a model with batch norms"
    with pytest.warns(UserWarning, match=message) as caught:
        assert convert_to_dual_bn(model) is model
    assert caught[0].filename == __file__


def test_a_filter_that_accepts_nothing_warns():
    with pytest.warns(UserWarning, match=r"batch norms that filter_fn accepts"):
        convert_to_dual_bn(network(), filter_fn=lambda module, name: False)


def test_an_optimizer_built_before_conversion_keeps_training_the_clean_branch():
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    convert_to_dual_bn(model)
    before = copy.deepcopy(model.state_dict())
    for branch in ("clean", "adv"):
        with bn_branch(model, branch):
            model(images()).exp().sum().backward()
    optimizer.step()
    assert not torch.equal(model[1].clean.weight, before["1.clean.weight"])
    assert torch.equal(model[1].adv.weight, before["1.adv.weight"])


def test_branch_parameters_complete_an_optimizer_built_before_conversion():
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    convert_to_dual_bn(model)
    optimizer.add_param_group({"params": branch_parameters(model, "adv")})
    held = [id(parameter) for group in optimizer.param_groups for parameter in group["params"]]
    assert sorted(held) == sorted(map(id, model.parameters()))


@pytest.mark.parametrize("branch", ["clean", "adv"])
def test_branch_parameters_come_once_in_the_order_of_the_modules(branch):
    model = nn.Sequential(nn.BatchNorm2d(3), nn.BatchNorm2d(3))
    model[1].weight = model[0].weight
    convert_to_dual_bn(model)
    first, second = getattr(model[0], branch), getattr(model[1], branch)
    expected = [first.weight, first.bias, second.bias]
    assert list(map(id, branch_parameters(model, branch))) == list(map(id, expected))


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_copy_of_a_dual_network_stands_alone(copied):
    model = convert_to_dual_bn(network())
    twin = copied(model)
    with bn_branch(twin, "adv"):
        twin(images())
        assert {norm.branch for norm in model.modules() if isinstance(norm, DualBatchNorm)} == {"clean"}
    assert torch.equal(model[1].adv.running_mean, torch.zeros(4))


def test_a_norm_in_a_shared_block_is_named_by_each_of_its_paths():
    block, seen = nn.Sequential(nn.BatchNorm1d(4)), []
    convert_to_dual_bn(nn.ModuleDict({"a": block, "b": block}), filter_fn=lambda module, name: not seen.append(name))
    assert seen == ["a.0", "b.0"]


class Equal(nn.BatchNorm1d):
    """Compares by value, as dataclasses do."""

    def __eq__(self, other):
        return isinstance(other, Equal)

    def __hash__(self):
        return 0


def test_norms_that_compare_equal_stay_two():
    first, second = Equal(4), Equal(4)
    model = convert_to_dual_bn(nn.Sequential(first, second))
    assert [type(norm) for norm in (first, second)] == [DualBatchNorm1d] * 2
    assert model[0] is first is not second is model[1]


def test_a_norm_that_refers_to_its_model_does_not_copy_it():
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
    model[1].__dict__["owner"] = model
    assert convert_to_dual_bn(model)[1].adv.owner is model
