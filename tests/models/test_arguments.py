"""Blocks and networks say what they do not take, before any statistic has moved."""

import re

import pytest
import torch
from torch import nn

from advcontrast.models import BasicBlock, Bottleneck, PreActivationBlock, ResNet, WideResNet, resnet18

BLOCKS = [BasicBlock, Bottleneck, PreActivationBlock]


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("name", ["channels", "width", "stride"])
@pytest.mark.parametrize(("value", "error"), [(0, ValueError), (2.0, TypeError), (None, TypeError)])
def test_settings_of_a_block_are_positive_ints(block, name, value, error):
    start = re.escape(f"{block.__name__}: expected {name} to be an int >= 1, got ")
    with pytest.raises(error, match=f"^{start}"):
        block(**({"channels": 4, "width": 4, "stride": 1} | {name: value}))


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("shape", [(2, 3, 4, 4), (4, 4, 4), (2, 4, 4, 0)], ids=str)
def test_a_block_refuses_maps_of_another_shape(block, shape):
    message = f"expected x of shape [N, 4, H, W] with at least one pixel, got {list(shape)}. "
    with pytest.raises(ValueError, match=f"^{block.__name__}: {re.escape(message)}"):
        block(4, 4, 1)(torch.rand(shape))


@pytest.mark.parametrize("network", [lambda: ResNet(BasicBlock, (1, 1, 1, 1), width=2), lambda: WideResNet(width=2)])
def test_a_network_refuses_another_dtype_and_stays_as_it_was(network):
    model = network()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    message = f"{type(model).__name__}: expected x in the dtype of the weights, torch.float32, got torch.float64. "
    with pytest.raises(TypeError, match=f"^{re.escape(message)}"):
        model(torch.rand(2, 3, 8, 8).double())
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_autocast_may_convert():
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert BasicBlock(4, 4, 1)(torch.rand(2, 4, 4, 4).bfloat16()).shape == (2, 4, 4, 4)


def test_a_layer_that_says_nothing_of_its_channels_may_take_the_place_of_a_convolution():
    block = BasicBlock(4, 4, 1)
    block.conv1 = nn.Sequential(block.conv1)
    assert block(torch.rand(2, 4, 4, 4)).shape == (2, 4, 4, 4)


@pytest.mark.parametrize(
    "block", [None, "BasicBlock", nn.Module, BasicBlock(2, 2, 1)], ids=lambda value: str(value)[:9]
)
def test_a_resnet_is_made_of_its_blocks(block):
    message = f"ResNet: expected block to be BasicBlock or Bottleneck, got {block!r}. "
    with pytest.raises(TypeError, match=f"^{re.escape(message)}"):
        ResNet(block, (1, 1, 1, 1))


@pytest.mark.parametrize("depths", [None, (1, 1, 1), 4], ids=str)
def test_a_resnet_has_four_stages(depths):
    message = f"ResNet: expected depths to be a tuple of four numbers, got {depths!r}. "
    with pytest.raises(TypeError, match=f"^{re.escape(message)}"):
        ResNet(BasicBlock, depths)


def test_every_stage_has_a_block():
    with pytest.raises(ValueError, match=re.escape("ResNet: expected each of depths to be")):
        ResNet(BasicBlock, (1, 0, 1, 1))


def test_a_network_without_values_runs_where_nothing_autocasts():
    with torch.device("meta"):
        assert resnet18(0, width=4)(torch.empty(2, 3, 16, 16)).shape == (2, 32)
