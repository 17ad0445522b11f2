"""A ResNet for ImageNet gets a stem for small images."""

import re

import pytest
import timm
import torch
import torchvision
from torch import nn

from advcontrast.models import cifar_stem, resnet18, wide_resnet34_10

TORCHVISION = ("resnet18", "resnet50", "resnext50_32x4d", "wide_resnet50_2")
TIMM = (
    "resnet18",
    "resnet26",
    "resnet18d",
    "resnet14t",
    "resnetaa34d",
    "resnetblur18",
    "resnetrs50",
    "seresnet18",
    "resnest14d",
    "test_resnet",
)
NETWORKS = {f"torchvision {name}": (torchvision.models.get_model, name, {"weights": None}) for name in TORCHVISION}
NETWORKS |= {f"timm {name}": (timm.create_model, name, {}) for name in TIMM}


def build(network, device="cpu"):
    factory, name, settings = NETWORKS[network]
    with torch.device(device):
        return factory(name, **settings)


def size_before_layer1(model, size):
    sizes = []
    model.layer1.register_forward_pre_hook(lambda _module, inputs: sizes.append(tuple(inputs[0].shape[2:])))
    device = next(model.parameters()).device
    model.eval()(torch.empty(1, 3, size, size, device=device))
    return sizes[0]


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.sample(7)
def test_first_block_sees_the_whole_resolution(network):
    assert size_before_layer1(build(network, "meta"), 32) == (8, 8)
    assert size_before_layer1(cifar_stem(build(network, "meta")), 32) == (32, 32)


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.sample(7)
def test_channels_before_the_first_block_stay(network):
    model = cifar_stem(build(network, "meta"))
    assert model(torch.empty(2, 3, 32, 32, device="meta")).shape == (2, 1000)


@pytest.mark.parametrize("network", ["torchvision resnet18", "timm resnet18d", "timm resnetrs50"])
def test_the_network_itself_is_changed_and_returned(network):
    model = build(network, "meta")
    assert cifar_stem(model) is model


@pytest.mark.parametrize("network", ["torchvision resnet18", "timm resnet18d", "timm resnetblur18"])
def test_a_second_time_changes_nothing(network):
    model = cifar_stem(build(network))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    text = repr(model)
    cifar_stem(model)
    assert repr(model) == text
    assert list(model.state_dict()) == list(before)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_only_the_weights_of_a_large_first_convolution_are_drawn_anew():
    model = torchvision.models.resnet18()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    after = cifar_stem(model).state_dict()
    assert list(after) == list(before)
    assert [name for name in after if not torch.equal(after[name], before[name])] == ["conv1.weight"]


def test_weights_of_a_deep_stem_stay():
    model = timm.create_model("resnet18d")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    after = cifar_stem(model).state_dict()
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_large_first_convolution_of_a_deep_stem_is_replaced():
    model = torchvision.models.resnet18()
    model.conv1 = nn.Sequential(nn.Conv2d(3, 8, 5, stride=2, padding=2), nn.ReLU(), nn.Conv2d(8, 64, 1))
    cifar_stem(model)
    assert repr(model.conv1[0]) == "Conv2d(3, 8, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1))"


def test_new_weights_have_variance_2_over_fan_out():
    weight = cifar_stem(torchvision.models.resnet18()).conv1.weight
    assert weight.std().item() == pytest.approx((2 / (64 * 9)) ** 0.5, rel=0.08)
    assert abs(weight.mean().item()) < 0.006


def test_bias_stays():
    model = torchvision.models.resnet18()
    model.conv1 = nn.Conv2d(3, 64, 7, stride=2, padding=3)
    bias = model.conv1.bias
    assert cifar_stem(model).conv1.bias is bias


def test_dtype_and_frozen_weights_stay():
    model = torchvision.models.resnet18().double().requires_grad_(False)
    weight = cifar_stem(model).conv1.weight
    assert (weight.dtype, weight.requires_grad) == (torch.float64, False)


def test_device_stays():
    assert cifar_stem(build("torchvision resnet18", "meta")).conv1.weight.device.type == "meta"


def test_input_channels_stay():
    model = cifar_stem(timm.create_model("resnet18", in_chans=1, num_classes=0))
    assert model(torch.rand(2, 1, 8, 8)).shape == (2, 512)


def test_evaluation_mode_stays():
    model = cifar_stem(torchvision.models.resnet18().eval())
    assert not any(module.training for module in (model, model.conv1))


def test_own_resnet_has_such_a_stem_already():
    model = resnet18(width=1)
    parts = list(model.modules())
    assert cifar_stem(model) is model
    assert list(model.modules()) == parts


@pytest.mark.parametrize(
    "model",
    [
        nn.Linear(2, 2),
        nn.Sequential(nn.Conv2d(3, 8, 7, stride=2), nn.MaxPool2d(2)),
        torchvision.models.shufflenet_v2_x0_5(),
        torchvision.models.mobilenet_v3_small(),
        wide_resnet34_10(width=1),
        nn.DataParallel(torchvision.models.resnet18()),
    ],
    ids=lambda model: type(model).__name__,
)
def test_other_networks_are_refused_and_left_alone(model):
    text = repr(model)
    with pytest.raises(ValueError, match=f"^cifar_stem: expected a ResNet with .*, got {type(model).__name__}"):
        cifar_stem(model)
    assert repr(model) == text


def test_other_types_than_modules_are_refused():
    message = "cifar_stem: expected model to be"
    with pytest.raises(TypeError, match=re.escape(message)):
        cifar_stem("resnet18")


def test_a_first_convolution_with_groups_keeps_them():
    model = torchvision.models.resnet18()
    model.conv1 = nn.Conv2d(4, 64, 7, stride=2, padding=3, groups=2, bias=False)
    assert cifar_stem(model).conv1.groups == 2
    assert model(torch.rand(2, 4, 16, 16)).shape == (2, 1000)
