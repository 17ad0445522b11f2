"""Statistics of one branch are estimated anew, and nothing else changes."""

import copy
import re

import pytest
import torch
from torch import nn
from torch.optim import swa_utils

from advcontrast import bn_branch, convert_to_dual_bn, export_branch, update_bn


def network():
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 5), nn.BatchNorm1d(5)
    return nn.Sequential(*layers)


def dual(**settings):
    model = convert_to_dual_bn(network(), **settings)
    for branch, scale in (("clean", 1), ("adv", 3)):
        with bn_branch(model, branch), torch.no_grad():
            model(scale * torch.rand(6, 3, 4, 4))
    return model


def loader(batches=3):
    generator = torch.Generator().manual_seed(1)
    return [torch.rand(8, 3, 4, 4, generator=generator) for _ in range(batches)]


def everything(model):
    state = {name: value.clone() for name, value in model.state_dict().items()}
    modes = [(module.training, getattr(module, "momentum", None)) for module in model.modules()]
    return state, modes, [getattr(module, "branch", None) for module in model.modules()]


def unchanged(model, before):
    state, *rest = everything(model)
    return rest == list(before[1:]) and all(torch.equal(state[name], before[0][name]) for name in state)


@pytest.mark.parametrize("branch", ["clean", "adv"])
def test_statistics_are_those_of_the_exported_branch(branch):
    model = dual()
    expected = export_branch(model, branch)
    swa_utils.update_bn(loader(), expected)
    update_bn(model, loader(), branch)
    ours = export_branch(model, branch).state_dict()
    assert all(torch.equal(ours[name], value) for name, value in expected.state_dict().items())


@pytest.mark.parametrize(("branch", "idle"), [("clean", "adv"), ("adv", "clean")])
def test_the_idle_branch_stays(branch, idle):
    model = dual()
    before = copy.deepcopy(export_branch(model, idle).state_dict())
    update_bn(model, loader(), branch)
    assert all(torch.equal(value, before[name]) for name, value in export_branch(model, idle).state_dict().items())


def test_norms_outside_of_dual_ones_stay():
    model = dual(filter_fn=lambda norm, _: isinstance(norm, nn.BatchNorm2d))
    before = copy.deepcopy(model[5].state_dict())
    update_bn(model, loader(), "adv")
    assert all(torch.equal(value, before[name]) for name, value in model[5].state_dict().items())


def test_a_plain_network_is_updated_too():
    model, expected = network(), network()
    swa_utils.update_bn(loader(), expected)
    update_bn(model, loader())
    assert all(torch.equal(value, expected.state_dict()[name]) for name, value in model.state_dict().items())


def test_modes_momentum_and_branch_come_back():
    model = dual()
    model[1].adv.eval()
    model[1].clean.momentum = 0.3
    before = everything(model)
    update_bn(model, loader(), "adv")
    assert everything(model)[1:] == before[1:]


def test_everything_else_is_in_eval_mode():
    model = nn.Sequential(nn.Dropout(0.5), nn.BatchNorm1d(4))
    update_bn(model, [torch.ones(8, 4)])
    assert torch.equal(model[1].running_mean, torch.ones(4))


def test_batches_may_hold_labels_too():
    first, second = dual(), dual()
    update_bn(first, loader(), "adv")
    update_bn(second, [(x, torch.zeros(8)) for x in loader()], "adv")
    assert torch.equal(first[1].adv.running_var, second[1].adv.running_var)


def test_a_norm_without_statistics_is_left_out():
    model = nn.Sequential(nn.BatchNorm1d(4, track_running_stats=False), nn.BatchNorm1d(4))
    update_bn(model, [torch.rand(8, 4)])
    assert model[1].num_batches_tracked == 1


def test_no_gradient_is_left():
    model = dual()
    update_bn(model, loader(), "adv")
    assert all(parameter.grad is None for parameter in model.parameters())


def fails_late():
    yield from loader(1)
    raise OSError("disk")


@pytest.mark.parametrize(
    ("batches", "error"),
    [
        (fails_late, OSError),
        (lambda: [*loader(1), torch.rand(8, 2, 4, 4)], RuntimeError),
        (lambda: [*loader(1), torch.rand(1, 3, 4, 4)], ValueError),
        (lambda: [*loader(1), torch.full((8, 3, 4, 4), torch.nan)], ValueError),
        (lambda: [*loader(1), "text"], TypeError),
    ],
)
def test_a_failure_leaves_the_model_as_it_was(batches, error):
    model = dual()
    before = everything(model)
    with pytest.raises(error):
        update_bn(model, batches(), "adv")
    assert unchanged(model, before)


@pytest.mark.parametrize(
    ("model", "arguments", "error", "message"),
    [
        (dual, ([], "adv"), ValueError, "expected a loader with batches, got none"),
        (dual, (loader(), "advv"), ValueError, "expected branch to be one of 'clean', 'adv', got 'advv'."),
        (dual, (loader(),), ValueError, "expected branch to be one of ('clean', 'adv'), got None. Pass the branch"),
        (network, (loader(), "adv"), ValueError, "expected a model with dual batch norms, found none in Sequential."),
        (dual, (3, "adv"), TypeError, "expected loader to be an iterable of batches, got int. Pass a DataLoader"),
        (dual, (torch.rand(8, 3, 4, 4), "adv"), TypeError, "expected loader to be an iterable of batches, got torch."),
        (dual, (["x"], "adv"), TypeError, "expected a batch to be a tensor or a tuple with one in front, got str."),
        (dual, ([()], "adv"), TypeError, "expected a batch to be a tensor or a tuple with one in front, got tuple."),
        (dual, ([torch.full((8, 3, 4, 4), torch.nan)], "adv"), ValueError, "expected finite statistics, got some that"),
        (lambda: nn.Linear(2, 2), (loader(),), ValueError, "expected norms with running statistics, got none. Only"),
        (lambda: None, (loader(),), TypeError, "expected model to be an nn.Module, got NoneType."),
        (
            lambda: dual(split="affine"),
            (loader(), "adv"),
            ValueError,
            "expected branch 'adv' to have running statistics of its own, got shared ones, of split=\"affine\". Update",
        ),
    ],
)
def test_bad_arguments_are_refused(model, arguments, error, message):
    with pytest.raises(error, match=re.escape(f"update_bn: {message}")):
        update_bn(model(), *arguments)


def test_a_norm_that_a_model_uses_twice_averages_all_its_batches():
    norm = nn.BatchNorm1d(1)
    model = nn.Sequential(nn.Identity(), norm, nn.ReLU(), norm)
    reference = copy.deepcopy(model)
    x = [torch.tensor([[1.0], [3.0]]), torch.tensor([[6.0], [8.0]])]
    update_bn(model, x)
    torch.optim.swa_utils.update_bn(x, reference)
    assert torch.equal(norm.running_mean, reference[1].running_mean)
    assert norm.num_batches_tracked == 4


def test_the_counter_stays_the_same_tensor():
    model = dual()
    counter = model.get_buffer("1.adv.num_batches_tracked")
    update_bn(model, loader(), "adv")
    assert model.get_buffer("1.adv.num_batches_tracked") is counter
