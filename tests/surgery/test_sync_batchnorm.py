"""Synchronised batch norms keep what subclasses add."""

import copy
import pickle

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.distributed.nn import all_gather

from advcontrast import bn_branch, convert_to_dual_bn, export_branch
from advcontrast.norm import DualNorm
from advcontrast.surgery import convert_sync_batchnorm, sync_batchnorm


class Activated(nn.BatchNorm1d):
    """Adds an activation to the forward of its base."""

    def forward(self, x):
        return super().forward(x).tanh()


class Fused(nn.BatchNorm1d):
    """Calls the function itself, as timm's ``BatchNormAct2d`` does."""

    def __init__(self, features):
        super().__init__(features)
        self.drop = nn.Dropout(0.5)
        self.act = nn.Sigmoid()

    def forward(self, x):
        buffers = self.running_mean, self.running_var
        x = F.batch_norm(x, *buffers, self.weight, bias=self.bias, training=self.training, momentum=self.momentum)
        return self.act(self.drop(x))


class Named(nn.BatchNorm1d):
    """A subclass without a forward of its own."""

    remark = "kept"


class ByHand(nn.BatchNorm1d):
    """Computes its statistics itself."""

    def forward(self, x):
        return (x - x.mean(0)) / x.std(0)


def network(kind):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), kind(4), nn.Linear(4, 2))


def images():
    return torch.randn(8, 3, generator=torch.Generator().manual_seed(0))


ORDERS = pytest.mark.parametrize(
    "convert",
    [
        lambda model: convert_sync_batchnorm(convert_to_dual_bn(model)),
        lambda model: convert_to_dual_bn(convert_sync_batchnorm(model)),
    ],
    ids=["dual then sync", "sync then dual"],
)
KINDS = pytest.mark.parametrize("kind", [nn.BatchNorm1d, Activated, Fused, Named, ByHand])


@KINDS
@ORDERS
@pytest.mark.parametrize("branch", ["clean", "adv"])
def test_outputs_in_eval_mode_stay_bit_identical(kind, convert, branch):
    plain = network(kind)
    plain(images())
    model = convert(copy.deepcopy(plain)).eval()
    expected = plain.eval()(images())
    with bn_branch(model, branch):
        assert torch.equal(model(images()), expected)
    assert torch.equal(export_branch(model, branch)(images()), expected)


@KINDS
def test_outputs_and_statistics_of_one_process_stay_the_same_in_train_mode(kind):
    plain = network(kind)
    model = convert_sync_batchnorm(copy.deepcopy(plain))
    torch.manual_seed(1)
    expected = plain(images())
    torch.manual_seed(1)
    assert torch.equal(model(images()), expected)
    assert all(torch.equal(value, plain.state_dict()[name]) for name, value in model.state_dict().items())


def test_timms_norm_keeps_its_activation():
    layers = pytest.importorskip("timm.layers")
    plain = nn.Sequential(layers.BatchNormAct2d(3, drop_layer=nn.Dropout, act_layer=nn.SiLU, inplace=False)).eval()
    x = torch.randn(2, 3, 2, 2)
    model = convert_to_dual_bn(convert_sync_batchnorm(copy.deepcopy(plain)))
    assert torch.equal(model(x), plain(x))


def test_norms_of_every_class_are_synchronised_in_their_place():
    model = nn.Sequential(
        *(kind(4) for kind in (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)), Activated(4), Named(4)
    )
    modules, keys = list(model.modules()), list(model.state_dict())
    assert convert_sync_batchnorm(model) is model
    assert list(model.modules()) == modules
    assert list(model.state_dict()) == keys
    assert [type(module) for module in model[:3]] == [nn.SyncBatchNorm] * 3
    assert [isinstance(module, sync_batchnorm.SynchronisedNorm) for module in model] == [False] * 3 + [True] * 2
    assert isinstance(model[3], Activated)
    assert model[4].remark == "kept"


def test_a_second_call_changes_nothing():
    model = convert_sync_batchnorm(nn.Sequential(nn.BatchNorm1d(4), Activated(4), nn.SyncBatchNorm(4)))
    kinds = [type(module) for module in model]
    assert [type(module) for module in convert_sync_batchnorm(model)] == kinds


def test_hooks_and_frozen_parameters_stay():
    model, seen = network(Activated), []
    model[1].register_forward_hook(lambda *_: seen.append(1))
    model[1].requires_grad_(False)
    convert_sync_batchnorm(model)(images())
    assert seen == [1]
    assert not model[1].weight.requires_grad


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copies_are_synchronised_too(copied):
    model = convert_sync_batchnorm(network(Activated)).eval()
    twin = copied(model)
    assert type(twin[1]) is type(model[1])
    assert torch.equal(twin(images()), model(images()))


