"""Numbers that are not finite stop a run before they do harm."""

import copy
import csv
import math

import pytest
import torch

from advcontrast.engine import Checkpoint
from advcontrast.optim import EMA
from tests.engine.learners import (
    Noisy,
    Separable,
    labelled,
    last_checkpoint,
    last_step,
    same,
    scramble,
    sgd,
    timeless,
    train,
    weights,
)


def spoilt(what, value, step):
    """Return a learner whose loss or gradient is not finite in forward pass number ``step``, resumed like any other.

    ``before`` has its parameters as they were before each of the passes.
    """
    learner = Noisy()
    learner.before = []

    def note(*_):
        learner.before.append({name: p.detach().clone() for name, p in learner.named_parameters()})

    def spoil(module, batch, output):
        loss, terms = output
        if len(learner.seen) == step + 1:
            if what == "gradient":
                loss.register_hook(lambda gradient: gradient * value)
            else:
                loss = loss * value
        return loss, terms

    learner.register_forward_pre_hook(note)
    learner.register_forward_hook(spoil)
    return learner


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize(("what", "expected"), [("loss", "a finite loss"), ("gradient", "finite gradients")])
@pytest.mark.parametrize("step", [0, 1, 3])
def test_values_that_are_not_finite_stop_the_run_before_the_weights_change(tmp_path, what, expected, value, step):
    learner, again = spoilt(what, value, step), Noisy()
    message = rf"^fit: expected {expected}, got (nan|inf) in step {step + 1}\."
    scramble(0)
    with pytest.raises(RuntimeError, match=message):
        train(learner, folder=tmp_path, save_every=1)
    for name, parameter in learner.named_parameters():
        assert torch.equal(parameter, learner.before[step][name])
    assert last_step(tmp_path) == step
    train(again, folder=tmp_path)
    assert all(parameter.isfinite().all() for parameter in again.parameters())


def test_loss_that_is_not_finite_in_one_part_of_a_batch_stops_the_run():
    learner = spoilt("loss", math.nan, 3)
    with pytest.raises(RuntimeError, match=r"^fit: expected a finite loss"):
        train(learner, accumulate=2)
    for name, parameter in learner.named_parameters():
        assert torch.equal(parameter, learner.before[3][name])


def test_run_goes_on_in_memory_after_a_step_that_failed(tmp_path):
    expected, learner = Noisy(), spoilt("gradient", math.inf, 4)
    optimizer = sgd(learner)
    scramble(0)
    train(expected)
    scramble(0)
    with pytest.raises(RuntimeError, match=r"^fit: expected finite gradients"):
        train(learner, optimizer=optimizer, folder=tmp_path, save_every=1)
    train(learner, optimizer=optimizer, folder=tmp_path)  # the spoilt step was a matter of the moment
    assert same(weights(learner), weights(expected))


def test_where_values_are_not_read_at_once_a_spoilt_checkpoint_is_not_written(tmp_path, monkeypatch):
    monkeypatch.setattr("advcontrast.engine.run.readable", lambda tensor: False)
    message = r"^fit: expected a finite loss"
    with pytest.raises(RuntimeError, match=message):
        train(spoilt("loss", math.nan, 3), folder=tmp_path, save_every=1)
    assert last_step(tmp_path) == 3


def test_where_values_are_not_read_at_once_the_row_of_a_spoilt_epoch_is_not_written(tmp_path, monkeypatch):
    monkeypatch.setattr("advcontrast.engine.run.readable", lambda tensor: False)
    with pytest.raises(RuntimeError, match=r"^fit: expected a finite loss"):
        train(spoilt("loss", math.nan, 0), folder=tmp_path, evaluate=lambda epoch: pytest.fail("evaluated"))
    assert last_step(tmp_path) == 0


def test_spoilt_gradient_never_reaches_a_checkpoint_even_where_values_are_not_read_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr("advcontrast.engine.run.readable", lambda tensor: False)
    with pytest.raises(RuntimeError, match=r"^fit: expected "):
        train(spoilt("gradient", math.nan, 3), folder=tmp_path, save_every=1)
    assert all(value.isfinite().all() for value in last_checkpoint(tmp_path)[1]["learner"].values())


def test_step_too_long_never_reaches_a_checkpoint(tmp_path):
    class Steep(Separable):
        def forward(self, *batch):
            loss, terms = super().forward(*batch)
            return 1000 * loss, terms

    learner = Steep(torch.float32)
    with pytest.raises(RuntimeError, match=r"^fit: expected "):
        train(learner, optimizer=sgd(learner, lr=3e38), folder=tmp_path, save_every=1)
    saved = Checkpoint(tmp_path / "checkpoints").load()
    assert saved is None or all(value.isfinite().all() for value in saved[1]["learner"].values())


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_data_that_is_not_finite_is_refused_before_a_forward_pass(value):
    learner = Noisy()
    before = weights(learner)
    data = torch.rand(22, 3, 8, 8), torch.arange(22)
    data[0][3, 1, 4, 4] = value
    data[0][20, 0, 0, 0] = value
    with pytest.raises(ValueError, match=r"^fit: expected data to be finite"):
        train(learner, data)
    assert learner.seen == []
    assert same(weights(learner), before)


