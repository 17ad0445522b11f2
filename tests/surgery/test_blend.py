"""A plain network between two branches."""

import copy
import re

import pytest
import torch
from torch import nn

from advcontrast import blend, bn_branch, convert_to_dual_bn, export_branch, update_bn


def trained(**settings):
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 5), nn.BatchNorm1d(5)
    model = convert_to_dual_bn(nn.Sequential(*layers), **settings)
    for scale, branch in enumerate(model[1].branches, 1):
        with bn_branch(model, branch), torch.no_grad():
            model(scale * torch.rand(6, 3, 4, 4))
            getattr(model[1], branch).weight.fill_(scale)
    return model


def equal(ours, theirs):
    assert list(ours.state_dict()) == list(theirs.state_dict())
    return all(torch.equal(value, theirs.state_dict()[name]) for name, value in ours.state_dict().items())


def loader():
    return [torch.rand(8, 3, 4, 4) for _ in range(3)]


@pytest.mark.parametrize(("alpha", "branch"), [(0, "clean"), (1, "adv"), (0.0, "clean"), (1.0, "adv")])
@pytest.mark.parametrize("split", ["both", "affine", "stats"])
def test_the_ends_are_the_branches_to_the_bit(alpha, branch, split):
    model = trained(split=split)
    assert equal(blend(model, alpha), export_branch(model, branch))


@pytest.mark.parametrize("alpha", [0.25, 0.5, 0.8])
def test_norms_lie_between_the_branches(alpha):
    model = trained()
    blended = blend(model, alpha)
    for name in ("weight", "bias", "running_mean", "running_var"):
        clean, adv = (getattr(getattr(model[1], branch), name) for branch in ("clean", "adv"))
        torch.testing.assert_close(getattr(blended[1], name), (1 - alpha) * clean + alpha * adv)


def test_the_model_is_not_touched():
    model = trained()
    before = copy.deepcopy(model.state_dict())
    blend(model, 0.5, loader())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert model[1].branch == "clean"


def test_a_norm_that_two_parents_share_moves_once():
    norm = nn.BatchNorm1d(4)
    model = convert_to_dual_bn(nn.Sequential(norm, nn.ReLU(), norm))
    nn.init.constant_(model[0].adv.weight, 2.0)
    assert blend(model, 0.5)[0].weight[0] == 1.5


def test_a_parameter_that_two_norms_share_moves_once():
    first, second = nn.BatchNorm1d(4), nn.BatchNorm1d(4)
    second.weight = first.weight
    model = convert_to_dual_bn(nn.Sequential(first, second))
    nn.init.constant_(model[0].adv.weight, 2.0)
    assert blend(model, 0.25)[1].weight[0] == 1.25


def test_statistics_are_estimated_anew():
    model, batches = trained(), loader()
    expected = blend(model, 0.5)
    update_bn(expected, batches)
    blended = blend(model, 0.5, batches)
    assert equal(blended, expected)
    assert not torch.equal(blended[1].running_mean, blend(model, 0.5)[1].running_mean)


def test_layer_norms_blend():
    model = convert_to_dual_bn(nn.Sequential(nn.LayerNorm(4)), norms=nn.LayerNorm)
    nn.init.constant_(model[0].adv.bias, 1.0)
    assert torch.equal(blend(model, 0.75)[0].bias.detach(), torch.full((4,), 0.75))


def test_other_branches_blend():
    model = trained(branches=("weak", "middle", "strong"))
    assert blend(model, 0.5, branches=("weak", "strong"))[1].weight[0] == 2.0


def test_gradients_reach_the_blended_weights():
    blended = blend(trained(), 0.5)
    blended(torch.rand(6, 3, 4, 4)).square().sum().backward()
    assert all(parameter.requires_grad and parameter.grad is not None for parameter in blended.parameters())


@pytest.mark.parametrize(
    ("arguments", "settings", "error", "message"),
    [
        ((-0.1,), {}, ValueError, "expected alpha to be a finite number >= 0 and <= 1, got -0.1. 0 gives the first"),
        ((1.5,), {}, ValueError, "expected alpha to be a finite number >= 0 and <= 1, got 1.5."),
        ((float("nan"),), {}, ValueError, "expected alpha to be a finite number >= 0 and <= 1, got nan."),
        (("adv",), {}, TypeError, "expected alpha to be a finite number >= 0 and <= 1, got str."),
        ((0.5,), {"branches": ("clean", "strong")}, ValueError, "expected branch to be one of 'clean', 'adv', got"),
        ((0.5,), {"branches": ("clean",)}, TypeError, "expected branches to be two names, got ('clean',). Pass the"),
        ((0.5,), {"branches": "clean"}, TypeError, "expected branches to be two names, got 'clean'. Pass the two"),
    ],
)
def test_bad_arguments_are_refused(arguments, settings, error, message):
    with pytest.raises(error, match=re.escape(f"blend: {message}")):
        blend(trained(), *arguments, **settings)


def test_a_plain_model_is_refused():
    with pytest.raises(ValueError, match="blend: expected a model with dual batch norms, found none in Sequential"):
        blend(nn.Sequential(nn.BatchNorm2d(3)), 0.5)


def test_a_loader_without_batches_is_refused():
    with pytest.raises(ValueError, match="update_bn: expected a loader with batches, got none"):
        blend(trained(), 0.5, [])
