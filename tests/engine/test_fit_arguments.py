"""Arguments that make no sense, and learners and evaluations that return something else."""

import math
import re

import numpy as np
import pytest
import torch
from torch import nn

from advcontrast.engine import fit
from advcontrast.optim import EMA
from tests.engine.learners import (
    Separable,
    images,
    labelled,
    network,
    same,
    train,
    weights,
)


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        ((images(8), torch.arange(7)), ValueError, "data of one length, at least 2"),
        (images(0), ValueError, "data of one length, at least 2"),
        (images(1), ValueError, "data of one length, at least 2"),
        ([], ValueError, "data of one length, at least 2"),
        (torch.tensor(3), ValueError, "data of one length, at least 2"),
        (np.zeros((4, 3, 8, 8)), TypeError, "data to be tensors"),
        ((images(4), [0, 1, 2, 3]), TypeError, "data[1] to be a tensor"),
        ("images", TypeError, "data to be tensors"),
        (None, TypeError, "data to be tensors"),
        (7, TypeError, "data to be tensors"),
    ],
)
def test_wrong_data(data, error, message):
    learner = Separable()
    with pytest.raises(error, match=f"^{re.escape('fit: expected ' + message)}"):
        fit(learner, data, epochs=1)
    assert learner.seen == []


@pytest.mark.parametrize(
    ("settings", "error", "argument"),
    [
        ({"batch_size": 1}, ValueError, "batch_size"),
        ({"batch_size": 8.0}, TypeError, "batch_size"),
        ({"epochs": 0}, ValueError, "epochs"),
        ({"epochs": True}, TypeError, "epochs"),
        ({"accumulate": 0}, ValueError, "accumulate"),
        ({"seed": -1}, ValueError, "seed"),
        ({"seed": 0.5}, TypeError, "seed"),
        ({"amp": "fp8"}, ValueError, "amp"),
        ({"amp": "BF16"}, ValueError, "amp .* Did you mean 'bf16'"),
        ({"amp": True}, TypeError, "amp"),
        ({"compile": 1}, TypeError, "compile"),
        ({"tensorboard": "logs"}, TypeError, "tensorboard"),
        ({"progress": "yes"}, TypeError, "progress"),
        ({"optimizer": "SGD"}, TypeError, "optimizer"),
        ({"ema": 0.999}, TypeError, "ema"),
        ({"select": 1}, TypeError, "select"),
        ({"schedule": "cosine"}, TypeError, "schedule"),
        ({"schedule": 0.0}, ValueError, "schedule .* 1.0 keeps the learning rate"),
        ({"evaluate": {}}, TypeError, "evaluate"),
        ({"folder": -1}, TypeError, "folder"),
        ({"folder": ""}, ValueError, "folder"),
        ({"save_every": 5}, ValueError, "a folder"),
        ({"tensorboard": True}, ValueError, "a folder"),
        ({"save_every": 0}, ValueError, "save_every"),
        ({"log_every": 0}, ValueError, "log_every"),
        ({"log_every": 2.0}, TypeError, "log_every"),
        ({"after_step": 1}, TypeError, "after_step"),
    ],
)
def test_wrong_argument(settings, error, argument):
    learner = Separable()
    before = weights(learner)
    with pytest.raises(error, match=f"^fit: expected {argument}"):
        train(learner, **settings)
    assert learner.seen == []
    assert same(weights(learner), before)
    assert not learner.model[0].weight.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("learner", [nn.Identity(), Separable().requires_grad_(False)])
def test_learner_without_parameters_to_train_is_refused(learner):
    with pytest.raises(ValueError, match=r"^fit: expected a learner with parameters to train"):
        fit(learner, images(), epochs=1)


def test_lazy_learner_is_refused():
    with pytest.raises(ValueError, match=r"^fit: expected a learner whose weights have shapes, got the lazy 0.weight"):
        fit(nn.Sequential(nn.LazyLinear(2)), images(), epochs=1)


def test_learner_that_is_no_module_is_refused():
    with pytest.raises(TypeError, match=r"^fit: expected model to be an nn.Module"):
        fit(lambda x: x.sum(), images(), epochs=1)


@pytest.mark.parametrize("settings", [{"ema": "ema"}, {"compile": True}])
def test_learner_without_a_model_is_refused_before_a_step_where_one_is_needed(settings):
    class Bare(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(3))

        def forward(self, images):
            return (self.weight * images.double().mean((0, 2, 3)).float()).mean(), {}

    learner = Bare()
    assert len(train(learner, images())) == 2
    before = weights(learner)
    settings = {"ema": EMA(learner, 0.9)} if "ema" in settings else settings
    with pytest.raises(ValueError, match=r"^fit: expected learner\.model"):
        train(learner, images(), **settings)
    assert same(weights(learner), before)


@pytest.mark.parametrize("length", [10, 21, 23, 40])
def test_groups_of_another_length_are_refused(length):
    learner = Separable()
    with pytest.raises(ValueError, match=r"^fit: expected groups of shape "):
        train(learner, groups=torch.arange(length) % 2)
    assert learner.seen == []


@pytest.mark.parametrize("groups", [torch.zeros(22), [0] * 22, torch.zeros(22, 1, dtype=torch.long)])
def test_groups_of_a_wrong_kind_are_refused(groups):
    learner = Separable()
    with pytest.raises((TypeError, ValueError), match=r"^\w+: expected groups "):
        train(learner, groups=groups)
    assert learner.seen == []


