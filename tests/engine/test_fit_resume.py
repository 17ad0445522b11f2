"""A run that is interrupted anywhere and resumed ends like one that is not: to the bit."""

import random
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch

from advcontrast import ContrastivePairAugment, NTXentLoss
from advcontrast.engine import EMA, LARS, Checkpoint, CheckpointMismatchError
from tests.engine.learners import (
    Halving,
    Interrupted,
    Noisy,
    Separable,
    acl,
    images,
    labelled,
    outcome,
    same,
    scramble,
    sgd,
    timeless,
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
    """How to start a run: always with objects of its own, as in a new process."""

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


def adam(learner):
    return torch.optim.AdamW(learner.parameters(), lr=0.01)


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


def last_checkpoint(folder):
    step, state = Checkpoint(folder / "checkpoints").load()
    state["history"] = timeless(state["history"])
    return step, state


@pytest.mark.parametrize("name", CASES)
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
    assert [group["lr"] for group in optimizer["param_groups"]] == [rate * 0.5 ** (5 / 4) for rate in (0.1, 0.5)]


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


def test_finished_run_leaves_the_selected_weights(tmp_path):
    first, again = Separable(), Separable()
    kept = []

    def score(epoch):
        kept.append(weights(first))
        return {"score": -epoch}

    for learner in (first, again):
        train(learner, evaluate=score, select="score", folder=tmp_path)
    assert len(kept) == 2
    assert not same(kept[0], kept[1])
    assert same(weights(first), kept[0])
    assert same(weights(again), kept[0])


def test_selected_is_the_first_of_equal_epochs():
    learner, kept = Separable(), []

    def score(epoch):
        kept.append(weights(learner))
        return {"score": 1.0}

    train(learner, evaluate=score, select="score")
    assert same(weights(learner), kept[0])


def test_selected_by_a_term_of_the_learner():
    best, last = Separable(), Separable()
    history = train(best, select="lr")
    train(last)
    assert history[0]["lr"] > history[1]["lr"]
    assert not same(weights(best), weights(last))


def test_without_a_folder_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    train(Separable())
    assert list(tmp_path.iterdir()) == []


def test_relative_folder_survives_a_change_of_directory(tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    train(Separable(), folder="run", evaluate=lambda epoch: monkeypatch.chdir(tmp_path / "elsewhere") or {})
    assert Checkpoint(tmp_path / "run" / "checkpoints").steps() == [3, 6]
    assert list((tmp_path / "elsewhere").iterdir()) == []


REMEDY = "Start it as it was started first, or choose another folder."


def wider():
    learner = Separable()
    learner.model[5] = torch.nn.Linear(36, 6, dtype=torch.float64)
    return learner


def deeper():
    learner = Separable()
    learner.model.append(torch.nn.Linear(5, 5, dtype=torch.float64))
    return learner


def plain_sgd(learner):
    return torch.optim.SGD(learner.parameters(), lr=0.1)


def sgd_of_the_head(learner):
    return sgd(learner.model[5])


class Twin(Separable):
    """Another learner with the same weights."""


OTHERS = {
    "shape": (wider, {}, "model.5.weight [6, 36] instead of [5, 36], model.5.bias [6] instead of [5]"),
    "layer": (deeper, {}, "model.6.weight [5, 5] instead of absent, model.6.bias [5] instead of absent"),
    "optimizer": (Separable, {"optimizer": adam}, "optimizer \"AdamW [{'lr': 0.01, "),
    "rate": (Separable, {"optimizer": lambda learner: sgd(learner, 0.2)}, "optimizer \"SGD [{'lr': 0.2, "),
    "momentum": (Separable, {"optimizer": plain_sgd}, "'momentum': 0,"),
    "parameters": (Separable, {"optimizer": sgd_of_the_head}, "optimizer "),
    "dtype": (lambda: Separable(torch.float32), {}, "model.0.weight "),
    "class": (Twin, {}, "learner "),
    "schedule": (Separable, {"schedule": None}, "schedule 'WarmupCosine(steps=6, warmup=0, floor=0.0)' instead of "),
    "seed": (Separable, {"seed": 1}, "seed 1 instead of 0"),
    "data": (Separable, {"data": labelled(seed=1)}, "data '[[22, 3, 8, 8], [22]] "),
    "number of samples": (Separable, {"data": labelled(24)}, "data '[[24, 3, 8, 8], [24]] "),
    "epochs": (Separable, {"epochs": 3}, "epochs 3 instead of 2"),
    "batch size": (Separable, {"batch_size": 11}, "batch_size 11 instead of 8"),
    "accumulate": (Separable, {"accumulate": 2}, "accumulate 2 instead of 1"),
    "amp": (Separable, {"amp": "bf16"}, "amp 'bf16' instead of 'off'"),
    "select": (Separable, {"select": "loss"}, "select 'loss' instead of None"),
    "ema": (Separable, {"ema": 0.9}, "ema 'EMA(Sequential, decay=0.9)' instead of 'None'"),
    "groups": (Separable, {"groups": torch.arange(22) % 2}, "groups "),
}


@pytest.mark.parametrize("name", OTHERS)
def test_resumed_otherwise_is_refused_and_named_and_changes_nothing(tmp_path, name):
    with pytest.raises(Interrupted):
        train(Separable(), schedule=Halving(4), folder=tmp_path, save_every=2)
    make, settings, difference = OTHERS[name]
    learner = make()
    settings = dict(settings)
    if callable(settings.get("optimizer")):
        settings["optimizer"] = settings["optimizer"](learner)
    if "ema" in settings:
        settings["ema"] = EMA(learner.model, settings["ema"])
    scramble(5)
    before = outcome(learner, [], ema=settings.get("ema"))
    with pytest.raises(CheckpointMismatchError) as caught:
        train(learner, folder=tmp_path, **settings)
    where = tmp_path / "checkpoints" / "step-00000004"
    assert str(caught.value).startswith(f"fit: expected the run that {where} belongs to, got ")
    assert str(caught.value).endswith(f". {REMEDY}")
    assert difference in str(caught.value)
    assert same(outcome(learner, [], ema=settings.get("ema")), before)
    assert learner.seen == []


@pytest.mark.parametrize(
    ("settings", "difference"),
    [
        ({"mode": "S2S"}, "mode='S2S'"),
        ({"alpha": 0.5}, "alpha=0.5"),
        ({"attack": None}, "PGDAttack("),
        ({"augment": ContrastivePairAugment(8, strength=0.5)}, "strength=0.5"),
        ({"loss": NTXentLoss(temperature=0.1)}, "temperature=0.1"),
    ],
)
def test_other_trainer_is_refused_and_changes_nothing(tmp_path, settings, difference):
    with pytest.raises(Interrupted):
        train(acl("DS"), images(), schedule=Halving(4), folder=tmp_path, save_every=2)
    learner = acl(**settings)
    before = weights(learner)
    with pytest.raises(
        CheckpointMismatchError, match=r"^fit: expected the run that .* belongs to, got learner "
    ) as caught:
        train(learner, images(), folder=tmp_path)
    ours, _, theirs = str(caught.value).partition(" instead of ")
    assert difference in ours
    assert "mode='DS', alpha=1.0, attack=PGDAttack(" in theirs
    assert same(weights(learner), before)


def test_many_differences_are_not_all_listed(tmp_path):
    with pytest.raises(Interrupted):
        train(Separable(), schedule=Halving(1), folder=tmp_path, save_every=1)
    with pytest.raises(CheckpointMismatchError, match=r" and \d more\. Start it as it was started first"):
        train(wider(), labelled(24), folder=tmp_path, epochs=3, batch_size=4, seed=1, amp="bf16")


def test_finished_run_with_other_settings_is_refused(tmp_path):
    train(Separable(), folder=tmp_path)
    with pytest.raises(CheckpointMismatchError, match=r"got seed 1 instead of 0. Start it"):
        train(Separable(), folder=tmp_path, seed=1)


def test_other_number_of_threads_warns_and_goes_on(tmp_path, monkeypatch):
    with pytest.raises(Interrupted):
        train(Separable(), schedule=Halving(4), folder=tmp_path, save_every=4)
    there = torch.get_num_threads()
    monkeypatch.setattr(torch, "get_num_threads", lambda: there + 1)
    message = (
        f"^fit: expected as many threads as before, got {there + 1} instead of {there}. Sums are then rounded "
        "otherwise: the weights will be close, but not the same to the bit.$"
    )
    with pytest.warns(UserWarning, match=message):
        assert len(train(Separable(), folder=tmp_path)) == 2


def test_other_number_of_processes_warns_and_goes_on(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr("advcontrast.engine.run.distributed.exchange", lambda value: [value, value])
        with pytest.raises(Interrupted):
            train(Separable(), schedule=Halving(4), folder=tmp_path, save_every=4)
    message = (
        "^fit: expected as many processes as before, got 1 instead of 2. The run goes on, with other random numbers.$"
    )
    with pytest.warns(UserWarning, match=message):
        assert len(train(Separable(), folder=tmp_path)) == 2
