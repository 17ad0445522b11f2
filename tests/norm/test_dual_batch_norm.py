"""A dual norm is two ordinary batch norms behind one switch."""

import copy
import pickle

import pytest
import torch
from timm.layers import BatchNormAct2d
from torch import nn

from advcontrast import DualBatchNorm1d, DualBatchNorm2d, DualBatchNorm3d

KINDS = {
    1: (DualBatchNorm1d, nn.BatchNorm1d),
    2: (DualBatchNorm2d, nn.BatchNorm2d),
    3: (DualBatchNorm3d, nn.BatchNorm3d),
}


def images(dim, channels=3):
    return torch.randn(4, channels, *[2] * dim)


@pytest.mark.parametrize("dim", KINDS)
def test_a_new_dual_norm_equals_an_ordinary_one(dim):
    dual, plain = KINDS[dim][0](3), KINDS[dim][1](3)
    x = images(dim)
    for branch in ("clean", "adv"):
        dual.branch = branch
        assert torch.equal(dual(x), plain(x))


def test_settings_reach_both_branches():
    dual = DualBatchNorm2d(3, 1e-3, None, False, False)
    for norm in (dual.clean, dual.adv):
        assert (norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats) == (
            *(3, 1e-3, None),
            *(False, False),
        )


def test_dtype_reaches_both_branches():
    assert {tensor.dtype for tensor in DualBatchNorm2d(3, dtype=torch.bfloat16).parameters()} == {torch.bfloat16}


def test_device_reaches_both_branches():
    assert {tensor.device.type for tensor in DualBatchNorm2d(3, device="meta").parameters()} == {"meta"}


def test_the_branches_of_a_new_dual_norm_are_separate():
    dual = DualBatchNorm2d(3)
    assert len({tensor.data_ptr() for tensor in dual.state_dict().values()}) == 10


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (
            {"num_features": 0},
            ValueError,
            r"expected num_features to be an int >= 1, got 0\. Pass the number of channels",
        ),
        ({"num_features": 2.5}, TypeError, r"expected num_features to be an int >= 1, got float\. Pass the number of"),
        ({"num_features": True}, TypeError, r"expected num_features to be an int >= 1, got bool\. Pass the number of"),
        ({"eps": 0}, ValueError, r"expected eps to be a finite number > 0, got 0\. Pass a small positive number"),
        ({"eps": float("nan")}, ValueError, r"expected eps to be a finite number > 0, got nan\. Pass a small positive"),
        ({"eps": "1"}, TypeError, r"expected eps to be a finite number > 0, got str\. Pass a small positive number"),
        (
            {"momentum": 2},
            ValueError,
            r"momentum to be a finite number >= 0 and <= 1, got 2\. None asks for a cumulative",
        ),
        ({"momentum": -0.1}, ValueError, r"momentum to be a finite number >= 0 and <= 1, got -0\.1\. None asks for a"),
        ({"affine": 1}, TypeError, r"expected affine to be True or False, got 1"),
        (
            {"track_running_stats": None},
            TypeError,
            r"track_running_stats to be True or False, got None",
        ),
        ({"device": ""}, TypeError, r"expected device to be a device or its name, got ''\. Pass 'cpu', 'cuda' or a"),
        (
            {"dtype": "DS"},
            TypeError,
            r"expected dtype to be a floating-point torch\.dtype, got 'DS'\. Pass torch\.float",
        ),
        ({"dtype": torch.int64}, TypeError, r"expected dtype to be a floating-point torch\.dtype, got torch\.int64\."),
    ],
)
def test_a_bad_setting_is_refused(arguments, error, message):
    with pytest.raises(error, match=f"^DualBatchNorm2d: .*{message}"):
        DualBatchNorm2d(**{"num_features": 3} | arguments)


@pytest.mark.parametrize("dim", KINDS)
def test_from_batchnorm_keeps_the_object_as_clean(dim):
    dual_kind, kind = KINDS[dim]
    plain = kind(3)
    assert dual_kind.from_batchnorm(plain).clean is plain


