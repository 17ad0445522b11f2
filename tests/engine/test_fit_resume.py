"""A run that is interrupted anywhere and resumed ends like one that is not: to the bit."""

import random
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch

from advcontrast.optim import EMA, LARS
from tests.engine.learners import (
    Halving,
    Interrupted,
    Noisy,
    Separable,
    acl,
    adam,
    images,
    labelled,
    last_checkpoint,
    last_step,
    outcome,
    same,
    scramble,
    sgd,
    train,
    weights,
)

STEPS = 6


@pytest.fixture(autouse=True)
def _fast_disk(monkeypatch):
    """Nothing here is about the loss of power."""
    monkeypatch.setattr("os.fsync", lambda descriptor: None)


@dataclass
class Case:
    """Arguments to start a run with: always objects of its own, as in a new process."""

    learner: Any
    optimizer: Any = sgd
    data: Any = labelled
    ema: bool = False
    settings: Any = field(default_factory=dict)

    def run(self, folder, *, stop=None, save_every=None):
        learner = self.learner()
        optimizer = self.optimizer(learner)
        ema = EMA(learner.model, decay=0.9) if self.ema else None
        settings = {"optimizer": optimizer, "ema": ema, "save_every": save_every, **self.settings}
        history = train(learner, self.data(), schedule=Halving(stop), folder=folder, **settings)
        return outcome(learner, history, optimizer, ema)


def lars(learner):
    return LARS(learner.parameters(), lr=5.0)


def noisy_score(epoch):
    return {"score": random.random() + float(torch.rand(())), "luck": float(np.random.rand())}


