"""Dual norms under DDP and SyncBatchNorm."""

import pytest
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, update_bn

from advcontrast import bn_branch, convert_to_dual_bn, export_branch
from advcontrast.surgery import convert_sync_batchnorm


def network():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.LazyLinear(2), nn.BatchNorm1d(2))


def built():
    model = network()
    model(torch.rand(2, 3, 4, 4))
    return model


def test_sync_batch_norms_before_and_after_conversion_have_the_same_keys():
    before = convert_to_dual_bn(convert_sync_batchnorm(built()))
    after = convert_sync_batchnorm(convert_to_dual_bn(built()))
    assert [name for name, _ in before.named_modules()] == [name for name, _ in after.named_modules()]
    assert list(before.state_dict()) == list(after.state_dict())


@pytest.mark.parametrize("first", ["sync", "dual"])
def test_both_branches_become_sync_batch_norms(first):
    steps = [convert_sync_batchnorm, convert_to_dual_bn]
    model = built()
    for step in steps if first == "sync" else reversed(steps):
        model = step(model)
    assert {type(getattr(model[at], branch)) for at in (1, 4) for branch in ("clean", "adv")} == {nn.SyncBatchNorm}


def switch_through_ddp():
    model = convert_to_dual_bn(built())
    wrapped = DistributedDataParallel(model)
    with bn_branch(wrapped, "adv"):
        return [model[1].branch, model[4].branch]


@pytest.mark.distributed
def test_the_branch_is_seen_through_ddp(ranks):
    assert ranks.run(switch_through_ddp) == [["adv", "adv"]] * 2


def convert_wrapped():
    convert_to_dual_bn(DistributedDataParallel(built()))


def export_wrapped():
    export_branch(DistributedDataParallel(convert_to_dual_bn(built())), "adv")


@pytest.mark.distributed
@pytest.mark.parametrize(
    ("function", "owner", "verb"),
    [(convert_wrapped, "convert_to_dual_bn", "Convert"), (export_wrapped, "export_branch", "Export")],
)
def test_surgery_on_ddp_is_refused(ranks, function, owner, verb):
    message = (
        f"TypeError: {owner}: expected an unwrapped module, got DistributedDataParallel. "
        f"{verb} model.module, then wrap it again."
    )
    assert [error.splitlines()[0] for error in ranks.errors(function)] == [message] * 2


class BothBranches(nn.Module):
    """One forward that uses both branches, as a learner's does."""

    def __init__(self, split):
        super().__init__()
        torch.manual_seed(0)
        self.model = convert_to_dual_bn(built(), split=split)

    def forward(self, x):
        outputs = []
        for branch in ("clean", "adv"):
            with bn_branch(self.model, branch):
                outputs.append(self.model(x))
        return torch.stack(outputs).exp().sum()


def train_both_branches(split):
    model = BothBranches(split)
    wrapped = DistributedDataParallel(model)
    optimizer = torch.optim.SGD(wrapped.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        wrapped(torch.rand(4, 3, 4, 4)).backward()
        optimizer.step()
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


@pytest.mark.distributed
@pytest.mark.parametrize("split", ["both", "affine", "stats"])
def test_two_branches_in_one_wrapped_forward_keep_the_ranks_equal(ranks, split):
    first, second = ranks.run(train_both_branches, split)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_update_bn_on_the_dual_network_wipes_the_idle_branch():
    model = convert_to_dual_bn(nn.Sequential(nn.BatchNorm2d(3)))
    with bn_branch(model, "adv"):
        model(torch.rand(4, 3, 2, 2))
    update_bn([torch.rand(4, 3, 2, 2)], model)
    assert torch.equal(model[0].adv.running_mean, torch.zeros(3))


def test_update_bn_on_an_exported_branch_leaves_both_branches_alone():
    model = convert_to_dual_bn(nn.Sequential(nn.BatchNorm2d(3)))
    for branch in ("clean", "adv"):
        with bn_branch(model, branch):
            model(torch.rand(4, 3, 2, 2))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    exported = export_branch(model, "adv")
    update_bn([torch.rand(4, 3, 2, 2)], exported)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not torch.equal(exported[0].running_mean, model[0].adv.running_mean)


def test_an_averaged_model_switches_its_own_branch():
    model = convert_to_dual_bn(nn.Sequential(nn.BatchNorm2d(3)))
    averaged = AveragedModel(model)
    with bn_branch(averaged, "adv"):
        assert (averaged.module[0].branch, model[0].branch) == ("adv", "clean")
