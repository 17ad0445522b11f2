"""The memory format in which to train."""

import pytest
import torch
from torch import nn

from advcontrast import ACLTrainer, PGDAttack
from advcontrast._memory_format import choose_memory_format
from advcontrast.attacks import under_attack
from advcontrast.strategies import StandardTrainer
from tests.processes import run

CRASH = """
import torch
from torch import nn
from advcontrast import fit
from advcontrast.augment import CropFlip
from advcontrast.strategies import StandardTrainer

torch.set_num_threads(2)
model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 16, 1, stride=2), nn.AdaptiveAvgPool2d(1), nn.Flatten())
images, labels = torch.zeros(126, 3, 32, 32, dtype=torch.uint8), torch.zeros(126, dtype=torch.int64)
fit(StandardTrainer(model, augment=CropFlip()), (images, labels), epochs=4, batch_size=63)
print("lived")
"""


def narrow(channels=8, kernel=1, stride=2):
    return nn.Sequential(nn.Conv2d(channels, 16, kernel, stride), nn.Conv2d(16, 8, 3))


def is_channels_last(module):
    return [p.is_contiguous(memory_format=torch.channels_last) for p in module.parameters() if p.dim() == 4][-1]


@pytest.mark.parametrize(
    "module",
    [narrow(channels=16), narrow(kernel=3), narrow(stride=1), nn.Conv2d(3, 8, 3)],
    ids=["16 channels", "3x3", "no stride", "one convolution"],
)
def test_weights_become_channels_last(module):
    assert choose_memory_format(module) is torch.channels_last
    assert is_channels_last(module)


@pytest.mark.parametrize("stride", [2, (1, 2), 3])
@pytest.mark.parametrize("channels", [3, 15])
def test_where_that_crashes_they_become_contiguous(channels, stride):
    module = narrow(channels, stride=stride).to(memory_format=torch.channels_last)
    assert choose_memory_format(module) is torch.contiguous_format
    assert all(parameter.is_contiguous() for parameter in module.parameters())


def test_on_other_devices_it_does_not_crash():
    assert choose_memory_format(narrow().to("meta")) is torch.channels_last


def test_weights_of_five_dimensions_stay_contiguous():
    module = nn.Sequential(nn.Conv3d(2, 2, 3), nn.Conv2d(2, 2, 3))
    assert choose_memory_format(module) is torch.contiguous_format
    assert not is_channels_last(module)


def trained(trainer, layout, images=torch.contiguous_format):
    """Run a step of a trainer on a narrow network, without the backward pass that may crash."""
    model = nn.Sequential(*narrow(3), nn.AdaptiveAvgPool2d(1), nn.Flatten()).to(memory_format=layout)
    x = torch.rand(3, 3, 8, 8).contiguous(memory_format=images)
    if trainer is ACLTrainer:
        ACLTrainer(model, mode="S2S")(x, x)
    elif trainer is StandardTrainer:
        StandardTrainer(model)(x, torch.zeros(3, dtype=torch.int64))
    else:
        with under_attack(model):
            PGDAttack(steps=1)(lambda x: model(x).sum(), x)


@pytest.mark.parametrize("trainer", [ACLTrainer, StandardTrainer, PGDAttack])
def test_a_network_that_crashes_is_named(trainer):
    with pytest.warns(UserWarning, match="Sequential: expected contiguous memory.* got channels last and '0'"):
        trained(trainer, torch.channels_last)


@pytest.mark.parametrize("trainer", [ACLTrainer, StandardTrainer])
def test_channels_last_images_are_enough_for_a_crash(trainer):
    with pytest.warns(UserWarning, match="expected contiguous memory"):
        trained(trainer, torch.contiguous_format, torch.channels_last)


@pytest.mark.parametrize("mode", ["S2S", "A2A"])
def test_a_lazy_convolution_is_trained(mode):
    model = nn.Sequential(nn.LazyConv2d(16, 1, stride=2), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    x = torch.rand(3, 3, 8, 8)
    ACLTrainer(model, mode=mode, attack=PGDAttack(steps=1))(x, x).loss.backward()
    assert model[0].weight.grad.shape == (16, 3, 1, 1)


@pytest.mark.parametrize("trainer", [ACLTrainer, StandardTrainer, PGDAttack])
def test_contiguous_networks_are_not_warned_of(trainer):
    trained(trainer, torch.contiguous_format)


def test_a_narrow_network_is_trained_on_odd_batches():
    done = run("-c", CRASH)
    assert (done.returncode, done.stdout) == (0, "lived\n"), done.stderr
