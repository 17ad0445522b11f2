"""The moving average of the weights."""

import copy
import io
import re

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

from advcontrast.optim.ema import EMA


def network():
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)).double()


def change(model):
    with torch.no_grad():
        for tensor in [*model.parameters(), *(b for b in model.buffers() if b.is_floating_point())]:
            tensor.add_(torch.randn_like(tensor))
        model[1].num_batches_tracked += 3


def states_equal(one, other):
    return all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))


@pytest.mark.parametrize("decay", [0.3, 0.9, 0.999])
def test_average_is_the_definition(decay):
    model = network()
    history = [copy.deepcopy(model)]
    ema = EMA(model, decay)
    for _ in range(7):
        change(model)
        ema.update(model)
        history.append(copy.deepcopy(model))
    for name, ours in ema.model.named_parameters():
        expected = decay**7 * history[0].get_parameter(name)
        for i in range(7):
            expected = expected + (1 - decay) * decay ** (6 - i) * history[i + 1].get_parameter(name)
        torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-14, check_stride=False)


def test_decay_0_copies_exactly():
    model = network()
    ema = EMA(model, 0)
    change(model)
    ema.update(model)
    assert states_equal(ema.model, model)


def test_decay_1_never_moves_a_weight():
    model = network()
    before = copy.deepcopy(model)
    ema = EMA(model, 1)
    change(model)
    ema.update(model)
    assert all(torch.equal(a, b) for a, b in zip(ema.model.parameters(), before.parameters(), strict=True))


def test_average_of_a_constant_is_that_constant():
    model = network()
    ema = EMA(model, 0.9)
    for _ in range(5):
        ema.update(model)
    assert states_equal(ema.model, model)


def test_buffers_are_copied_not_averaged():
    model = network()
    ema = EMA(model, 0.9)
    change(model)
    ema.update(model)
    assert all(torch.equal(a, b) for a, b in zip(ema.model.buffers(), model.buffers(), strict=True))


def test_parameters_that_are_no_numbers_to_average_are_copied():
    model = nn.Module()
    model.table = nn.Parameter(torch.tensor([1, 2, 3]), requires_grad=False)
    ema = EMA(model, 0.5)
    model.table += 1
    ema.update(model)
    assert ema.model.table.tolist() == [2, 3, 4]


def test_average_starts_as_a_copy_that_shares_no_memory():
    model = network()
    ema = EMA(model, 0.5)
    assert states_equal(ema.model, model)
    change(model)
    assert not states_equal(ema.model, model)


def test_average_is_in_eval_mode_and_requires_no_gradient():
    ema = EMA(network().train(), 0.5)
    assert not any(module.training for module in ema.model.modules())
    assert not any(parameter.requires_grad for parameter in ema.model.parameters())


def test_original_is_left_alone():
    model = network().train()
    before = copy.deepcopy(model)
    EMA(model, 0.5).update(model)
    assert states_equal(model, before)
    assert all(module.training for module in model.modules())
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_shared_weights_are_averaged_once():
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False))
    model[1].weight = model[0].weight
    nn.init.zeros_(model[0].weight)
    ema = EMA(model, 0.5)
    nn.init.ones_(model[0].weight)
    ema.update(model)
    assert ema.model[0].weight is ema.model[1].weight
    assert ema.model[0].weight.unique().tolist() == [0.5]


def test_updates_are_counted():
    model = network()
    ema = EMA(model, 0.5)
    for _ in range(3):
        ema.update(model)
    assert ema.updates == 3


def test_resumed_average_equals_the_uninterrupted_one():
    model = network()
    ema = EMA(model, 0.9)
    change(model)
    ema.update(model)
    file = io.BytesIO()
    torch.save(ema.state_dict(), file)
    file.seek(0)
    again = EMA(network(), 0.9)
    again.load_state_dict(torch.load(file, weights_only=True))
    change(model)
    ema.update(model)
    again.update(model)
    assert states_equal(again.model, ema.model)
    assert again.updates == ema.updates == 2


def test_repr_names_model_and_decay():
    assert repr(EMA(network(), 0.99)) == "EMA(Sequential, decay=0.99)"


@pytest.mark.parametrize(
    ("decay", "error", "got"), [(-0.1, ValueError, "-0.1"), (1.5, ValueError, "1.5"), (None, TypeError, "NoneType")]
)
def test_wrong_decay(decay, error, got):
    with pytest.raises(error, match=f"^EMA: expected decay .*, got {got}"):
        EMA(network(), decay)


def test_other_types_than_modules_are_refused():
    with pytest.raises(TypeError, match=r"EMA: expected model to be"):
        EMA({}, 0.5)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (lambda: nn.Linear(3, 1), "expected weight to be"),
        (lambda: nn.Linear(2, 1).double(), "to be torch.float32 [1"),
        (lambda: nn.Linear(2, 1, bias=False), "expected bias to be"),
        (lambda: nn.Linear(2, 1).to("meta"), "on cpu"),
    ],
    ids=["shape", "dtype", "missing", "device"],
)
def test_other_model_is_refused_before_anything_moves(other, message):
    ema = EMA(nn.Linear(2, 1), 0.5)
    before = copy.deepcopy(ema.model)
    with pytest.raises(ValueError, match=re.escape(message)):
        ema.update(other())
    assert states_equal(ema.model, before)
    assert ema.updates == 0


def test_wrapped_model_is_refused_with_the_remedy():
    remedy = "Pass the model itself, unwrapped, and create the EMA on its final device."
    with pytest.raises(ValueError, match=re.escape(remedy)):
        EMA(nn.Linear(2, 1), 0.5).update(nn.Sequential(nn.Linear(2, 1)))


@pytest.mark.parametrize(
    ("state", "error", "message"),
    [
        (None, TypeError, "state_dict to be"),
        ({"weight": torch.zeros(1)}, ValueError, "entries model and updates"),
        ({"model": 1, "updates": 1}, TypeError, "the entry model to be"),
        ({"model": nn.Linear(2, 1).state_dict(), "updates": -1}, ValueError, "the entry updates to be"),
    ],
)
def test_wrong_state_is_refused(state, error, message):
    ema = EMA(nn.Linear(2, 1), 0.5)
    before = copy.deepcopy(ema.model)
    with pytest.raises(error, match=re.escape(f"EMA: expected {message}")):
        ema.load_state_dict(state)
    assert states_equal(ema.model, before)


def test_a_model_that_cannot_be_copied_is_refused_with_the_remedy():
    model = torch.nn.Sequential(torch.nn.Linear(2, 2))
    prune.random_unstructured(model[0], "weight", 0.5)
    model(torch.ones(1, 2))
    with pytest.raises(RuntimeError, match=r"^EMA: expected a model that copy.deepcopy can copy, .*prune.remove on "):
        EMA(model, 0.9)
    prune.remove(model[0], "weight")
    EMA(model, 0.9)
