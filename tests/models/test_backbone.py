"""Encoders by name."""

import re
import sys

import pytest
import timm
import torch
import torchvision
from torch import nn

from advcontrast import models
from advcontrast.models import Normalize, ResNet, WideResNet, backbone

OWN = ("resnet18", "resnet34", "resnet50", "wide_resnet34_10")
# With the side of the images that they take.
TORCHVISION = {"mobilenet_v3_small": 32, "shufflenet_v2_x0_5": 32, "regnet_y_400mf": 32, "googlenet": 64}
TIMM = {"resnet26d": 16, "mobilenetv3_small_050": 32, "ghostnet_050": 32, "test_vit": 160, "test_byobnet": 32}
FOREIGN = {f"torchvision/{name}": size for name, size in TORCHVISION.items()}
FOREIGN |= {f"timm/{name}": size for name, size in TIMM.items()}


@pytest.mark.parametrize("name", OWN)
def test_own_networks_yield_as_many_features_as_they_say(name):
    encoder, features = backbone(name, width=2)
    assert type(encoder) is (WideResNet if name.startswith("wide") else ResNet)
    assert encoder(torch.rand(2, 3, 16, 16)).shape == (2, features)


@pytest.mark.parametrize("name", OWN)
def test_own_networks_are_the_ones_of_that_name(name):
    encoder, _ = backbone(name, width=3)
    own = getattr(models, name)(0, width=3)
    assert {k: v.shape for k, v in encoder.state_dict().items()} == {k: v.shape for k, v in own.state_dict().items()}


def test_usual_width_by_default():
    assert backbone("resnet18")[1] == 512


@pytest.mark.parametrize("name", FOREIGN)
@pytest.mark.sample(5)
def test_foreign_networks_yield_as_many_features_as_they_say(name):
    encoder, features = backbone(name)
    x = torch.rand(2, 3, FOREIGN[name], FOREIGN[name])
    with torch.no_grad():
        assert encoder(x).shape == (2, features)
        assert encoder.eval()(x).shape == (2, features)


@pytest.mark.parametrize("name", ["torchvision/mobilenet_v3_small", "timm/ghostnet_050"])
def test_foreign_networks_are_normalised_first(name):
    encoder, _ = backbone(name)
    x = torch.rand(2, 3, 32, 32)
    assert repr(encoder[0]) == repr(Normalize())
    encoder.eval()
    assert torch.equal(encoder(x), encoder[1](Normalize()(x)))


@pytest.mark.parametrize("name", ["torchvision/alexnet", "torchvision/googlenet", "timm/mobilenetv3_small_050"])
def test_no_classifier_for_imagenet_is_left(name):
    encoder, _ = backbone(name)
    assert not [module for module in encoder.modules() if getattr(module, "out_features", 0) == 1000]


def test_own_names_win_over_torchvision():
    assert isinstance(backbone("resnet18", width=1)[0], ResNet)


def test_torchvision_wins_over_timm():
    assert isinstance(backbone("densenet121")[0][1], torchvision.models.DenseNet)


def test_prefixes_say_which_one():
    assert isinstance(backbone("torchvision/resnet18")[0][1], torchvision.models.ResNet)
    assert isinstance(backbone("timm/resnet18")[0][1], timm.models.ResNet)


def test_names_that_only_timm_knows_need_no_prefix():
    assert isinstance(backbone("resnet26d")[0][1], timm.models.ResNet)


@pytest.mark.parametrize("name", ["torchvision/resnet18", "timm/resnet18"])
@pytest.mark.parametrize(("small", "kernel"), [(True, (3, 3)), (False, (7, 7))])
def test_resnets_get_a_small_stem_unless_the_images_are_large(name, small, kernel):
    encoder, features = backbone(name, small_images=small)
    assert encoder[1].conv1.kernel_size == kernel
    assert features == 512


@pytest.mark.parametrize("name", ["torchvision/mobilenet_v3_small", "timm/mobilenetv3_small_050"])
def test_other_networks_do_not_depend_on_the_size_of_the_images(name):
    large, small = (repr(backbone(name, small_images=choice)[0]) for choice in (False, True))
    assert large == small


@pytest.mark.parametrize("name", ["torchvision/shufflenet_v2_x0_5", "timm/mobilenetv3_small_050"])
def test_finding_the_width_draws_nothing_and_moves_no_statistics(name):
    torch.manual_seed(1)
    encoder, _ = backbone(name)
    state = torch.get_rng_state()
    torch.manual_seed(1)
    library, plain = name.split("/")
    if library == "timm":
        theirs = timm.create_model(plain, num_classes=0)
    else:
        theirs = torchvision.models.get_model(plain, weights=None)
    assert torch.equal(torch.get_rng_state(), state)
    ours, theirs = encoder[1].state_dict(), theirs.state_dict()
    assert all(torch.equal(tensor, theirs[key]) for key, tensor in ours.items())


def test_encoders_are_in_training_mode_on_the_cpu_and_trainable():
    encoder, _ = backbone("timm/ghostnet_050")
    assert all(module.training for module in encoder.modules())
    assert all(p.requires_grad and p.device.type == "cpu" for p in encoder.parameters())


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnet81", "the name of a network of advcontrast or torchvision or timm"),
        ("torchvision/resnet81", "the name of a network of torchvision"),
        ("timm/resnet2d", "the name of a network of timm"),
        ("$", "the name of a network of advcontrast or torchvision or timm"),
        ("keras/resnet", "the name of a network of advcontrast or torchvision or timm"),
        ("torchvision/fcn_resnet50", "the name of a network of torchvision"),
        ("resnet34", "small_images=True for resnet34"),
        ("wide_resnet34_10", "small_images=True for wide_resnet34_10"),
        ("squeezenet1_1", "squeezenet1_1 to end"),
    ],
)
def test_names_that_do_not_work(name, message):
    with pytest.raises(ValueError, match=re.escape(f"backbone: expected {message}")):
        backbone(name, small_images=False)


def test_networks_without_flat_features_are_refused(monkeypatch):
    monkeypatch.setattr(timm, "create_model", lambda name, num_classes: nn.Conv2d(3, 4, 32, stride=32))
    message = "backbone: expected test_vit to yield"
    with pytest.raises(ValueError, match=message):
        backbone("test_vit")


def test_width_of_a_foreign_network_is_refused():
    message = "backbone: expected no width for torchvision/resnet18"
    with pytest.raises(ValueError, match=message):
        backbone("torchvision/resnet18", width=32)


def test_wrong_kinds_are_refused():
    message = "backbone: expected name to be"
    with pytest.raises(TypeError, match=re.escape(message)):
        backbone(18)
    message = "backbone: expected small_images to be"
    with pytest.raises(TypeError, match=re.escape(message)):
        backbone("resnet18", small_images=1)


@pytest.fixture
def without_timm(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)


@pytest.mark.usefixtures("without_timm")
def test_missing_timm_is_named():
    message = "backbone: expected timm to be"
    with pytest.raises(ImportError, match=re.escape(message)):
        backbone("timm/resnet18")


@pytest.mark.usefixtures("without_timm")
def test_unknown_name_says_that_timm_was_not_searched():
    message = "timm, which is not installed, was not searched."
    with pytest.raises(ValueError, match=re.escape(message)):
        backbone("$")


@pytest.mark.usefixtures("without_timm")
def test_torchvision_works_without_timm():
    assert backbone("mobilenet_v3_small")[1] == 1024