class Infinite(Separable):
    """A classifier with buffers that are infinite, narrow or without values, and with terms that are not finite."""

    def __init__(self, terms=()):
        super().__init__(torch.float32)
        self.model.register_buffer("mask", torch.full((3, 3), -math.inf).triu(1))
        self.model.register_buffer("narrow", torch.ones(4).to(torch.float8_e4m3fn))
        self.model.register_buffer("empty", torch.ones(4, device="meta"), persistent=False)
        self.idle = torch.nn.Parameter(torch.tensor(math.nan), requires_grad=False)
        self.terms = terms

    def forward(self, images, labels):
        loss, terms = super().forward(images, labels)
        return loss, {**terms, **{str(value): torch.tensor(value) for value in self.terms}}


def test_fp16_training_without_a_single_finite_gradient_ends_with_an_error(tmp_path):
    class Cusp(Separable):
        def forward(self, *batch):
            loss, terms = super().forward(*batch)
            return loss + (0 * loss).sqrt(), terms  # the square root has an infinite slope at 0

    learner = Cusp(torch.float32)
    with pytest.raises(RuntimeError, match=r"^fit: expected a loss scale of at least 1e-06"):
        train(learner, amp="fp16", epochs=20, folder=tmp_path)
    assert same(weights(learner), weights(Separable(torch.float32)))


@pytest.mark.parametrize(("dtype", "size"), [(torch.float16, 300.0), (torch.float32, 1e25)])
def test_gradients_that_are_finite_may_have_a_norm_that_is_not(dtype, size):
    class Large(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(100_000, dtype=dtype))

        def forward(self, x):
            return self.weight.sum(dtype=torch.float32) * size * x.mean(), {}

    learner = Large()
    optimizer = torch.optim.SGD(learner.parameters(), lr=1 / size)
    train(learner, torch.ones(2, 1), epochs=1, optimizer=optimizer, schedule=1.0)
    torch.testing.assert_close(learner.weight.detach(), torch.full((100_000,), -1.0, dtype=dtype))


@pytest.mark.parametrize("settings", [{}, {"select": "accuracy"}], ids=["last", "selected"])
def test_buffers_that_are_infinite_on_purpose_are_trained_with_saved_and_restored(tmp_path, settings):
    learner, again = Infinite(), Infinite()
    averages = [EMA(each.model, 0.5) for each in (learner, again)]
    history = train(learner, folder=tmp_path, save_every=1, ema=averages[0], **settings)
    assert same(history, train(again, folder=tmp_path, save_every=1, ema=averages[1], **settings))
    ours, theirs = weights(learner), weights(again)
    assert torch.equal(ours["model.mask"], Infinite().model.mask)
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == ["idle"]  # it is NaN


def test_a_buffer_without_values_is_trained_with_and_refused_where_it_would_be_saved(tmp_path):
    learner = Separable()
    learner.register_buffer("empty", torch.ones(4, device="meta"))
    train(learner, select="accuracy")
    learner.seen.clear()
    with pytest.raises(ValueError, match=r"^fit: expected empty to have values"):
        train(learner, folder=tmp_path)
    assert learner.seen == []


def test_terms_that_are_not_finite_are_reported(tmp_path):
    pytest.importorskip("tensorboard")
    terms = (math.inf, -math.inf, math.nan)
    history = train(Infinite(terms), folder=tmp_path, tensorboard=True, evaluate=lambda epoch: {"score": math.nan})
    again = train(Infinite(terms), folder=tmp_path, tensorboard=True, evaluate=lambda epoch: {"score": math.nan})
    with (tmp_path / "metrics.csv").open(newline="") as file:
        written = [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]
    for rows in (history, again, written):
        for row in rows:
            assert (row["inf"], row["-inf"]) == (math.inf, -math.inf)
            assert math.isnan(row["nan"])
            assert math.isnan(row["score"])


def test_trained_weights_that_are_not_finite_are_not_saved(tmp_path, monkeypatch):
    monkeypatch.setattr("advcontrast.engine.run.readable", lambda tensor: False)
    learner = Infinite()
    with torch.no_grad():
        learner.model[5].bias[0] = -math.inf  # of a class whose probability is 0: neither loss nor gradient is hurt
    with pytest.raises(RuntimeError, match=r"^fit: expected finite weights"):
        train(learner, (labelled()[0], torch.ones(22, dtype=torch.long)), folder=tmp_path, save_every=1)


def fail(what):
    """Return a learner that fails in forward pass number 5, and the error."""
    if what == "gradient":
        return spoilt("gradient", math.inf, 5), RuntimeError
    if what == "loss":
        return spoilt("loss", math.nan, 5), RuntimeError
    learner = Noisy()

    def run_out(*_):
        if len(learner.seen) == 5:
            learner.seen.append(None)
            raise torch.OutOfMemoryError("out of memory")

    learner.register_forward_pre_hook(run_out)
    return learner, torch.OutOfMemoryError


@pytest.mark.parametrize("what", ["gradient", "loss", "memory"])
def test_without_a_folder_a_learner_trains_on_after_a_step_that_failed_as_if_it_had_not_been(what):
    learner, error = fail(what)
    optimizer = sgd(learner)
    with pytest.raises(error):
        train(learner, optimizer=optimizer, accumulate=2)  # passes 4 and 5 are one step: 4 has left gradients
    twin = Noisy()
    theirs = sgd(twin)
    twin.load_state_dict(learner.state_dict())
    theirs.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert any(parameter.grad is not None for parameter in learner.parameters())
    assert all(parameter.grad is None for parameter in twin.parameters())
    histories = []
    for one, other in ((learner, optimizer), (twin, theirs)):
        scramble(1)
        histories.append(timeless(train(one, optimizer=other, accumulate=2)))
    assert same(weights(learner), weights(twin))
    assert histories[0] == histories[1]
    assert histories[0][0]["lr"] == 0.1 * 0.5 ** (2 / 4)
