"""Any norm, any number of branches, and what each branch has for itself."""

import copy
import pickle
import re

import pytest
import torch
from torch import nn

from advcontrast import DualBatchNorm2d, bn_branch, branch_parameters, convert_to_dual_bn
from advcontrast.norm import DualNorm
from advcontrast.surgery import convert_sync_batchnorm

SPLIT = pytest.mark.parametrize("split", ["both", "affine", "stats"])
NORMS = [nn.LayerNorm(6), nn.GroupNorm(2, 4), nn.RMSNorm(6), nn.BatchNorm2d(4)]


def images(n=5):
    return torch.rand(n, 4, 6, 6, generator=torch.Generator().manual_seed(1))


def two(split, **settings):
    return DualBatchNorm2d.from_batchnorm(nn.BatchNorm2d(4), split=split, **settings)


def shared(dual):
    """Return the names of what both branches hold as one object."""
    ours, theirs = (getattr(dual, branch).state_dict(keep_vars=True) for branch in ("clean", "adv"))
    return {name for name in ours if ours[name] is theirs[name]}


PARAMETERS, STATISTICS = {"weight", "bias"}, {"running_mean", "running_var", "num_batches_tracked"}
SHARED = {"both": set(), "affine": STATISTICS, "stats": PARAMETERS}


@pytest.mark.parametrize("norm", NORMS, ids=lambda norm: type(norm).__name__)
def test_any_norm_keeps_its_function_on_every_branch(norm):
    x = images()
    expected = copy.deepcopy(norm)(x)
    dual = DualNorm(norm, branches=("clean", "adv", "extra"))
    for branch in dual.branches:
        dual.branch = branch
        assert torch.equal(dual(x), expected)


def test_the_norm_itself_is_the_first_branch():
    norm = nn.LayerNorm(6)
    dual = DualNorm(norm, branches=("weak", "strong"))
    assert dual.weak is norm
    assert dual.branch == "weak"
    assert dual.branches == ("weak", "strong")


def test_every_branch_is_a_copy_of_its_own():
    dual = DualNorm(nn.LayerNorm(6), branches=("a", "b", "c"))
    assert len({id(parameter) for parameter in dual.parameters()}) == 6
    assert len({parameter.data_ptr() for parameter in dual.parameters()}) == 6


@SPLIT
def test_a_split_says_what_the_branches_share(split):
    assert shared(two(split)) == SHARED[split]


@SPLIT
def test_a_split_outlives_copies_pickles_and_casts(split):
    dual = two(split)
    for other in (copy.deepcopy(dual), pickle.loads(pickle.dumps(dual)), two(split).double(), two(split).to("meta")):
        assert shared(other) == SHARED[split]
        assert other.split == split


@SPLIT
@pytest.mark.parametrize("assign", [False, True])
def test_a_split_outlives_loading(split, assign):
    source, dual = two(split), two(split)
    nn.init.constant_(source.adv.weight, 3.0)
    source.adv.running_mean.fill_(2.0)
    dual.load_state_dict(copy.deepcopy(source.state_dict()), assign=assign)
    assert shared(dual) == SHARED[split]
    for name, value in source.state_dict().items():
        assert torch.equal(dual.state_dict()[name], value)


@SPLIT
@pytest.mark.parametrize("assign", [False, True])
def test_a_plain_state_fills_every_branch(split, assign):
    plain = nn.BatchNorm2d(4)
    plain.running_mean.fill_(5.0)
    dual = two(split, branches=("a", "b", "c"))
    dual.load_state_dict(plain.state_dict(), assign=assign)
    for branch in dual.branches:
        assert torch.equal(getattr(dual, branch).running_mean, plain.running_mean)


def test_a_plain_state_fills_every_branch_of_a_norm_inside_a_network():
    plain, dual = nn.Sequential(nn.Identity(), nn.BatchNorm2d(4)), nn.Sequential(nn.Identity(), two("both"))
    plain[1].running_mean.fill_(5.0)
    dual.load_state_dict(plain.state_dict())
    assert torch.equal(dual[1].clean.running_mean, plain[1].running_mean)
    assert torch.equal(dual[1].adv.running_mean, plain[1].running_mean)


@SPLIT
def test_training_one_branch_moves_only_what_is_shared(split):
    dual = two(split)
    before = copy.deepcopy(dual.clean.state_dict())
    dual.branch = "adv"
    dual(images()).square().sum().backward()
    torch.optim.SGD(branch_parameters(dual, "adv") or dual.parameters(), lr=0.1).step()
    moved = {name for name, value in dual.clean.state_dict().items() if not torch.equal(value, before[name])}
    # The squares of normalised values have no gradient but that of scale and shift.
    assert moved == SHARED[split]


