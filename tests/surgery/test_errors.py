"""Surgery refuses what it cannot operate on, and says what to do."""

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

from advcontrast import branch_parameters, convert_to_dual_bn, export_branch, interpolate_branches


def network():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))


def export(model):
    return export_branch(model, "adv")


OWNERS = pytest.mark.parametrize(
    ("surgery", "owner"),
    [(convert_to_dual_bn, "convert_to_dual_bn"), (export, "export_branch")],
)


@OWNERS
def test_data_parallel_is_refused(surgery, owner):
    message = f"^{owner}: expected an unwrapped module, got DataParallel"
    with pytest.raises(TypeError, match=message):
        surgery(nn.DataParallel(network()))


@OWNERS
def test_a_compiled_model_is_refused(surgery, owner):
    message = f"^{owner}: expected an unwrapped module, got OptimizedModule.*_orig_mod"
    with pytest.raises(TypeError, match=message):
        surgery(torch.compile(network()))


@OWNERS
def test_a_wrapper_inside_is_refused_with_its_name(surgery, owner):
    model = nn.Sequential(nn.ReLU(), nn.Sequential(nn.DataParallel(network())))
    message = f"^{owner}: expected an unwrapped module, got DataParallel at '1.0'"
    with pytest.raises(TypeError, match=message):
        surgery(model)


@OWNERS
@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")
def test_a_scripted_model_is_refused(surgery, owner):
    message = f"^{owner}: expected an unscripted module, got RecursiveScriptModule"
    with pytest.raises(TypeError, match=message):
        surgery(torch.jit.script(network()))


@OWNERS
@pytest.mark.parametrize("lazy", [nn.LazyBatchNorm2d(), nn.LazyConv2d(3, 1)], ids=["norm", "convolution"])
def test_a_lazy_model_is_refused(surgery, owner, lazy):
    message = f"^{owner}: expected an initialised module, got {type(lazy).__name__} at '1'"
    with pytest.raises(TypeError, match=message):
        surgery(nn.Sequential(nn.BatchNorm2d(3), lazy))


def test_a_lazy_model_converts_after_a_forward_pass():
    model = nn.Sequential(nn.LazyBatchNorm2d())
    model(torch.rand(2, 3, 2, 2))
    assert convert_to_dual_bn(model)[0].adv.num_features == 3


@OWNERS
def test_anything_but_a_module_is_refused(surgery, owner):
    with pytest.raises(TypeError, match=f"^{owner}: expected model to be"):
        surgery({})


def test_a_refused_model_is_unchanged():
    model = nn.Sequential(nn.BatchNorm2d(3), nn.LazyBatchNorm2d())
    modules = list(model.modules())
    with pytest.raises(TypeError):
        convert_to_dual_bn(model)
    assert list(model.modules()) == modules


def test_inplace_must_be_a_bool():
    message = "^convert_to_dual_bn: expected inplace to be"
    with pytest.raises(TypeError, match=message):
        convert_to_dual_bn(network(), inplace=1)


def test_filter_fn_must_be_callable():
    message = r"^convert_to_dual_bn: expected filter_fn to be"
    with pytest.raises(TypeError, match=message):
        convert_to_dual_bn(network(), filter_fn="layer1")


@pytest.mark.parametrize("function", [export_branch, branch_parameters])
@pytest.mark.parametrize(
    ("branch", "error", "message"),
    [
        ("foo", ValueError, "got 'foo'. Choose one of the 2."),
        ("ADV", ValueError, "got 'ADV'. Did you mean 'adv'."),
        (1, TypeError, "got int. Pass branch as a string."),
    ],
)
def test_a_bad_branch_is_refused(function, branch, error, message):
    with pytest.raises(error, match=f"^{function.__name__}: expected branch to be one of 'clean', 'adv', {message}$"):
        function(convert_to_dual_bn(network()), branch)


@pytest.mark.parametrize(
    ("function", "arguments"),
    [(export_branch, ["adv"]), (branch_parameters, ["adv"]), (interpolate_branches, [{"clean": 1}])],
)
def test_a_model_without_dual_norms_is_refused(function, arguments):
    message = (
        rf"^{function.__name__}: expected a model with dual batch norms, found none in Sequential\. "
        r"Call convert_to_dual_bn\(model\) first\.$"
    )
    with pytest.raises(ValueError, match=message):
        function(network(), *arguments)


@pytest.mark.parametrize(
    ("owner", "surgery"),
    [
        ("export_branch", export),
        ("interpolate_branches", lambda model: interpolate_branches(model, {"clean": 0.5, "adv": 0.5})),
        ("convert_to_dual_bn", lambda model: convert_to_dual_bn(model, inplace=False)),
    ],
)
def test_a_model_that_cannot_be_copied_is_refused(owner, surgery):
    model = convert_to_dual_bn(network())
    prune.l1_unstructured(model[0], "weight", 1)
    message = (
        rf"^{owner}: expected a model that copy\.deepcopy can copy, got the result of a computation in '0\.weight'"
    )
    with pytest.raises(RuntimeError, match=message):
        surgery(model)


def test_a_norm_that_cannot_be_copied_is_refused_and_no_norm_is_changed():
    model = nn.Sequential(nn.BatchNorm2d(3), nn.BatchNorm2d(3))
    model[0].reset = model[0].reset_running_stats
    prune.l1_unstructured(model[1], "weight", 1)
    message = r"^convert_to_dual_bn: expected a model that copy\.deepcopy can copy"
    with pytest.raises(RuntimeError, match=message):
        convert_to_dual_bn(model)
    assert [type(module) for module in model] == [nn.BatchNorm2d, nn.BatchNorm2d]
    assert model[0].reset.__self__ is model[0]


def test_a_norm_with_slots_is_refused_and_no_norm_is_changed():
    class Slotted(nn.BatchNorm2d):
        __slots__ = ("gain",)

    model = nn.Sequential(nn.BatchNorm2d(3), Slotted(3))
    with pytest.raises(TypeError, match="__class__ assignment"):
        convert_to_dual_bn(model)
    assert [type(module) for module in model] == [nn.BatchNorm2d, Slotted]
    assert len(list(model.parameters())) == 4
