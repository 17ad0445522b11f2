"""Networks of torchvision and timm convert with the same outputs, to the bit."""

import copy

import pytest
import timm
import torch
import torchvision
from torch.nn.modules.batchnorm import _BatchNorm

from advcontrast import bn_branch, convert_to_dual_bn, export_branch
from advcontrast.norm import DualBatchNorm

TORCHVISION = (
    "resnet18",
    "mobilenet_v3_small",
    "densenet121",
    "shufflenet_v2_x0_5",
    "regnet_y_400mf",
    "efficientnet_b0",
)
TIMM = ("resnet18", "resnetv2_18", "mobilenetv3_small_050", "levit_128s", "dla46_c", "test_byobnet")
NETWORKS = {f"torchvision {name}": (torchvision.models.get_model, name, {"weights": None}) for name in TORCHVISION}
NETWORKS |= {f"timm {name}": (timm.create_model, name, {}) for name in TIMM}
NETWORKS["timm levit_128s"][2]["img_size"] = 64


def build(network):
    factory, name, settings = NETWORKS[network]
    torch.manual_seed(0)
    model = factory(name, **settings)
    generator = torch.Generator().manual_seed(1)
    for norm in model.modules():
        if isinstance(norm, _BatchNorm):
            torch.nn.init.uniform_(norm.weight, 0.5, 1.5, generator=generator)
            torch.nn.init.normal_(norm.running_mean, 0, 0.1, generator=generator)
    return model


@torch.no_grad()
def output(model, training):
    """Return what a seeded forward pass yields; running statistics move in training mode."""
    x = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(2))
    torch.manual_seed(3)
    y = model.train(training)(x)
    return torch.stack(y) if isinstance(y, tuple) else y


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.sample(6)
def test_both_branches_give_the_outputs_and_statistics_of_the_plain_network(network):
    plain = build(network)
    dual = convert_to_dual_bn(copy.deepcopy(plain))
    keys = list(plain.state_dict())
    expected = [output(plain, False), output(plain, True), *plain.state_dict().values()]
    assert len(list(filter(lambda m: isinstance(m, DualBatchNorm), dual.modules()))) > 5
    for branch in ("clean", "adv"):
        with bn_branch(dual, branch):
            outputs = [output(dual, False), output(dual, True)]
        exported = export_branch(dual, branch).state_dict()
        assert list(exported) == keys
        assert all(map(torch.equal, [*outputs, *exported.values()], expected)), branch