def test_from_batchnorm_takes_a_subclass_with_an_activation():
    norm = BatchNormAct2d(3)
    dual = DualBatchNorm2d.from_batchnorm(norm)
    dual.branch = "adv"
    x = images(2)
    assert torch.equal(dual(x), norm(x))
    assert dual(x).min() == 0


@pytest.mark.parametrize("kind", [DualBatchNorm1d, DualBatchNorm2d, DualBatchNorm3d])
def test_from_batchnorm_takes_a_sync_batch_norm_in_every_dimension(kind):
    assert isinstance(kind.from_batchnorm(nn.SyncBatchNorm(3)).adv, nn.SyncBatchNorm)


@pytest.mark.parametrize("wrong", [nn.BatchNorm1d(3), nn.BatchNorm3d(3), nn.LayerNorm(3), nn.InstanceNorm2d(3), 3])
def test_from_batchnorm_refuses_anything_else(wrong):
    got = type(wrong).__name__
    message = (
        rf"^DualBatchNorm2d\.from_batchnorm: expected a BatchNorm2d, got {got}\. convert_to_dual_bn\(model\) finds"
    )
    with pytest.raises(TypeError, match=message):
        DualBatchNorm2d.from_batchnorm(wrong)


def test_from_batchnorm_refuses_a_dual_norm():
    with pytest.raises(TypeError, match=r"expected a BatchNorm2d, got DualBatchNorm2d\. convert_to_dual_bn"):
        DualBatchNorm2d.from_batchnorm(DualBatchNorm2d(3))


def test_from_batchnorm_keeps_the_training_flag():
    assert not DualBatchNorm2d.from_batchnorm(nn.BatchNorm2d(3).eval()).training


def test_from_batchnorm_copies_no_gradient():
    norm = nn.BatchNorm2d(3)
    norm(images(2)).square().sum().backward()
    dual = DualBatchNorm2d.from_batchnorm(norm)
    assert dual.clean.weight.grad is not None
    assert dual.adv.weight.grad is None