@pytest.mark.parametrize(("rate", "error"), [(None, TypeError), (math.nan, ValueError), (-0.1, ValueError)])
def test_schedule_that_returns_no_rate_is_named_before_a_step(rate, error):
    learner = Separable()
    with pytest.raises(error, match=r"^fit: expected the value of schedule "):
        train(learner, schedule=lambda step: rate)
    assert learner.seen == []


def test_metric_to_select_by_that_nobody_reports():
    with pytest.raises(ValueError, match=r"^fit: expected a metric 'score'"):
        train(Separable(), select="score", evaluate=lambda epoch: {"robust": 0.5})


@pytest.mark.parametrize("returned", [None, 0.5, [0.5], {"score": None}, {"score": "high"}, {"score": torch.ones(2)}])
def test_evaluation_that_returns_something_else_is_named(returned):
    with pytest.raises((TypeError, ValueError), match=r"^fit: expected evaluate to return "):
        train(Separable(), evaluate=lambda epoch: returned)


def test_metric_to_select_by_may_be_missing_later():
    learner, kept = Separable(), []

    def score(epoch):
        kept.append(weights(learner))
        return {"score": 1.0} if epoch == 1 else {}

    train(learner, evaluate=score, select="score")
    assert same(weights(learner), kept[0])


def test_evaluation_may_return_tensors():
    history = train(Separable(), evaluate=lambda epoch: {"score": torch.tensor(0.25)})
    assert [row["score"] for row in history] == [0.25, 0.25]
    assert type(history[0]["score"]) is float


@pytest.mark.parametrize(
    "change",
    [
        lambda loss, terms: loss,
        lambda loss, terms: None,
        lambda loss, terms: (loss, terms, terms),
        lambda loss, terms: (loss, None),
        lambda loss, terms: (loss, {"accuracy": 0.5}),
        lambda loss, terms: (loss.item(), terms),
        lambda loss, terms: (loss.repeat(3), terms),
    ],
    ids=["loss alone", "nothing", "three", "no terms", "numbers", "number", "vector"],
)
def test_learner_that_returns_something_else_is_named(change):
    class Other(Separable):
        def forward(self, *batch):
            return change(*super().forward(*batch))

    learner = Other()
    before = weights(learner)
    with pytest.raises((TypeError, ValueError), match=r"^fit: expected the learner to return "):
        train(learner)
    assert same(weights(learner), before)


def test_nan_metric_is_never_the_best():
    learner, kept = Separable(), []

    def score(epoch):
        kept.append(weights(learner))
        return {"score": math.nan if epoch == 1 else 1.0}

    train(learner, evaluate=score, select="score")
    assert same(weights(learner), kept[1])


def test_an_optimizer_of_another_network_is_refused():
    learner = Separable()
    message = "fit: expected an optimizer of the parameters of the learner"
    with pytest.raises(ValueError, match=f"^{message}"):
        train(learner, optimizer=torch.optim.SGD(Separable().parameters(), lr=0.1))
    learner.model[0].requires_grad_(False)
    with pytest.raises(ValueError, match=f"^{message}"):
        train(learner, optimizer=torch.optim.SGD(learner.model[0].parameters(), lr=0.1))
    assert learner.seen == []


def test_an_optimizer_of_a_module_beside_the_learner_is_refused_until_the_learner_holds_it():
    learner, beside = Separable(), nn.Linear(3, 3)
    optimizer = torch.optim.SGD([*learner.parameters(), *beside.parameters()], lr=0.1)
    message = "fit: expected an optimizer of the parameters of the learner alone"
    with pytest.raises(ValueError, match=f"^{message}"):
        train(learner, optimizer=optimizer)
    learner.beside = beside
    train(learner, optimizer=optimizer)


def test_an_optimizer_that_needs_a_closure_is_refused():
    learner = Separable()
    message = "fit: expected an optimizer that needs no closure"
    with pytest.raises(TypeError, match=f"^{message}"):
        train(learner, optimizer=torch.optim.LBFGS(learner.parameters()))
    assert learner.seen == []


@pytest.mark.parametrize("kind", ["floats", "bytes", "labelled"])
def test_a_plain_network_is_refused_with_the_remedy_and_its_buffers_are_as_before(kind):
    model = network(nn.BatchNorm2d)
    before = weights(model)
    data = {"floats": images() / 255, "bytes": images(), "labelled": labelled()}[kind]
    with pytest.raises(TypeError, match=r"^fit: expected .* wrap a network in one, as ACLTrainer\(network\) does\.$"):
        fit(model, data, epochs=1)
    assert same(weights(model), before)


def test_a_list_of_batches_is_refused_with_the_forms_of_data():
    message = r"^fit: expected data\[0\] to be a tensor, got list\. Pass a tensor \[N, C, H, W\] or \(images, labels\)"
    with pytest.raises(TypeError, match=message):
        fit(Separable(), [[images(), labelled()[1]]], epochs=1)


def test_an_optimizer_that_lacks_parameters_is_warned_about():
    learner = Separable()
    optimizer = torch.optim.SGD(learner.model[-1].parameters(), lr=0.1)
    others = [name for name, _ in learner.named_parameters()][:-2]
    message = rf"^fit: expected an optimizer .* {len(others)} of them: {re.escape(', '.join(others[:3]))}, "
    with pytest.warns(UserWarning, match=message) as caught:
        fit(learner, labelled(), epochs=1, optimizer=optimizer)
    assert caught[0].filename == __file__


def test_parameters_without_gradients_need_no_optimizer():
    learner = Separable()
    learner.model[:-1].requires_grad_(False)
    fit(learner, labelled(), epochs=1, optimizer=torch.optim.SGD(learner.model[-1].parameters(), lr=0.1))
