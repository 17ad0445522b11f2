"""Adversarial contrastive learning with norms of other kinds, other splits, and more than two branches."""

import re

import pytest
import torch
from torch import nn

from advcontrast import ACLTrainer, PGDAttack, convert_to_dual_bn

MODES = ["S2S", "A2A", "A2S", "DS"]


def network(norm=nn.BatchNorm2d):
    torch.manual_seed(0)
    middle = norm(8) if norm is nn.BatchNorm2d else nn.GroupNorm(2, 8)
    return nn.Sequential(nn.Conv2d(3, 8, 3), middle, nn.ReLU(), nn.Flatten(), nn.Linear(32, 6))


def views():
    generator = torch.Generator().manual_seed(1)
    return torch.rand(4, 3, 4, 4, generator=generator), torch.rand(4, 3, 4, 4, generator=generator)


def trainer(model, mode):
    return ACLTrainer(model, attack=PGDAttack(steps=1), mode=mode)


def with_gradients(model):
    return {name for name, parameter in model.named_parameters() if parameter.grad is not None and name[0] == "1"}


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_trains_the_branches_of_a_group_norm(mode):
    model = convert_to_dual_bn(network(nn.GroupNorm), norms=nn.GroupNorm)
    trainer(model, mode)(*views()).loss.backward()
    used = {"S2S": {"clean"}, "A2A": {"adv"}}.get(mode, {"clean", "adv"})
    assert with_gradients(model) == {f"1.{branch}.{name}" for branch in used for name in ("weight", "bias")}


@pytest.mark.parametrize("mode", ["S2S", "A2A"])
def test_a_network_without_batch_norms_trains_without_conversion(mode):
    model = network(nn.GroupNorm)
    trainer(model, mode)(*views()).loss.backward()
    assert with_gradients(model) == {"1.weight", "1.bias"}


def test_a2s_of_a_network_without_dual_norms_warns_and_trains():
    model = network(nn.GroupNorm)
    with pytest.warns(UserWarning, match="expected dual batch norms for mode 'A2S', got none"):
        acl = trainer(model, "A2S")
    acl(*views()).loss.backward()
    assert with_gradients(model) == {"1.weight", "1.bias"}


@pytest.mark.parametrize("split", ["both", "affine", "stats"])
@pytest.mark.parametrize("mode", MODES)
def test_ddp_waits_for_no_parameter_that_gets_no_gradient(mode, split):
    model = convert_to_dual_bn(network(), split=split, branches=("clean", "adv", "spare"))
    acl = trainer(model, mode)
    acl(*views()).loss.backward()
    idle = {name for name, parameter in acl.named_parameters(remove_duplicate=False) if parameter.grad is None}
    assert set(acl._ddp_params_and_buffers_to_ignore) == idle


def test_shared_statistics_see_both_streams():
    model = convert_to_dual_bn(network(), split="affine")
    trainer(model, "DS")(*views())
    assert model[1].clean.num_batches_tracked == 2


def test_a_third_branch_is_left_alone():
    model = convert_to_dual_bn(network(), branches=("clean", "adv", "spare"))
    trainer(model, "DS")(*views())
    assert [getattr(model[1], name).num_batches_tracked.item() for name in model[1].branches] == [1, 1, 0]


@pytest.mark.parametrize("mode", MODES)
def test_a_model_without_the_branches_of_the_paper_is_refused(mode):
    model = convert_to_dual_bn(network(), branches=("weak", "strong"))
    message = (
        "ACLTrainer: expected dual norms to have the branches 'clean' and 'adv', got ('weak', 'strong'). "
        "Convert with these among branches=."
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        trainer(model, mode)
