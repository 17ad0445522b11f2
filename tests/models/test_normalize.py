"""Normalisation as the first layer of a network."""

import copy
import math
import re

import pytest
import torch
from torch import nn

from advcontrast.models import IMAGENET_MEAN, IMAGENET_STD, Normalize


def test_constants_are_those_of_imagenet():
    assert IMAGENET_MEAN == (0.485, 0.456, 0.406)
    assert IMAGENET_STD == (0.229, 0.224, 0.225)


def test_every_channel_gets_its_own_mean_and_std():
    x = torch.rand(2, 3, 4, 5)
    y = Normalize()(x)
    for channel, (mean, std) in enumerate(zip(IMAGENET_MEAN, IMAGENET_STD, strict=True)):
        torch.testing.assert_close(y[:, channel], (x[:, channel] - mean) / std, rtol=1e-6, atol=1e-6)


def test_imagenet_is_the_default():
    x = torch.rand(2, 3, 4, 4)
    assert torch.equal(Normalize()(x), Normalize(IMAGENET_MEAN, IMAGENET_STD)(x))


def test_state_dict_is_empty():
    assert Normalize().state_dict() == {}


def test_constants_follow_the_module_to_its_device():
    assert Normalize().to("meta")(torch.empty(1, 3, 2, 2, device="meta")).device.type == "meta"


def test_a_copy_gives_the_same_result():
    x = torch.rand(1, 3, 2, 2)
    layer = Normalize()
    assert torch.equal(copy.deepcopy(layer)(x), layer(x))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_the_dtype_of_the_images_stays(dtype):
    assert Normalize()(torch.rand(2, 3, 4, 4).to(dtype)).dtype == dtype


def test_channels_last_stays():
    x = torch.rand(2, 3, 4, 5).contiguous(memory_format=torch.channels_last)
    y = Normalize()(x)
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(y, Normalize()(x.contiguous()))


def test_autocast_leaves_the_normalisation_in_float32():
    x = torch.rand(2, 3, 4, 4)
    with torch.autocast("cpu", torch.bfloat16):
        y = Normalize()(x)
        assert nn.Conv2d(3, 2, 1)(y).dtype == torch.bfloat16
    assert torch.equal(y, Normalize()(x))


def test_gradient_is_one_over_std():
    x = torch.rand(1, 2, 1, 1, requires_grad=True)
    Normalize((0.1, 0.2), (0.25, 0.5))(x).sum().backward()
    assert x.grad.flatten().tolist() == [4.0, 2.0]


def test_repr_reads_as_the_call():
    assert repr(Normalize([0.5], [0.25])) == "Normalize(mean=(0.5,), std=(0.25,))"


@pytest.mark.parametrize(
    ("mean", "std", "error", "message"),
    [
        ((0.5,), (0.5, 0.5), ValueError, "mean and std to have"),
        ((), (), ValueError, "mean and std to have"),
        ((0.5,), (0.0,), ValueError, "each of std to be"),
        ((0.5,), (-1.0,), ValueError, "each of std to be"),
        ((math.nan,), (1.0,), ValueError, "each of mean to be"),
        (("a",), (1.0,), TypeError, "each of mean to be"),
        (0.5, (1.0,), TypeError, "mean to be"),
        ((0.5,), torch.ones(1), TypeError, "std to be"),
    ],
)
def test_wrong_settings(mean, std, error, message):
    with pytest.raises(error, match=re.escape(f"Normalize: expected {message}")):
        Normalize(mean, std)


@pytest.mark.parametrize("shape", [[2, 1, 4, 4], [3, 4, 4], [2, 4, 3, 3]])
def test_wrong_number_of_channels(shape):
    with pytest.raises(ValueError, match=re.escape(f"Normalize: expected x of shape [N, 3, H, W], got {shape}")):
        Normalize()(torch.rand(shape))


def test_bytes_are_refused():
    message = "Normalize: expected x to be"
    with pytest.raises(TypeError, match=message):
        Normalize()(torch.zeros(2, 3, 4, 4, dtype=torch.uint8))
