"""Lending a network to an attack."""

import pytest
import torch
from torch import nn

from advcontrast.attacks import under_attack


def network():
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Dropout())
    model[1].eval()
    model[0].bias.requires_grad_(False)
    return model


def flags(model):
    return [m.training for m in model.modules()], [p.requires_grad for p in model.parameters()]


def test_inside_everything_is_in_eval_mode_and_frozen():
    model = network()
    with under_attack(model):
        modes, wanted = flags(model)
    assert not any(modes)
    assert not any(wanted)


def test_afterwards_every_module_and_parameter_is_as_it_was():
    model = network()
    before = flags(model)
    with under_attack(model):
        pass
    assert flags(model) == before


def test_so_it_is_after_an_error():
    model = network()
    before = flags(model)
    with pytest.raises(KeyError), under_attack(model):
        raise KeyError
    assert flags(model) == before


def test_running_statistics_do_not_move():
    model = network().train()
    before = model[1].running_mean.clone()
    with under_attack(model):
        model(torch.rand(4, 2))
    assert torch.equal(model[1].running_mean, before)


class Counting(nn.Module):
    """A layer that counts its images in eval mode too, in the same tensor and in a new one."""

    def __init__(self):
        super().__init__()
        self.register_buffer("same", torch.zeros(()))
        self.register_buffer("new", torch.zeros(()))

    def forward(self, x):
        self.same += len(x)
        self.new = self.new + len(x)
        return x


def test_buffers_that_move_in_eval_mode_are_restored():
    model = Counting()
    same, new = model.same, model.new
    with under_attack(model):
        model(torch.rand(4, 2))
    assert model.same is same
    assert model.new is new
    assert same == new == 0


def test_other_types_than_modules_are_refused():
    with pytest.raises(TypeError, match="under_attack: expected model to be"), under_attack(flags):
        pass
