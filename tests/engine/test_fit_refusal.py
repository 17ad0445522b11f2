"""A run refuses the checkpoint of another one, and warns of another machine."""

import pytest
import torch
from torch.utils.data import ConcatDataset, Subset, TensorDataset

from advcontrast import ContrastivePairAugment, NTXentLoss
from advcontrast.engine import CheckpointMismatchError, DataReader
from advcontrast.optim import EMA
from tests.engine.learners import (
    Halving,
    Interrupted,
    Separable,
    acl,
    adam,
    images,
    labelled,
    outcome,
    same,
    scramble,
    sgd,
    train,
    weights,
)

REMEDY = "Pass the arguments of the first call, or choose another folder."


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
    "shape": (
        wider,
        {},
        "model.5.weight torch.float64 [6, 36] instead of torch.float64 [5, 36], "
        "model.5.bias torch.float64 [6] instead of torch.float64 [5]",
    ),
    "layer": (
        deeper,
        {},
        "model.6.weight torch.float64 [5, 5] instead of absent, model.6.bias torch.float64 [5] instead of absent",
    ),
    "optimizer": (Separable, {"optimizer": adam}, "optimizer AdamW [{'lr': 0.01, "),
    "rate": (Separable, {"optimizer": lambda learner: sgd(learner, 0.2)}, "optimizer SGD [{'lr': 0.2, "),
    "momentum": (Separable, {"optimizer": plain_sgd}, "'momentum': 0,"),
    "parameters": (Separable, {"optimizer": sgd_of_the_head}, "optimized parameters [2] instead of [6]"),
    "dtype": (
        lambda: Separable(torch.float32),
        {},
        "model.0.weight torch.float32 [4, 3, 3, 3] instead of torch.float64 [4, 3, 3, 3]",
    ),
    "class": (Twin, {}, "learner Twin() instead of Separable()"),
    "schedule": (
        Separable,
        {"schedule": None},
        "schedule WarmupCosine(steps=6, warmup=0, floor=0.0) instead of Halving()",
    ),
    "seed": (Separable, {"seed": 1}, "seed 1 instead of 0"),
    "data": (Separable, {"data": labelled(seed=1)}, "data [[22, 3, 8, 8], [22]] "),
    "number of samples": (Separable, {"data": labelled(24)}, "data [[24, 3, 8, 8], [24]] "),
    "epochs": (Separable, {"epochs": 3}, "epochs 3 instead of 2"),
    "batch size": (Separable, {"batch_size": 11}, "batch_size 11 instead of 8"),
    "accumulate": (Separable, {"accumulate": 2}, "accumulate 2 instead of 1"),
    "amp": (Separable, {"amp": "bf16"}, "amp bf16 instead of off"),
    "select": (Separable, {"select": "loss"}, "select loss instead of None"),
    "ema": (Separable, {"ema": 0.9}, "ema EMA(Sequential, decay=0.9) instead of None"),
    "groups": (Separable, {"groups": torch.arange(22) % 2}, "groups [[22]] "),
}


@pytest.mark.filterwarnings("ignore:fit. expected an optimizer of all parameters:UserWarning")
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
    assert str(caught.value).startswith(f"fit: expected the run that {where} belongs to")
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
    ],
)
def test_other_trainer_is_refused_and_changes_nothing(tmp_path, settings, difference):
    with pytest.raises(Interrupted):
        train(acl("DS"), images(), schedule=Halving(4), folder=tmp_path, save_every=2)
    learner = acl(**settings)
    before = weights(learner)
    with pytest.raises(CheckpointMismatchError, match=r"^fit: expected the run that .* belongs to") as caught:
        train(learner, images(), folder=tmp_path)
    ours, _, theirs = str(caught.value).partition(" instead of ")
    assert difference in ours
    assert "mode='DS', alpha=1.0, attack=PGDAttack(" in theirs
    assert same(weights(learner), before)


@pytest.mark.parametrize(
    ("change", "difference"),
    [
        ("loss", r"\(loss\): NTXentLoss\(temperature=0.1, .*\) instead of \(loss\): NTXentLoss\(temperature=0.5, .*\)"),
        ("dropout", r"\(4\): Dropout\(p=0.1, .*\) instead of \(4\): Dropout\(p=0.0, .*\)"),
    ],
)
def test_other_module_without_weights_is_refused_by_the_line_that_differs(tmp_path, change, difference):
    with pytest.raises(Interrupted):
        train(acl(), images(), schedule=Halving(4), folder=tmp_path, save_every=2)
    learner = acl(loss=NTXentLoss(temperature=0.1)) if change == "loss" else acl()
    if change == "dropout":
        learner.model[4].p = 0.1
    before = weights(learner)
    message = f"^fit: expected the run that .* belongs to, got modules {difference}"
    with pytest.raises(CheckpointMismatchError, match=message):
        train(learner, images(), folder=tmp_path)
    assert same(weights(learner), before)


def stop():
    raise Interrupted


def interrupted(folder, schedule, **settings):
    """Leave a checkpoint of step 3, the first epoch."""
    learner = Separable()
    learner.register_forward_pre_hook(lambda *_: stop() if len(learner.seen) == 4 else None)
    with pytest.raises(Interrupted):
        train(learner, folder=folder, schedule=schedule, **settings)


def test_data_that_differ_in_one_number_are_refused(tmp_path):
    interrupted(tmp_path, 1.0, data=labelled(70), save_every=1)
    x, y = labelled(70)
    x[17, 2, 3, 4] += 1
    with pytest.raises(CheckpointMismatchError, match=r"got data \[\[70, 3, 8, 8\], \[70\]\] "):
        train(Separable(), (x, y), folder=tmp_path, schedule=1.0)


