"""An exported branch is a plain network of its own."""

import copy

import pytest
import torch
from timm.layers import BatchNormAct2d
from torch import nn

from advcontrast import bn_branch, convert_to_dual_bn, export_branch
from advcontrast.norm import DualBatchNorm


def network():
    layers = nn.Conv2d(3, 4, 3), BatchNormAct2d(4), nn.Flatten(), nn.Linear(16, 5), nn.BatchNorm1d(5)
    return nn.Sequential(*layers)


def trained():
    model = convert_to_dual_bn(network())
    for branch, scale in (("clean", 1), ("adv", 3)):
        with bn_branch(model, branch), torch.no_grad():
            model(scale * torch.rand(6, 3, 4, 4))
    return model


BRANCHES = pytest.mark.parametrize("branch", ["clean", "adv"])


@BRANCHES
@pytest.mark.parametrize("training", [True, False])
def test_outputs_are_those_of_the_branch(branch, training):
    model = trained().train(training)
    exported = export_branch(model, branch)
    x = torch.rand(6, 3, 4, 4)
    with bn_branch(model, branch):
        assert torch.equal(exported(x), model(x))


@BRANCHES
def test_keys_and_modules_are_those_of_the_plain_network(branch):
    exported = export_branch(trained(), branch)
    assert list(exported.state_dict()) == list(network().state_dict())
    assert [(n, type(m)) for n, m in exported.named_modules()] == [(n, type(m)) for n, m in network().named_modules()]


@BRANCHES
def test_the_state_loads_into_the_plain_network(branch):
    model, plain = trained(), network()
    plain.load_state_dict(export_branch(model, branch).state_dict())
    assert torch.equal(plain[1].running_mean, getattr(model[1], branch).running_mean)


@BRANCHES
def test_the_model_is_not_touched(branch):
    model = trained()
    with bn_branch(model, "adv"):
        before, modules = copy.deepcopy(model.state_dict()), list(model.modules())
        exported = export_branch(model, branch)
        exported(torch.rand(6, 3, 4, 4)).sum().backward()
        assert [norm.branch for norm in model.modules() if isinstance(norm, DualBatchNorm)] == ["adv", "adv"]
    assert list(model.modules()) == modules
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


@BRANCHES
def test_a_root_norm_is_exported_as_a_norm(branch):
    assert type(export_branch(convert_to_dual_bn(nn.BatchNorm2d(3)), branch)) is nn.BatchNorm2d


@BRANCHES
def test_a_shared_norm_stays_shared(branch):
    norm = nn.BatchNorm2d(3)
    exported = export_branch(convert_to_dual_bn(nn.Sequential(norm, nn.Sequential(norm))), branch)
    assert type(exported[0]) is nn.BatchNorm2d
    assert exported[0] is exported[1][0]


@BRANCHES
def test_modes_and_frozen_parameters_are_kept(branch):
    model = trained()
    model[1].eval().requires_grad_(False)
    exported = export_branch(model, branch)
    assert [module.training for module in exported] == [True, False, True, True, True]
    assert [parameter.requires_grad for parameter in exported[1].parameters()] == [False, False]


def test_a_norm_that_was_never_dual_is_exported_as_it_is():
    model = convert_to_dual_bn(network(), filter_fn=lambda module, name: name == "1")
    assert type(export_branch(model, "adv")[4]) is nn.BatchNorm1d


def test_converting_an_exported_branch_gives_that_branch_twice():
    model = trained()
    again = convert_to_dual_bn(export_branch(model, "adv"))
    for branch in ("clean", "adv"):
        actual, expected = getattr(again[1], branch).state_dict(), model[1].adv.state_dict()
        assert all(torch.equal(actual[name], expected[name]) for name in expected)
