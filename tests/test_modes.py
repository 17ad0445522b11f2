"""A borrowed model comes back with exactly the modes that it had."""

import pytest
import torch
from torch import nn

from advcontrast._modes import eval_mode, frozen


def network():
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Sequential(nn.Dropout(), nn.Linear(4, 4)))
    model[1].eval().requires_grad_(False)
    return model


def modes(model):
    return [module.training for module in model.modules()]


def flags(model):
    return [parameter.requires_grad for parameter in model.parameters()]


def test_eval_mode_reaches_every_module():
    model = network()
    with eval_mode(model):
        assert not any(modes(model))


def test_eval_mode_does_not_wake_a_norm_that_was_frozen():
    model = network()
    before = modes(model)
    with eval_mode(model):
        pass
    assert modes(model) == before
    assert not model[1].training


def test_eval_mode_keeps_a_training_part_of_an_evaluating_model():
    model = network().eval()
    model[2].train()
    before = modes(model)
    with eval_mode(model):
        pass
    assert modes(model) == before


def test_eval_mode_ends_with_an_exception():
    model = network()
    before = modes(model)
    with pytest.raises(KeyError), eval_mode(model):
        raise KeyError
    assert modes(model) == before


def test_eval_modes_nest():
    model = network()
    before = modes(model)
    with eval_mode(model):
        with eval_mode(model):
            pass
        assert not any(modes(model))
    assert modes(model) == before


class Caching(nn.Linear):
    """Keeps for evaluation what it computed from its weight, as LeViT keeps its attention biases."""

    def __init__(self):
        super().__init__(2, 2, bias=False)
        self.kept = None
        self.told = []

    def train(self, mode=True):
        self.told.append(mode)
        if mode:
            self.kept = None
        return super().train(mode)

    def forward(self, x):
        weight = 2 * self.weight
        if not self.training:
            weight = self.kept = weight if self.kept is None else self.kept
        return x @ weight


def test_eval_mode_tells_a_module_with_a_train_method_of_its_own():
    model = nn.Sequential(Caching(), nn.Linear(2, 2))
    with eval_mode(model):
        assert model[0].told == [False]
    assert model[0].told == [False, True]


def test_what_a_module_keeps_for_evaluation_is_forgotten_after_eval_mode():
    model, x = nn.Sequential(Caching()), torch.eye(2)
    with torch.no_grad():
        for value in (1.0, 3.0):
            nn.init.constant_(model[0].weight, value)
            with eval_mode(model):
                assert torch.equal(model(x), torch.full((2, 2), 2 * value))


def test_a_train_method_does_not_wake_a_norm_that_was_frozen():
    model = Caching()
    model.norm = nn.BatchNorm1d(2).eval()
    with eval_mode(model):
        pass
    assert model.training
    assert not model.norm.training


def test_eval_mode_moves_no_statistics():
    model = network()
    model[1].train()
    with eval_mode(model):
        model(torch.randn(5, 4))
    assert torch.equal(model[1].running_mean, torch.zeros(4))


def test_frozen_reaches_every_parameter():
    model = network()
    with frozen(model):
        assert not any(flags(model))


def test_frozen_does_not_thaw_what_was_frozen_before():
    model = network()
    before = flags(model)
    with frozen(model):
        pass
    assert flags(model) == before == [True, True, False, False, True, True]


def test_frozen_ends_with_an_exception():
    model = network()
    before = flags(model)
    with pytest.raises(KeyError), frozen(model):
        raise KeyError
    assert flags(model) == before


def test_frozen_takes_a_shared_parameter():
    model = network()
    model[2][1].weight = model[0].weight
    before = flags(model)
    with frozen(model):
        assert not any(flags(model))
    assert flags(model) == before


def test_frozen_still_lets_gradients_reach_the_input():
    model = network()
    x = torch.randn(5, 4, requires_grad=True)
    with frozen(model):
        model(x).sum().backward()
    assert x.grad is not None
    assert all(parameter.grad is None for parameter in model.parameters())


def test_frozen_keeps_gradients_that_are_there():
    model = network()
    model(torch.randn(5, 4)).sum().backward()
    gradient = model[0].weight.grad.clone()
    with frozen(model):
        pass
    assert torch.equal(model[0].weight.grad, gradient)