@pytest.mark.parametrize(
    "change",
    [
        lambda x, y: TensorDataset(x, y + 1),
        lambda x, y: Subset(TensorDataset(x, y), range(22)[::-1]),
        lambda x, y: ConcatDataset([TensorDataset(x[:10], y[:10]), TensorDataset(x[10:], y[10:] + 1)]),
    ],
    ids=["tensors", "subset", "concatenation"],
)
def test_another_data_set_of_the_same_length_is_refused(tmp_path, change):
    x, y = labelled()
    same = type(change(x, y))
    data = {
        TensorDataset: lambda: TensorDataset(x, y),
        Subset: lambda: Subset(TensorDataset(x, y), range(22)),
        ConcatDataset: lambda: ConcatDataset([TensorDataset(x[:10], y[:10]), TensorDataset(x[10:], y[10:])]),
    }[same]
    interrupted(tmp_path, 1.0, data=DataReader(data(), workers=0))
    with pytest.raises(CheckpointMismatchError, match=rf"got data {same.__name__} of 22 samples "):
        train(Separable(), DataReader(change(x, y), workers=0), folder=tmp_path, schedule=1.0)
    train(Separable(), DataReader(data(), workers=0), folder=tmp_path, schedule=1.0)


def test_fingerprints_are_compared_to_the_end(tmp_path):
    def data(version):
        samples = Named(*labelled())
        samples.name = f"images for training, version {version}"
        return DataReader(samples, workers=0)

    interrupted(tmp_path, 1.0, data=data(1))
    with pytest.raises(CheckpointMismatchError, match=r"version 2 instead of .*version 1"):
        train(Separable(), data(2), folder=tmp_path, schedule=1.0)


class Named(TensorDataset):
    """A data set with a name for a fingerprint."""

    def fingerprint(self):
        return self.name


def test_a_schedule_that_evaluate_changes_is_refused(tmp_path):
    def settings():
        state = {"rate": 1.0}
        return {"schedule": lambda step: state["rate"], "evaluate": lambda epoch: state.update(rate=0.5) or {}}

    learner = Separable()
    learner.register_forward_pre_hook(lambda *_: stop() if len(learner.seen) == 5 else None)
    with pytest.raises(Interrupted):
        train(learner, folder=tmp_path, save_every=1, **settings())
    with pytest.raises(CheckpointMismatchError, match="got a schedule that returns other rates in the 5 steps taken"):
        train(Separable(), folder=tmp_path, **settings())


def test_a_learner_with_another_generator_is_refused(tmp_path):
    interrupted(tmp_path, 1.0)
    learner = Separable()
    learner.own = torch.Generator()
    with pytest.raises(CheckpointMismatchError, match=r"got generators \['own on cpu'\] instead of \[\]"):
        train(learner, folder=tmp_path, schedule=1.0)


def test_another_function_as_schedule_is_refused(tmp_path):
    interrupted(tmp_path, lambda step: 1.0)
    with pytest.raises(CheckpointMismatchError, match="got a schedule that returns other rates in the 3 steps taken"):
        train(Separable(), folder=tmp_path, schedule=lambda step: 0.5)
    assert len(train(Separable(), folder=tmp_path, schedule=lambda step: 1 if step else 1.0)) == 2


def test_an_equal_number_of_another_type_is_the_same_schedule(tmp_path):
    interrupted(tmp_path, 1)
    assert len(train(Separable(), folder=tmp_path, schedule=1.0)) == 2


@pytest.mark.parametrize("kind", [float, torch.tensor])
def test_a_rate_that_was_set_by_hand_is_refused(tmp_path, kind):
    learner = Separable()
    optimizer = torch.optim.AdamW(learner.parameters(), lr=kind(0.1))
    with pytest.raises(Interrupted):
        train(learner, folder=tmp_path, optimizer=optimizer, schedule=Halving(4))
    optimizer.param_groups[0]["lr"] = kind(0.10001)
    with pytest.raises(CheckpointMismatchError, match=r"got optimizer AdamW \[\{'lr': 0\."):
        train(learner, folder=tmp_path, optimizer=optimizer)


def test_many_differences_are_not_all_listed(tmp_path):
    with pytest.raises(Interrupted):
        train(Separable(), schedule=Halving(1), folder=tmp_path, save_every=1)
    with pytest.raises(CheckpointMismatchError, match=r" and \d more\."):
        train(wider(), labelled(24), folder=tmp_path, epochs=3, batch_size=4, seed=1, amp="bf16")


def test_finished_run_with_other_settings_is_refused(tmp_path):
    train(Separable(), folder=tmp_path)
    with pytest.raises(CheckpointMismatchError, match=r"got seed 1 instead of 0. Pass the"):
        train(Separable(), folder=tmp_path, seed=1)


def test_other_number_of_threads_warns_and_goes_on(tmp_path, monkeypatch):
    with pytest.raises(Interrupted):
        train(Separable(), schedule=Halving(4), folder=tmp_path, save_every=4)
    there = torch.get_num_threads()
    monkeypatch.setattr(torch, "get_num_threads", lambda: there + 1)
    with pytest.warns(UserWarning, match=r"^fit: expected as many threads as before"):
        assert len(train(Separable(), folder=tmp_path)) == 2


def test_other_number_of_processes_warns_and_goes_on(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr("advcontrast.engine.run.distributed.all_gather_object", lambda value: [value, value])
        with pytest.raises(Interrupted):
            train(Separable(), schedule=Halving(4), folder=tmp_path, save_every=4)
    message = r"^fit: expected as many processes as before"
    with pytest.warns(UserWarning, match=message):
        assert len(train(Separable(), folder=tmp_path)) == 2
