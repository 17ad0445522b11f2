"""The ResNets and the WideResNet for small images."""

import math
import re

import pytest
import torch
import torchvision
from torch import nn
from torch.nn import functional as F

from advcontrast import convert_to_dual_bn, load_published
from advcontrast.models import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    Bottleneck,
    Normalize,
    ResNet,
    resnet18,
    resnet34,
    resnet50,
    wide_resnet34_10,
)

RESNETS = (resnet18, resnet34, resnet50)
NETWORKS = (*RESNETS, wide_resnet34_10)
OWNERS = {resnet18: "ResNet", wide_resnet34_10: "WideResNet"}
WIDTH = 4


def on_meta(network, *args, **settings):
    with torch.device("meta"):
        return network(*args, **settings)


def millions(model):
    return round(sum(parameter.numel() for parameter in model.parameters()) / 1e6, 1)


def shapes(model):
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize("network", RESNETS)
def test_state_dict_is_that_of_torchvision_but_for_the_first_convolution(network):
    theirs = shapes(on_meta(getattr(torchvision.models, network.__name__), num_classes=10))
    ours = shapes(on_meta(network))
    assert list(ours) == list(theirs)
    assert [name for name in ours if ours[name] != theirs[name]] == ["conv1.weight"]
    assert ours["conv1.weight"] == (64, 3, 3, 3)


@pytest.mark.parametrize("network", RESNETS)
def test_outputs_are_those_of_torchvision_with_the_same_stem(network):
    theirs = getattr(torchvision.models, network.__name__)(num_classes=10)
    theirs.conv1, theirs.maxpool = nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.Identity()
    ours = network(normalize=None)
    ours.load_state_dict(theirs.state_dict())
    x = torch.rand(2, 3, 16, 16)
    with torch.no_grad():
        assert torch.equal(ours(x), theirs(x))
        assert torch.equal(ours.eval()(x), theirs.eval()(x))


@pytest.mark.parametrize(
    ("network", "parameters", "features"),
    [(resnet18, 11.2, 512), (resnet34, 21.3, 512), (resnet50, 23.5, 2048), (wide_resnet34_10, 46.2, 640)],
)
def test_sizes_are_the_documented_ones(network, parameters, features):
    model = on_meta(network)
    assert millions(model) == parameters
    assert model.num_features == features


def test_encoder_of_the_paper_has_11_168_832_parameters():
    assert sum(parameter.numel() for parameter in on_meta(resnet18, num_classes=0).parameters()) == 11_168_832


@pytest.mark.parametrize("network", NETWORKS)
def test_ten_logits_by_default(network):
    assert network(width=WIDTH)(torch.rand(2, 3, 8, 8)).shape == (2, 10)


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("width", [1, 3])
def test_without_classifier_the_features_come_out(network, width):
    model = network(num_classes=0, width=width)
    features = model(torch.rand(2, 3, 8, 8))
    assert features.shape == (2, model.num_features)
    assert not [name for name in model.state_dict() if name.startswith("fc")]


@pytest.mark.parametrize("network", NETWORKS)
def test_classifier_gets_the_features(network):
    model = network(num_classes=7, width=WIDTH).eval()
    x = torch.rand(2, 3, 8, 8)
    logits, classifier = model(x), model.fc
    model.fc = nn.Identity()
    assert torch.equal(classifier(model(x)), logits)


@pytest.mark.parametrize("network", NETWORKS)
def test_resolution_falls_to_a_quarter_or_an_eighth(network):
    model = network(width=1).eval()
    sizes = []
    for name, module in model.named_children():
        if name.startswith(("conv1", "layer", "block")):
            module.register_forward_hook(lambda _module, _inputs, output: sizes.append(output.shape[-1]))
    model(torch.rand(1, 3, 32, 32))
    assert sizes == ([32, 32, 16, 8] if network is wide_resnet34_10 else [32, 32, 16, 8, 4])


@pytest.mark.parametrize("network", NETWORKS)
def test_images_are_normalised_first(network):
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.6, 0.7)
    model = network(width=WIDTH, normalize=(mean, std)).eval()
    plain = network(width=WIDTH, normalize=None).eval()
    plain.load_state_dict(model.state_dict())
    x = torch.rand(2, 3, 8, 8)
    assert torch.equal(model(x), plain(Normalize(mean, std)(x)))


@pytest.mark.parametrize("network", NETWORKS)
def test_normalisation_is_that_of_imagenet_by_default(network):
    assert repr(network(width=1).normalize) == repr(Normalize(IMAGENET_MEAN, IMAGENET_STD))


def test_normalisation_of_a_custom_resnet_is_that_of_imagenet_by_default():
    assert repr(ResNet(Bottleneck, (1, 1, 1, 1), width=1).normalize) == repr(Normalize())


@pytest.mark.parametrize("network", NETWORKS)
def test_normalisation_does_not_change_the_state_dict(network):
    assert list(network(width=1).state_dict()) == list(network(width=1, normalize=None).state_dict())


@pytest.mark.parametrize("network", NETWORKS)
def test_gray_images(network):
    model = network(width=1, in_channels=1, normalize=((0.5,), (0.25,)))
    assert model(torch.rand(2, 1, 8, 8)).shape == (2, 10)


