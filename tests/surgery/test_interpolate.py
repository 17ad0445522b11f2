"""A plain network between two branches."""

import copy
import re

import pytest
import torch
from torch import nn

from advcontrast import bn_branch, convert_to_dual_bn, export_branch, interpolate_branches, update_bn
from advcontrast.surgery import blend


def trained(**settings):
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 5), nn.BatchNorm1d(5)
    model = convert_to_dual_bn(nn.Sequential(*layers), **settings)
    for scale, branch in enumerate(model[1].branches, 1):
        with bn_branch(model, branch), torch.no_grad():
            model(scale * torch.rand(6, 3, 4, 4))
            getattr(model[1], branch).weight.fill_(scale)
    return model


def between(model, alpha, loader=None):
    return interpolate_branches(model, {"clean": 1 - alpha, "adv": alpha}, loader=loader)


def equal(ours, theirs):
    assert list(ours.state_dict()) == list(theirs.state_dict())
    return all(torch.equal(value, theirs.state_dict()[name]) for name, value in ours.state_dict().items())


def loader():
    return [torch.rand(8, 3, 4, 4) for _ in range(3)]


@pytest.mark.parametrize(("alpha", "branch"), [(0, "clean"), (1, "adv"), (0.0, "clean"), (1.0, "adv")])
@pytest.mark.parametrize("split", ["both", "affine", "stats"])
def test_the_ends_are_the_branches_to_the_bit(alpha, branch, split):
    model = trained(split=split)
    assert equal(between(model, alpha), export_branch(model, branch))


@pytest.mark.parametrize("alpha", [0.25, 0.5, 0.8])
def test_norms_lie_between_the_branches(alpha):
    model = trained()
    blended = between(model, alpha)
    for name in ("weight", "bias", "running_mean", "running_var"):
        clean, adv = (getattr(getattr(model[1], branch), name) for branch in ("clean", "adv"))
        torch.testing.assert_close(getattr(blended[1], name), (1 - alpha) * clean + alpha * adv)


def test_the_model_is_not_touched():
    model = trained()
    before = copy.deepcopy(model.state_dict())
    between(model, 0.5, loader())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert model[1].branch == "clean"


def test_a_norm_that_two_parents_share_moves_once():
    norm = nn.BatchNorm1d(4)
    model = convert_to_dual_bn(nn.Sequential(norm, nn.ReLU(), norm))
    nn.init.constant_(model[0].adv.weight, 2.0)
    assert between(model, 0.5)[0].weight[0] == 1.5


def test_a_parameter_that_two_norms_share_moves_once():
    first, second = nn.BatchNorm1d(4), nn.BatchNorm1d(4)
    second.weight = first.weight
    model = convert_to_dual_bn(nn.Sequential(first, second))
    nn.init.constant_(model[0].adv.weight, 2.0)
    assert between(model, 0.25)[1].weight[0] == 1.25


def test_statistics_are_estimated_anew():
    model, batches = trained(), loader()
    expected = between(model, 0.5)
    update_bn(expected, batches)
    blended = between(model, 0.5, batches)
    assert equal(blended, expected)
    assert not torch.equal(blended[1].running_mean, between(model, 0.5)[1].running_mean)


def test_layer_norms_blend():
    model = convert_to_dual_bn(nn.Sequential(nn.LayerNorm(4)), norms=nn.LayerNorm)
    nn.init.constant_(model[0].adv.bias, 1.0)
    assert torch.equal(between(model, 0.75)[0].bias.detach(), torch.full((4,), 0.75))


def test_other_branches_blend():
    model = trained(branches=("weak", "middle", "strong"))
    assert interpolate_branches(model, {"weak": 0.5, "strong": 0.5})[1].weight[0] == 2.0


@pytest.mark.parametrize(("alpha", "count"), [(0.4, 1), (0.5, 1), (0.6, 7)])
def test_counts_of_batches_come_from_the_branch_with_the_largest_weight(alpha, count):
    model = trained()
    model[1].adv.num_batches_tracked.fill_(7)
    assert between(model, alpha)[1].num_batches_tracked == count


def test_three_branches_have_a_weighted_mean():
    model = trained(branches=("weak", "middle", "strong"))
    mean = interpolate_branches(model, {"strong": 0.2, "weak": 0.5, "middle": 0.3})
    for name in ("weight", "running_mean"):
        weak, middle, strong = (getattr(getattr(model[1], branch), name) for branch in model[1].branches)
        torch.testing.assert_close(getattr(mean[1], name), 0.5 * weak + 0.3 * middle + 0.2 * strong)


@pytest.mark.parametrize("alpha", [0, 0.1, 0.3, 0.5, 0.77, 1])
def test_the_old_call_gives_the_same_and_warns(alpha):
    model = trained()
    with pytest.warns(DeprecationWarning, match="blend has moved .* interpolate_branches") as caught:
        old = blend(model, alpha, branches=("clean", "adv"))
    assert caught[0].filename == __file__
    nearer, farther, way = ("clean", "adv", alpha) if alpha <= 0.5 else ("adv", "clean", 1 - alpha)
    near, far = (getattr(model[1], branch) for branch in (nearer, farther))
    assert torch.equal(old[1].running_var, near.running_var.lerp(far.running_var, way))
    assert equal(old, between(model, alpha))


def test_gradients_reach_the_blended_weights():
    blended = between(trained(), 0.5)
    blended(torch.rand(6, 3, 4, 4)).square().sum().backward()
    assert all(parameter.requires_grad and parameter.grad is not None for parameter in blended.parameters())


@pytest.mark.parametrize(
    ("weights", "error", "message"),
    [
        ({"clean": -0.1, "adv": 1.1}, ValueError, "expected weights['clean'] to be"),
        ({"clean": 0, "adv": 1.5}, ValueError, "expected weights['adv'] to be"),
        ({"clean": float("nan")}, ValueError, "expected weights['clean'] to be"),
        ({"clean": "adv"}, TypeError, "expected weights['clean'] to be"),
        ({"clean": 0.5, "adv": 0.6}, ValueError, "expected weights that add up to 1"),
        ({}, ValueError, "expected weights that add up to 1"),
        ({"clean": 0.5, "strong": 0.5}, ValueError, "expected branch to be one of 'clean', 'adv', got"),
        (0.5, TypeError, "expected weights to be"),
    ],
)
def test_bad_weights_are_refused(weights, error, message):
    with pytest.raises(error, match=re.escape(f"interpolate_branches: {message}")):
        interpolate_branches(trained(), weights)


def test_a_plain_model_is_refused():
    with pytest.raises(ValueError, match="interpolate_branches: expected a model with dual batch norms, found none"):
        between(nn.Sequential(nn.BatchNorm2d(3)), 0.5)


def test_a_loader_without_batches_is_refused():
    with pytest.raises(ValueError, match="update_bn: expected a loader with batches"):
        between(trained(), 0.5, [])
