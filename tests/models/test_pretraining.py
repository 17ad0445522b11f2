"""The networks of this package pretrain with dual norms."""

import pytest
import torch
from torch import nn

from advcontrast import ACLTrainer, PGDAttack, convert_to_dual_bn
from advcontrast.models import acl_head, backbone, simclr_head
from advcontrast.norm import DualBatchNorm


@pytest.mark.parametrize("head", [acl_head, simclr_head])
@pytest.mark.parametrize("name", ["resnet18", "resnet34", "resnet50", "wide_resnet34_10"])
def test_one_step_reaches_every_parameter_and_both_branches(name, head):
    encoder, features = backbone(name, width=2)
    model = convert_to_dual_bn(nn.Sequential(encoder, head(features, out=8)))
    trainer = ACLTrainer(model, attack=PGDAttack(steps=1), mode="DS")
    trainer(*torch.rand(2, 4, 3, 16, 16)).loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    norms = [module for module in model.modules() if isinstance(module, DualBatchNorm)]
    assert {int(norm.clean.num_batches_tracked) for norm in norms} == {1}
    assert {int(norm.adv.num_batches_tracked) for norm in norms} == {1}


@pytest.mark.parametrize("name", ["resnet18", "wide_resnet34_10"])
def test_conversion_changes_no_output(name):
    encoder, _ = backbone(name, width=2)
    x = torch.rand(2, 3, 16, 16)
    expected = encoder.eval()(x)
    assert torch.equal(convert_to_dual_bn(encoder)(x), expected)