@pytest.mark.parametrize("network", NETWORKS)
def test_convolutions_are_drawn_with_variance_2_over_fan_out(network):
    for module in network(width=16).modules():
        if isinstance(module, nn.Conv2d) and module.weight.numel() > 2000:
            fan_out = module.out_channels * module.kernel_size[0] ** 2
            deviation = 4 / math.sqrt(2 * module.weight.numel())  # four standard errors
            assert module.weight.std().item() * math.sqrt(fan_out / 2) == pytest.approx(1, abs=deviation)


@pytest.mark.parametrize("network", NETWORKS)
def test_norms_start_as_identity(network):
    for module in network(width=2).modules():
        if isinstance(module, nn.BatchNorm2d):
            assert torch.equal(module.weight, torch.ones_like(module.weight))
            assert torch.equal(module.bias, torch.zeros_like(module.bias))
            assert (module.eps, module.momentum) == (1e-5, 0.1)


@pytest.mark.parametrize("network", NETWORKS)
def test_channels_last_and_float64(network):
    model = network(width=16).double().eval().to(memory_format=torch.channels_last)
    x = torch.rand(2, 3, 8, 8, dtype=torch.float64)
    y = model(x.contiguous(memory_format=torch.channels_last))
    assert y.dtype == torch.float64
    torch.testing.assert_close(y, model(x), rtol=1e-9, atol=1e-9)


def test_bottleneck_strides_in_its_3x3_convolution():
    block = Bottleneck(8, 4, 2)
    assert [conv.stride for conv in (block.conv1, block.conv2, block.conv3)] == [(1, 1), (2, 2), (1, 1)]


def test_any_depths_make_a_resnet():
    model = ResNet(Bottleneck, (1, 1, 2, 1), 5, width=2)
    assert [len(stage) for stage in (model.layer1, model.layer2, model.layer3, model.layer4)] == [1, 1, 2, 1]
    assert model(torch.rand(2, 3, 8, 8)).shape == (2, 5)


def _published(name):
    name = name.replace(".clean.", ".bn_list.0.").replace(".adv.", ".bn_list.1.")
    return name.replace("downsample.0.", "downsample.conv.").replace("downsample.1.", "downsample.bn.")


def test_published_layout_loads():
    model = convert_to_dual_bn(resnet18(num_classes=0, width=2))
    published = {f"module.{_published(name)}": tensor + 1 for name, tensor in model.state_dict().items()}
    load_published(model, published, layout="acl", ignore="normalize.")
    assert all(map(torch.equal, model.state_dict().values(), published.values()))


def slow_wide_resnet(state, x):
    """Follow the formula of the pre-activation network in evaluation mode with nothing but a state dict."""

    def rectified(x, name):
        mean, var, weight, bias = (
            state[f"{name}.{part}"] for part in ("running_mean", "running_var", "weight", "bias")
        )
        return F.relu(F.batch_norm(x, mean, var, weight, bias))

    x = F.conv2d(x, state["conv1.weight"], padding=1)
    for stage, stride in ((1, 1), (2, 2), (3, 2)):
        for block in range(5):
            name = f"block{stage}.layer.{block}"
            step = stride if block == 0 else 1
            active = rectified(x, f"{name}.bn1")
            y = rectified(F.conv2d(active, state[f"{name}.conv1.weight"], stride=step, padding=1), f"{name}.bn2")
            y = F.conv2d(y, state[f"{name}.conv2.weight"], padding=1)
            shortcut = state.get(f"{name}.convShortcut.weight")
            x = y + (x if shortcut is None else F.conv2d(active, shortcut, stride=step))
    pooled = rectified(x, "bn1").mean((2, 3))
    return F.linear(pooled, state["fc.weight"], state["fc.bias"])


@pytest.mark.parametrize("width", [3, 16])
def test_wide_resnet_is_its_formula(width):
    model = wide_resnet34_10(width=width, normalize=None).double().eval()
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d):
            nn.init.uniform_(norm.weight, 0.5, 1.5)
            nn.init.normal_(norm.bias)
            nn.init.normal_(norm.running_mean)
    nn.init.normal_(model.fc.bias)
    x = torch.rand(2, 3, 8, 8, dtype=torch.float64)
    torch.testing.assert_close(model(x), slow_wide_resnet(model.state_dict(), x), rtol=1e-10, atol=1e-10)


def test_wide_resnet_has_34_convolutions_with_its_three_shortcuts():
    names = [name for name, module in on_meta(wide_resnet34_10).named_modules() if isinstance(module, nn.Conv2d)]
    assert len(names) == 34
    assert [name for name in names if "Shortcut" in name] == [f"block{i}.layer.0.convShortcut" for i in (1, 2, 3)]


def test_classifier_of_the_wide_resnet_starts_without_bias():
    assert torch.equal(wide_resnet34_10(width=1).fc.bias, torch.zeros(10))


@pytest.mark.parametrize("network", OWNERS)
@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"num_classes": -1}, ValueError, "num_classes to be"),
        ({"num_classes": True}, TypeError, "num_classes to be"),
        ({"width": 0}, ValueError, "width to be"),
        ({"width": 0.5}, TypeError, "width to be"),
        ({"in_channels": 0}, ValueError, "in_channels to be"),
        ({"in_channels": 1}, ValueError, "normalize for in_channels=1"),
        ({"normalize": 1}, TypeError, "normalize to be"),
        ({"normalize": ((1,),)}, ValueError, "normalize to have"),
    ],
)
def test_wrong_settings(network, settings, error, message):
    with pytest.raises(error, match=re.escape(f"{OWNERS[network]}: expected {message}")):
        network(**settings)