def test_shared_statistics_are_those_of_all_that_passed():
    dual, plain = two("affine"), nn.BatchNorm2d(4)
    for branch, x in (("clean", images()), ("adv", 2 * images(3)), ("clean", images(7))):
        dual.branch = branch
        dual(x)
        plain(x)
    assert torch.equal(dual.adv.running_var, plain.running_var)
    assert dual.clean.num_batches_tracked == 3


@pytest.mark.parametrize(("split", "own"), [("both", 2), ("affine", 2), ("stats", 0)])
def test_the_parameters_of_a_branch_are_those_that_no_other_has(split, own):
    dual = two(split)
    expected = list(dual.adv.parameters())[:own]
    assert list(map(id, branch_parameters(dual, "adv"))) == list(map(id, expected))


@SPLIT
def test_an_optimizer_sees_a_shared_parameter_once(split):
    assert len(list(two(split).parameters())) == (2 if split == "stats" else 4)


@pytest.mark.parametrize("convert", [convert_sync_batchnorm, nn.SyncBatchNorm.convert_sync_batchnorm])
def test_sync_batch_norms_keep_the_split(convert):
    for split in ("affine", "stats"):
        dual = convert(two(split))
        assert isinstance(dual.adv, nn.SyncBatchNorm)
        assert shared(dual) == SHARED[split]


def test_a_dual_norm_answers_as_the_norm_in_use():
    dual = DualNorm(nn.LayerNorm(6))
    dual.branch = "adv"
    assert dual.weight is dual.adv.weight
    assert dual.eps == 1e-5
    with pytest.raises(AttributeError, match="'LayerNorm' object has no attribute 'running_mean'"):
        _ = dual.running_mean


def test_the_fast_path_of_a_transformer_uses_the_branch_in_use():
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
    convert_to_dual_bn(layer, norms=nn.LayerNorm)
    nn.init.constant_(layer.norm2.adv.bias, 1.0)
    x = torch.rand(2, 3, 8)
    outputs = []
    for context in (torch.no_grad(), torch.enable_grad()):
        with context, bn_branch(layer, "adv"):
            outputs.append(layer(x))
    torch.testing.assert_close(*outputs)
    with bn_branch(layer, "clean"):
        assert (outputs[1] - layer(x)).abs().min() > 0.9


def test_branches_of_your_own_are_switched_by_the_context():
    model = convert_to_dual_bn(nn.Sequential(nn.BatchNorm2d(4)), branches=("weak", "middle", "strong"))
    with bn_branch(model, "strong"):
        model(images())
    assert [getattr(model[0], name).num_batches_tracked.item() for name in model[0].branches] == [0, 0, 1]


def test_repr_tells_branch_and_split():
    assert "branch='clean'\n" in repr(two("both"))
    assert "branch='clean', split='affine'\n" in repr(two("affine"))


@pytest.mark.parametrize(
    ("branches", "got"),
    [
        (("clean",), "('clean',)"),
        ((), "()"),
        (("a", "b", "a"), "('a', 'b', 'a')"),
    ],
)
def test_too_few_or_equal_branches_are_refused(branches, got):
    message = f"DualNorm: expected branches to be at least two different names, got {got}. Pass names such as"
    with pytest.raises(ValueError, match=re.escape(message)):
        DualNorm(nn.LayerNorm(6), branches=branches)


@pytest.mark.parametrize("name", ["", "a.b", "1st", "class", "_private", "training", "forward", "branch", "weight"])
def test_impossible_names_are_refused(name):
    message = f"DualNorm: expected branches to be names of attributes that a norm does not have yet, got {name!r}. Pass"
    with pytest.raises(ValueError, match=re.escape(message)):
        DualNorm(nn.LayerNorm(6), branches=("clean", name))


@pytest.mark.parametrize(("branches", "got"), [("clean", "str"), (None, "NoneType"), (("a", 1), "('a', 1)")])
def test_branches_that_are_no_names_are_refused(branches, got):
    message = f"DualNorm: expected branches to be a tuple of names, got {got}. Pass names such as"
    with pytest.raises(TypeError, match=re.escape(message)):
        DualNorm(nn.LayerNorm(6), branches=branches)


def test_another_word_for_split_is_refused():
    with pytest.raises(ValueError, match="DualNorm: expected split to be one of 'both', 'affine', 'stats', got 'all'"):
        DualNorm(nn.LayerNorm(6), split="all")


def test_other_types_than_modules_are_refused():
    with pytest.raises(TypeError, match=r"DualNorm: expected model to be an nn.Module, got int"):
        DualNorm(3)


def test_a_branch_that_a_norm_lacks_is_refused_by_name():
    model = nn.Sequential(DualNorm(nn.LayerNorm(6)), DualNorm(nn.LayerNorm(6), branches=("clean", "strong")))
    message = "bn_branch: expected branch to be one of 'clean', got 'adv'. Choose one of the 1."
    with pytest.raises(ValueError, match=re.escape(message)):
        bn_branch(model, "adv")
    assert model[0].branch == "clean"