class Owner(nn.Module):
    """Holds a norm whose hooks are methods of the owner, and counts their calls."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm2d(3)
        self.calls = []
        self.norm.register_forward_pre_hook(self.before)
        self.norm.register_forward_hook(self.after)
        self.norm.register_full_backward_pre_hook(self.backward_before)
        self.norm.register_full_backward_hook(self.backward_after)

    def before(self, module, args):
        self.calls.append("before")

    def after(self, module, args, output):
        self.calls.append("after")

    def backward_before(self, module, gradient):
        self.calls.append("backward before")

    def backward_after(self, module, gradient_in, gradient_out):
        self.calls.append("backward after")


@pytest.mark.parametrize("branch", ["clean", "adv"])
def test_hooks_that_are_methods_report_to_their_owner_from_both_branches(branch):
    owner = Owner()
    dual = DualBatchNorm2d.from_batchnorm(owner.norm)
    dual.branch = branch
    dual(images(2).requires_grad_()).sum().backward()
    assert owner.calls == ["before", "after", "backward before", "backward after"]


class Calls:
    """A hook that is an object with a count."""

    count = 0

    def __call__(self, module, args, output):
        self.count += 1


def test_a_hook_that_is_an_object_is_one_for_both_branches():
    norm, calls = nn.BatchNorm2d(3), Calls()
    norm.register_forward_hook(calls)
    dual = DualBatchNorm2d.from_batchnorm(norm)
    for branch in dual.branches:
        dual.branch = branch
        dual(torch.rand(4, 3, 2, 2))
    assert calls.count == 2


def test_a_hook_with_keywords_is_carried_over():
    norm, seen = nn.BatchNorm2d(3), []
    norm.register_forward_hook(lambda module, args, kwargs, output: seen.append(kwargs), with_kwargs=True)
    dual = DualBatchNorm2d.from_batchnorm(norm)
    dual.branch = "adv"
    dual(images(2))
    assert seen == [{}]


def test_a_new_dual_norm_is_on_the_clean_branch():
    assert (DualBatchNorm2d(3).branch, DualBatchNorm2d.from_batchnorm(nn.BatchNorm2d(3)).branch) == ("clean", "clean")


def test_active_is_the_norm_of_the_branch():
    dual = DualBatchNorm2d(3)
    assert dual.active is dual.clean
    dual.branch = "adv"
    assert dual.active is dual.adv


@pytest.mark.parametrize(
    ("branch", "error", "message"),
    [
        ("advv", ValueError, r"branch to be one of 'clean', 'adv', got 'advv'\. Choose one of the 2\."),
        ("Adv", ValueError, r"branch to be one of 'clean', 'adv', got 'Adv'\. Did you mean 'adv'\."),
        (None, TypeError, r"branch to be one of 'clean', 'adv', got NoneType\. Pass branch as a string\."),
    ],
)
def test_a_bad_branch_is_refused_and_the_old_one_kept(branch, error, message):
    dual = DualBatchNorm2d(3)
    dual.branch = "adv"
    with pytest.raises(error, match=f"^DualBatchNorm2d: expected {message}"):
        dual.branch = branch
    assert dual.branch == "adv"


def test_repr_names_the_branch():
    dual = DualBatchNorm1d(3)
    dual.branch = "adv"
    assert "branch='adv'" in repr(dual)


def test_the_branch_is_not_in_the_state_dict():
    names = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    assert list(DualBatchNorm2d(3).state_dict()) == [
        f"{branch}.{name}" for branch in ("clean", "adv") for name in names
    ]


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda dual: pickle.loads(pickle.dumps(dual))])
def test_copies_keep_the_branch(copied):
    dual = DualBatchNorm2d(3)
    dual.branch = "adv"
    assert copied(dual).branch == "adv"


def test_torchs_complaint_about_one_value_a_channel_comes_through():
    with pytest.raises(ValueError, match="Expected more than 1 value per channel when training"):
        DualBatchNorm2d(3)(torch.ones(1, 3, 1, 1))


def test_one_value_a_channel_is_fine_in_eval_mode():
    assert DualBatchNorm2d(3).eval()(torch.ones(1, 3, 1, 1)).shape == (1, 3, 1, 1)


def test_torchs_complaint_about_dimensions_comes_through():
    with pytest.raises(ValueError, match="expected 4D input"):
        DualBatchNorm2d(3)(torch.ones(2, 3))


def test_a_frozen_adversarial_branch_still_normalises():
    dual = DualBatchNorm2d(3)
    dual.adv.requires_grad_(False)
    dual.branch = "adv"
    x = images(2).requires_grad_()
    dual(x).square().sum().backward()
    assert dual.adv.weight.grad is None
    assert x.grad is not None


class Counting(nn.BatchNorm1d):
    def __init__(self, channels):
        super().__init__(channels)
        self.calls = 0
        self.register_forward_pre_hook(self.count)

    def count(self, module, args):
        self.calls += 1


def test_a_hook_that_is_a_method_of_the_norm_itself_becomes_one_of_each_branch():
    dual = DualBatchNorm1d.from_batchnorm(Counting(4))
    dual.branch = "adv"
    dual(torch.randn(3, 4))
    assert (dual.clean.calls, dual.adv.calls) == (0, 1)


class Reporter(nn.Module):
    def __init__(self, register):
        super().__init__()
        self.norm, self.calls = nn.BatchNorm1d(4), 0
        getattr(self.norm, register)(self.count)

    def count(self, *args):
        self.calls += 1


@pytest.mark.parametrize("register", ["register_state_dict_pre_hook", "_register_state_dict_hook"])
def test_state_dict_hooks_of_both_branches_report_to_their_owner(register):
    owner = Reporter(register)
    DualBatchNorm1d.from_batchnorm(owner.norm).state_dict()
    assert owner.calls == 2