def test_a_forward_set_on_a_norm_is_refused_before_anything_changes():
    model = nn.Sequential(nn.BatchNorm1d(4), nn.BatchNorm1d(4))
    model[1].forward = lambda x: x
    message = r"^convert_sync_batchnorm: expected forward methods of classes"
    with pytest.raises(ValueError, match=message):
        convert_sync_batchnorm(model)
    assert type(model[0]) is nn.BatchNorm1d


def on_cpus(arguments, group, world):
    """Normalise with the batch of all processes on a CPU, for which PyTorch has no kernel."""
    batch = torch.cat(all_gather(arguments["input"], group))
    mean, var = batch.mean(0), batch.var(0, unbiased=False)
    with torch.no_grad():
        arguments["running_mean"].lerp_(mean, arguments["momentum"])
        arguments["running_var"].lerp_(batch.var(0), arguments["momentum"])
    return (arguments["input"] - mean) / (var + arguments["eps"]).sqrt() * arguments["weight"] + arguments["bias"]


def trained_on_a_rank(kind):
    before = sync_batchnorm._normalise
    sync_batchnorm._normalise = on_cpus
    try:
        model = convert_sync_batchnorm(convert_to_dual_bn(network(kind).double()))
        x = images().double().chunk(2)[dist.get_rank()].requires_grad_()
        with bn_branch(model, "adv"):
            y = model(x)
        y.exp().sum().backward()
        return y.detach(), x.grad, model[1].adv.running_mean, model[1].adv.running_var
    finally:
        sync_batchnorm._normalise = before


class Still(Fused):
    """Disable dropout, whose masks differ between processes."""

    def __init__(self, features):
        super().__init__(features)
        self.drop = nn.Identity()


@pytest.mark.distributed
@pytest.mark.parametrize("kind", [Activated, Still, Named])
def test_outputs_gradients_and_statistics_are_those_of_the_batch_of_all_processes(ranks, kind):
    model = convert_to_dual_bn(network(kind).double())
    x = images().double().requires_grad_()
    with bn_branch(model, "adv"):
        y = model(x)
    y.exp().sum().backward()
    answers = ranks.run(trained_on_a_rank, kind)
    outputs, gradients, means, variances = zip(*answers, strict=True)
    torch.testing.assert_close(torch.cat(outputs), y.detach())
    torch.testing.assert_close(torch.cat(gradients), x.grad)
    for mean, variance in zip(means, variances, strict=True):
        torch.testing.assert_close(mean, model[1].adv.running_mean)
        torch.testing.assert_close(variance, model[1].adv.running_var)


def forward_on_a_rank(kind):
    convert_sync_batchnorm(network(kind))(images())


@pytest.mark.distributed
def test_statistics_computed_by_hand_are_refused_with_several_processes(ranks):
    for text in ranks.errors(forward_on_a_rank, ByHand):
        assert (
            "RuntimeError: SyncByHand: expected its forward method to call torch.nn.functional.batch_norm once"
        ) in text


@pytest.mark.distributed
def test_a_cpu_is_refused_with_several_processes(ranks):
    for text in ranks.errors(forward_on_a_rank, Activated):
        assert "ValueError: SyncBatchNorm: expected input on an accelerator" in text


@pytest.mark.parametrize("kind", [Activated, Fused])
def test_a_dual_norm_that_lost_its_activation_raises(kind):
    model = nn.SyncBatchNorm.convert_sync_batchnorm(convert_to_dual_bn(network(kind)))
    message = r"^DualBatchNorm1d: expected the norm of 'clean' to keep"
    with pytest.raises(RuntimeError, match=message):
        model(images())
    with pytest.raises(RuntimeError, match=message):
        export_branch(model, "clean")


def test_it_raises_also_when_lightning_has_reverted_the_norm():
    plugins = pytest.importorskip("lightning.pytorch.plugins.layer_sync")
    model = plugins.TorchSyncBatchNorm().apply(convert_to_dual_bn(network(Activated)))
    with pytest.raises(RuntimeError, match="to keep its own forward method, got a plain _BatchNormXd"):
        plugins.TorchSyncBatchNorm().revert(model)(images())


@pytest.mark.parametrize("kind", [nn.BatchNorm1d, Named])
def test_pytorchs_converter_is_accepted_where_nothing_is_lost(kind):
    model = nn.SyncBatchNorm.convert_sync_batchnorm(convert_to_dual_bn(network(kind))).eval()
    model(images())
    assert isinstance(model[1], DualNorm)


def test_a_norm_that_this_library_synchronised_raises_after_pytorchs_converter():
    model = convert_to_dual_bn(convert_sync_batchnorm(network(Activated)))
    with pytest.raises(RuntimeError, match="to keep its own forward method"):
        nn.SyncBatchNorm.convert_sync_batchnorm(model)(images())