CASES = {
    "S2S": Case(lambda: acl("S2S"), data=images),
    "A2A": Case(lambda: acl("A2A"), data=images),
    "A2S": Case(lambda: acl("A2S"), data=images),
    "DS": Case(lambda: acl("DS"), lars, images, ema=True),
    "adam": Case(Noisy, adam, ema=True),
    "lars": Case(Noisy, lars),
    "fp16": Case(Noisy, adam, settings={"amp": "fp16"}),
    "bf16": Case(Noisy, settings={"amp": "bf16"}),
    "accumulate": Case(lambda: Separable(torch.float32), settings={"accumulate": 2}),
    "groups": Case(Noisy, settings={"groups": torch.arange(22) % 4 // 3}),
    "evaluate": Case(Noisy, settings={"evaluate": noisy_score}),
    "select": Case(Noisy, adam, settings={"evaluate": noisy_score, "select": "score"}),
    "select the first": Case(Noisy, settings={"evaluate": lambda epoch: {"score": -epoch}, "select": "score"}),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.sample(5)
def test_resumed_after_any_step_equals_uninterrupted(tmp_path, name):
    scramble(0)
    expected = CASES[name].run(tmp_path / "whole")
    for stop in range(STEPS):
        folder = tmp_path / str(stop)
        scramble(0)
        with pytest.raises(Interrupted):
            CASES[name].run(folder, stop=stop, save_every=max(stop, 1))
        scramble(0 if stop == 0 else 100 + stop)  # before the first step there is nothing to resume
        resumed = CASES[name].run(folder)
        assert {key for key in expected if not same(expected[key], resumed[key])} == set(), f"after step {stop}"
        assert same(last_checkpoint(tmp_path / "whole"), last_checkpoint(folder)), f"after step {stop}"


def test_resumed_again_and_again_equals_uninterrupted(tmp_path):
    scramble(0)
    expected = CASES["DS"].run(None)
    scramble(0)
    for stop in range(1, STEPS):
        with pytest.raises(Interrupted):
            CASES["DS"].run(tmp_path, stop=stop, save_every=1)
        scramble(stop)
    assert same(CASES["DS"].run(tmp_path), expected)


def test_resuming_loses_no_more_than_the_steps_since_the_last_save(tmp_path):
    learner, again = Separable(), Separable()
    with pytest.raises(Interrupted):
        train(learner, schedule=Halving(5), folder=tmp_path, save_every=4)
    train(again, folder=tmp_path)
    assert again.seen == train_and_see()[4:]


def test_resuming_between_epochs_starts_with_the_next(tmp_path):
    again = Separable()
    with pytest.raises(Interrupted):
        train(Separable(), schedule=Halving(3), folder=tmp_path)
    train(again, folder=tmp_path)
    assert again.seen == train_and_see()[3:]


def train_and_see():
    learner = Separable()
    train(learner)
    return learner.seen


def test_resumed_with_what_the_run_left_in_memory(tmp_path):
    expected, learner = Separable(), Separable()
    optimizer = sgd(learner)
    train(expected)
    with pytest.raises(Interrupted):
        train(learner, optimizer=optimizer, schedule=Halving(4), folder=tmp_path, save_every=2)
    train(learner, optimizer=optimizer, folder=tmp_path)
    assert same(weights(learner), weights(expected))


def test_rate_after_resuming_is_that_of_the_step(tmp_path):
    rates = []

    class Watched(Separable):
        def forward(self, *batch):
            rates.append(optimizer.param_groups[0]["lr"])
            return super().forward(*batch)

    for stop in (4, None):
        learner = Watched()
        optimizer = sgd(learner, lr=0.3)
        try:
            train(learner, optimizer=optimizer, schedule=Halving(stop), folder=tmp_path, save_every=1)
        except Interrupted:
            assert stop == 4
    assert rates == [0.3 * 0.5 ** (step / 4) for step in range(STEPS)]


def test_rates_of_several_groups_after_resuming(tmp_path):
    def two_groups(learner):
        parts = [
            {"params": [*learner.model[:4].parameters()]},
            {"params": [*learner.model[4:].parameters()], "lr": 0.5},
        ]
        return torch.optim.SGD(parts, lr=0.1)

    with pytest.raises(Interrupted):
        Case(Separable, two_groups).run(tmp_path, stop=4, save_every=4)
    scramble(0)
    optimizer = Case(Separable, two_groups).run(tmp_path)["optimizer"]
    assert [group["lr"] for group in optimizer["param_groups"]] == [0.1, 0.5]
    saved = last_checkpoint(tmp_path)[1]["optimizer"]
    assert [group["lr"] for group in saved["param_groups"]] == [rate * 0.5 ** (5 / 4) for rate in (0.1, 0.5)]


def test_finished_run_returns_its_history_without_a_step(tmp_path):
    history = train(Separable(), folder=tmp_path)
    learner = Separable()
    again = train(learner, folder=tmp_path, evaluate=lambda epoch: pytest.fail("evaluated"))
    assert again == history
    assert learner.seen == []


def test_finished_run_leaves_its_weights_in_a_new_learner(tmp_path):
    first, again = Noisy(), Noisy()
    for learner in (first, again):
        train(learner, folder=tmp_path)
    assert same(weights(again), weights(first))


def test_error_in_an_evaluation_reaches_the_caller_and_costs_no_more_than_the_epoch(tmp_path):
    learner = Separable()
    with pytest.raises(ZeroDivisionError):
        train(learner, evaluate=lambda epoch: {"score": 1 / (2 - epoch)}, folder=tmp_path, save_every=2)
    assert last_step(tmp_path) == 4


def test_out_of_memory_reaches_the_caller_and_leaves_a_good_checkpoint(tmp_path):
    def run_out(*_):
        if last_step(tmp_path) == 4:
            raise torch.OutOfMemoryError("out of memory")

    learner = acl()
    learner.register_forward_pre_hook(run_out)
    with pytest.raises(torch.OutOfMemoryError):
        train(learner, images(), folder=tmp_path, save_every=1)
    again = acl()
    train(again, images(), folder=tmp_path)
    assert last_step(tmp_path) == 6
