"""Conversion of norms of other kinds, in other numbers, and split otherwise."""

import copy
import re

import pytest
import torch
from torch import nn

from advcontrast import DualBatchNorm2d, bn_branch, convert_to_dual_bn, export_branch
from advcontrast.norm import DualNorm


class Wrapper(nn.Module):
    """A norm made of a norm."""

    def __init__(self):
        super().__init__()
        self.inner = nn.LayerNorm(4)

    def forward(self, x):
        return self.inner(x)


def network():
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.GroupNorm(2, 4), nn.Flatten(), nn.Linear(16, 5), nn.LayerNorm(5)
    return nn.Sequential(*layers)


def kinds(model):
    return [type(module).__name__ for module in model]


@pytest.mark.parametrize(
    ("norms", "places"),
    [
        (nn.LayerNorm, [5]),
        ((nn.LayerNorm, nn.GroupNorm), [2, 5]),
        (nn.BatchNorm2d, [1]),
        ((nn.modules.batchnorm._BatchNorm, nn.LayerNorm), [1, 5]),
    ],
)
def test_the_norms_that_were_asked_for_are_converted(norms, places):
    model = convert_to_dual_bn(network(), norms=norms)
    assert [i for i, module in enumerate(model) if isinstance(module, DualNorm)] == places


def test_batch_norms_among_others_become_what_they_become_alone():
    model = convert_to_dual_bn(network(), norms=(nn.BatchNorm2d, nn.LayerNorm))
    assert type(model[1]) is DualBatchNorm2d
    assert type(model[5]) is DualNorm


def test_a_second_call_adds_other_norms():
    model = convert_to_dual_bn(convert_to_dual_bn(network()), norms=nn.LayerNorm)
    assert [i for i, module in enumerate(model) if isinstance(module, DualNorm)] == [1, 5]


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("branch", ["clean", "adv"])
@pytest.mark.parametrize("split", ["both", "affine", "stats"])
def test_outputs_stay_the_same_to_the_bit(training, branch, split):
    plain = network().train(training)
    norms = nn.BatchNorm2d if split == "stats" else (nn.BatchNorm2d, nn.LayerNorm, nn.GroupNorm)
    model = convert_to_dual_bn(copy.deepcopy(plain), norms=norms, split=split)
    x = torch.rand(6, 3, 4, 4)
    with bn_branch(model, branch):
        assert torch.equal(model(x), plain(x))
        assert torch.equal(model(x), plain(x))
    exported = export_branch(model, branch)
    assert list(exported.state_dict()) == list(plain.state_dict())
    assert kinds(exported) == kinds(plain)
    assert all(torch.equal(value, plain.state_dict()[name]) for name, value in exported.state_dict().items())


def test_a_filter_chooses_among_the_norms():
    model = convert_to_dual_bn(network(), norms=(nn.LayerNorm, nn.GroupNorm), filter_fn=lambda _, name: name == "5")
    assert [i for i, module in enumerate(model) if isinstance(module, DualNorm)] == [5]


@pytest.mark.parametrize(
    ("split", "left"), [("stats", {"GroupNorm", "LayerNorm"}), ("affine", {"BatchNorm2d"}), ("both", set())]
)
def test_a_norm_that_has_nothing_to_split_stays(split, left):
    model = network()
    model[1] = nn.BatchNorm2d(4, affine=False)
    convert_to_dual_bn(model, norms=(nn.BatchNorm2d, nn.LayerNorm, nn.GroupNorm), split=split)
    assert {kind for kind in kinds(model) if kind in ("GroupNorm", "LayerNorm", "BatchNorm2d")} == left


def test_a_layer_norm_without_parameters_stays():
    model = nn.Sequential(nn.LayerNorm(4, elementwise_affine=False), nn.LayerNorm(4))
    assert kinds(convert_to_dual_bn(model, norms=nn.LayerNorm)) == ["LayerNorm", "DualNorm"]


def test_of_a_norm_made_of_norms_the_outer_one_is_converted():
    model = convert_to_dual_bn(nn.Sequential(Wrapper()), norms=(nn.LayerNorm, Wrapper))
    assert isinstance(model[0], DualNorm)
    assert isinstance(model[0].adv.inner, nn.LayerNorm)


def test_within_a_norm_made_of_norms_nothing_is_converted():
    model = convert_to_dual_bn(nn.Sequential(Wrapper()), norms=(nn.LayerNorm, Wrapper))
    assert [type(part.inner) for part in (model[0].clean, model[0].adv)] == [nn.LayerNorm, nn.LayerNorm]


def test_tied_parameters_stay_tied_in_every_branch():
    model = nn.Sequential(nn.LayerNorm(4), nn.LayerNorm(4))
    model[1].weight = model[0].weight
    convert_to_dual_bn(model, norms=nn.LayerNorm, branches=("a", "b", "c"))
    for branch in ("a", "b", "c"):
        assert getattr(model[0], branch).weight is getattr(model[1], branch).weight
    assert model[0].b.weight is not model[0].c.weight


def test_a_model_without_the_norms_is_told_which_it_has():
    message = "convert_to_dual_bn: expected a model with batch norms"
    with pytest.warns(UserWarning, match=re.escape(message)):
        convert_to_dual_bn(nn.Sequential(nn.LayerNorm(4)))


@pytest.mark.parametrize(
    ("settings", "wish"),
    [
        ({"branches": ("clean", "adv", "third")}, "('clean', 'adv', 'third') and split 'both'"),
        ({"split": "affine"}, "('clean', 'adv') and split 'affine'"),
    ],
)
def test_norms_that_are_dual_in_another_way_stay_with_a_warning(settings, wish):
    model = convert_to_dual_bn(network())
    message = (
        f"convert_to_dual_bn: expected batch norms to give the branches {wish}, got only dual ones with "
        "('clean', 'adv') and 'both'. They are not changed; export a branch and convert that."
    )
    with pytest.warns(UserWarning, match=re.escape(message)):
        convert_to_dual_bn(model, **settings)
    assert model[1].branches == ("clean", "adv")


def test_norms_that_are_not_found_are_named():
    with pytest.warns(UserWarning, match="expected a model with GroupNorm or RMSNorm"):
        convert_to_dual_bn(nn.Sequential(nn.Linear(4, 4)), norms=(nn.GroupNorm, nn.RMSNorm))


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"norms": "LayerNorm"}, TypeError, "expected norms to be"),
        ({"norms": nn.LayerNorm(4)}, TypeError, "expected norms to be"),
        ({"norms": nn.Module}, TypeError, "expected norms to be"),
        ({"norms": (nn.LayerNorm, int)}, TypeError, "expected norms to be"),
        ({"norms": ()}, TypeError, "expected norms to be"),
        ({"branches": ("clean",)}, ValueError, "expected branches to be"),
        ({"branches": ("a", "eps")}, ValueError, "expected branches to be names of attributes that a norm does not"),
        ({"split": "half"}, ValueError, "expected split to be"),
        ({"split": None}, TypeError, "expected split to be"),
    ],
)
def test_bad_arguments_are_refused_before_anything_changes(settings, error, message):
    model = network()
    before = kinds(model)
    with pytest.raises(error, match=re.escape(f"convert_to_dual_bn: {message}")):
        convert_to_dual_bn(model, **settings)
    assert kinds(model) == before
