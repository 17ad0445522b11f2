"""``fit(log_every=, after_step=)``: reports and a hook between the ends of epochs."""

import csv

import pytest
import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from tests.engine.learners import Halving, Interrupted, Noisy, Separable, scramble, train, weights
from tests.engine.test_fit_output import Losses, scalars


def table(folder):
    with (folder / "steps.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_row_has_the_means_since_the_last_one(tmp_path):
    train(learner := Losses(), folder=tmp_path, log_every=2)
    rows = table(tmp_path)
    assert list(rows[0]) == ["epoch", "step", "lr", "loss", "accuracy"]
    assert [(row["epoch"], row["step"]) for row in rows] == [("1", "2"), ("2", "4"), ("2", "6")]
    means = [sum(learner.losses[i : i + 2]) / 2 for i in (0, 2, 4)]
    assert [float(row["loss"]) for row in rows] == pytest.approx(means, rel=1e-6)
    assert [float(row["lr"]) for row in rows] == pytest.approx([0.1 * 0.5 ** (step / 4) for step in (1, 3, 5)])


def test_epochs_are_reported_as_without(tmp_path):
    with_rows, without = (train(Separable(), **settings) for settings in ({"log_every": 2}, {}))
    for row in (*with_rows, *without):
        del row["seconds"]
    assert with_rows == without


@pytest.mark.parametrize("log_every", [2, 3])
@pytest.mark.parametrize("stop", range(1, 6))
def test_a_resumed_run_writes_the_same_rows(tmp_path, log_every, stop):
    settings = {"log_every": log_every, "save_every": 2}
    train(Separable(), folder=tmp_path / "whole", **settings)
    with pytest.raises(Interrupted):
        train(Separable(), folder=tmp_path / "cut", schedule=Halving(stop), **settings)
    train(Separable(), folder=tmp_path / "cut", **settings)
    assert table(tmp_path / "cut") == table(tmp_path / "whole")


def test_rows_after_the_checkpoint_are_forgotten(tmp_path):
    with pytest.raises(Interrupted):
        train(Separable(), folder=tmp_path, schedule=Halving(5), log_every=1, save_every=2)
    with pytest.raises(Interrupted):
        train(Separable(), folder=tmp_path, schedule=Halving(4))
    assert [row["step"] for row in table(tmp_path)] == ["1", "2", "3", "4"]


def test_tensorboard_has_the_rows(tmp_path):
    pytest.importorskip("tensorboard")
    train(learner := Losses(), folder=tmp_path, tensorboard=True, log_every=1)
    points = scalars(tmp_path)["steps/loss"]
    assert [step for step, _ in points] == [1, 2, 3, 4, 5, 6]
    assert [value for _, value in points] == pytest.approx(learner.losses, rel=1e-6)


def test_the_bar_shows_the_last_row(capsys):
    pytest.importorskip("tqdm")
    (first, _) = train(learner := Losses(), progress=True, log_every=1)
    shown = capsys.readouterr().err
    assert f" loss {learner.losses[1]:.4g}]" in shown
    assert f"loss {learner.losses[3]:.4g} after epoch 1, lr {first['lr']:.4g}" in shown


def test_a_row_is_a_line_of_the_log(caplog):
    with caplog.at_level("INFO", logger="advcontrast"):
        train(Separable(), log_every=3)
    line = next(record.getMessage() for record in caplog.records if "step 3" in record.getMessage())
    assert line.startswith("epoch 1, step 3, lr 0.07071, loss ")


class Averaged(Noisy):
    """A learner with an average of its network."""

    def __init__(self):
        super().__init__()
        self.average = AveragedModel(self.model, multi_avg_fn=get_ema_multi_avg_fn(0.5)).requires_grad_(False)


def averaged(folder=None, **settings):
    learner = Averaged()
    train(learner, folder=folder, after_step=lambda step: learner.average.update_parameters(learner.model), **settings)
    return weights(learner)


def test_hook_is_called_after_each_step_with_the_number_of_steps():
    learner, called = Separable(), []
    train(learner, after_step=lambda step: called.append((step, len(learner.seen))))
    assert called == [(step, step) for step in range(1, 7)]


def test_hook_sees_the_weights_of_its_step():
    learner, found = Separable(), []
    before = weights(learner)["model.5.bias"]
    train(learner, epochs=1, after_step=lambda step: found.append(weights(learner)["model.5.bias"]))
    assert not torch.equal(found[0], before)
    assert torch.equal(found[-1], learner.model[5].bias)


def test_training_continues_in_train_mode_after_the_hook():
    learner, modes = Separable(), []
    learner.model.register_forward_pre_hook(lambda model, _: modes.append(model.training))
    train(learner, after_step=lambda step: learner.eval())
    assert modes == [True] * 6


@pytest.mark.parametrize("stop", range(1, 6))
def test_an_average_in_the_learner_is_resumed_bit_identical(tmp_path, stop):
    scramble(0)
    expected = averaged()
    scramble(0)
    with pytest.raises(Interrupted):
        averaged(tmp_path, schedule=Halving(stop), save_every=1)
    scramble(stop)
    found = averaged(tmp_path)
    assert found["average.n_averaged"] == 6
    assert all(torch.equal(found[name], value) for name, value in expected.items())


def log_on_a_rank(folder):
    train(Separable(), folder=folder, log_every=2)


@pytest.mark.distributed
def test_processes_report_the_mean_over_all(ranks, tmp_path):
    train(Separable(), folder=tmp_path / "one", log_every=2)
    ranks.run(log_on_a_rank, tmp_path / "two")
    one, two = ([float(row["loss"]) for row in table(tmp_path / name)] for name in ("one", "two"))
    assert two == pytest.approx(one, rel=1e-6)
