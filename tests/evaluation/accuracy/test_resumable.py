"""What tells one tensor, and one model, from another."""

import pytest
import torch
from torch import nn

from advcontrast import bn_branch, convert_to_dual_bn
from advcontrast.evaluation.accuracy._resumable import digest, digest_of_model

X = torch.linspace(0, 1, 24).view(2, 3, 2, 2)


@pytest.mark.parametrize(
    "other",
    [
        X.clone(),
        X.to(memory_format=torch.channels_last),
        X.clone().requires_grad_(),
        X.expand(2, 3, 2, 2),
        X.flip(0).flip(0),
    ],
)
def test_equal_tensors_have_equal_digests(other):
    assert digest([other]) == digest([X])


@pytest.mark.parametrize(
    "other", [X.double(), X.view(3, 2, 2, 2), X.flip(0), X.nextafter(X + 1), X[:1], X.view(torch.int32), X[:0]]
)
def test_other_tensors_have_other_digests(other):
    assert digest([other]) != digest([X])


@pytest.mark.parametrize("value", [torch.tensor(3.0), torch.tensor([True]), torch.ones(2).bfloat16(), torch.zeros(0)])
def test_tensors_of_every_kind_can_be_digested(value):
    assert digest([value]) == digest([value.clone()])


def test_what_is_in_which_tensor_counts():
    assert digest([X[:1], X[1:]]) != digest([X])
    assert digest([torch.ones(2), torch.ones(0)]) != digest([torch.ones(0), torch.ones(2)])


def test_addresses_in_memory_do_not_count():
    class Anything:
        __repr__ = object.__repr__

    one, two = Anything(), Anything()
    assert repr(one) != repr(two)
    assert digest([one]) == digest([two])


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 2), nn.BatchNorm2d(4), nn.ReLU())


def test_equal_models_have_equal_digests():
    assert digest_of_model(network()) == digest_of_model(network())


def test_modes_and_flags_do_not_count():
    model = network().eval().requires_grad_(False)
    assert digest_of_model(model) == digest_of_model(network())


def perturbed(name):
    model = network()
    with torch.no_grad():
        model.get_buffer(name).add_(1) if "running" in name else model.get_parameter(name).add_(1e-6)
    return model


@pytest.mark.parametrize("name", ["0.weight", "0.bias", "1.weight", "1.running_mean"])
def test_every_weight_and_statistic_counts(name):
    assert digest_of_model(perturbed(name)) != digest_of_model(network())


def test_modules_without_weights_count():
    other = network()
    other[2] = nn.Sigmoid()
    assert digest_of_model(other) != digest_of_model(network())


def test_the_branch_counts():
    model = convert_to_dual_bn(network())
    with bn_branch(model, "clean"):
        clean = digest_of_model(model)
    with bn_branch(model, "adv"):
        assert digest_of_model(model) != clean


def test_state_that_is_no_tensor_counts():
    class Extra(nn.Linear):
        extra = 1

        def get_extra_state(self):
            return {"extra": self.extra}

    torch.manual_seed(0)
    model = Extra(2, 2)
    before = digest_of_model(model)
    model.extra = 2
    assert digest_of_model(model) != before
