"""The training loop: what a step is, what it reports, and what it leaves alone."""

import importlib
import math
from itertools import chain

import pytest
import torch
from torch.backends import cudnn

from advcontrast.optim import EMA, LARS, WarmupCosine
from tests.engine.learners import (
    Halving,
    Separable,
    acl,
    images,
    labelled,
    same,
    scramble,
    sgd,
    timeless,
    train,
    weights,
)

TOLERANCE = 1e-12  # float64


def by_hand(learner, batches, rates, data):
    """Train as a loop of three lines would."""
    optimizer = sgd(learner)
    for batch, rate in zip(batches, rates, strict=True):
        optimizer.param_groups[0]["lr"] = 0.1 * rate
        optimizer.zero_grad()
        loss, _ = learner(*(tensor[batch] for tensor in data))
        loss.backward()
        optimizer.step()


def test_training_is_the_plain_loop():
    ours, theirs = Separable(), Separable()
    train(ours)
    by_hand(theirs.to(memory_format=torch.channels_last), ours.seen, map(Halving(), range(6)), labelled())
    for name, value in weights(theirs).items():
        torch.testing.assert_close(weights(ours)[name], value, rtol=TOLERANCE, atol=TOLERANCE)


def test_same_seed_trains_the_same():
    first, second, other = Separable(), Separable(), Separable()
    train(first, seed=3)
    scramble(9)
    train(second, seed=3)
    train(other, seed=4)
    assert same(weights(first), weights(second))
    assert not same(weights(first), weights(other))


def test_every_sample_comes_in_every_epoch_and_the_first_ones_again_where_they_run_out():
    learner = Separable()
    train(learner)
    assert [len(batch) for batch in learner.seen] == [8] * 6
    epochs = [[*chain(*learner.seen[start : start + 3])] for start in (0, 3)]
    assert [sorted(epoch[:22]) for epoch in epochs] == [[*range(22)]] * 2
    assert [epoch[22:] for epoch in epochs] == [epoch[:2] for epoch in epochs]
    assert epochs[0] != epochs[1]


def test_fewer_samples_than_a_batch_are_one_batch():
    learner = Separable()
    train(learner, labelled(7))
    assert [sorted(batch) for batch in learner.seen] == [[*range(7)]] * 2


def test_batches_have_their_share_of_each_group():
    learner = Separable()
    train(learner, labelled(20), batch_size=4, groups=(torch.arange(20) < 5).long())
    assert [sum(label < 5 for label in batch) for batch in learner.seen] == [1] * 10


def test_single_tensor_reaches_the_learner_alone():
    shapes = []

    class Lone(Separable):
        def forward(self, images):
            shapes.append((list(images.shape), images.dtype))
            return super().forward(images, torch.zeros(len(images), dtype=torch.long))

    train(Lone(), images(8), epochs=1)
    train(Lone(), [images(8)], epochs=1)
    assert shapes == [([8, 3, 8, 8], torch.uint8)] * 2


def test_data_is_not_changed():
    data = labelled()
    before = [tensor.clone() for tensor in data]
    train(Separable(), data)
    assert same(list(data), before)


@pytest.mark.parametrize("parts", [2, 3, 4, 100])
def test_accumulated_gradients_are_those_of_the_whole_batch(parts):
    whole, cut = Separable(), Separable()
    expected, history = train(whole, labelled(21)), train(cut, labelled(21), accumulate=parts)
    assert {len(batch) for batch in cut.seen} <= {math.ceil(8 / min(parts, 8)) - less for less in (0, 1)}
    assert sum(map(len, cut.seen)) == 48
    for name, value in weights(whole).items():
        torch.testing.assert_close(weights(cut)[name], value, rtol=TOLERANCE, atol=TOLERANCE)
    for ours, theirs in zip(timeless(history), timeless(expected), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-6)


def test_accumulation_is_refused_where_the_loss_compares_samples():
    with pytest.raises(ValueError, match=r"^fit: expected accumulate to be 1"):
        train(acl(), images(), accumulate=2)


def test_row_of_an_epoch():
    learner = Separable()
    history = train(learner, evaluate=lambda epoch: {"score": 10 * epoch})
    assert [list(row) for row in history] == [["epoch", "step", "seconds", "lr", "loss", "accuracy", "score"]] * 2
    assert [[row[name] for name in ("epoch", "step", "score")] for row in history] == [[1, 3, 10.0], [2, 6, 20.0]]
    assert [row["lr"] for row in history] == [0.1 * 0.5 ** (2 / 4), 0.1 * 0.5 ** (5 / 4)]


def test_reported_means_weigh_samples_alike():
    losses, sizes = [], []

    class Watched(Separable):
        def forward(self, images, labels):
            loss, _ = super().forward(images, labels)
            losses.append(loss.item())
            sizes.append(len(labels))
            return loss, {"size": torch.tensor(float(len(labels)))}

    history = train(Watched(), accumulate=3)
    assert sizes == [3, 3, 2] * 6
    for row, first in zip(history, (0, 9), strict=True):
        epoch = slice(first, first + 9)
        weighed = sum(loss * n for loss, n in zip(losses[epoch], sizes[epoch], strict=True)) / 24
        assert row["loss"] == pytest.approx(weighed, rel=1e-6)
        assert row["size"] == pytest.approx((3 * 3 + 3 * 3 + 2 * 2) / 8, rel=1e-6)


def test_each_step_has_the_rate_of_the_schedule():
    rates = []

    class Watched(Separable):
        def forward(self, *batch):
            rates.append(optimizer.param_groups[0]["lr"])
            return super().forward(*batch)

    learner = Watched()
    optimizer = sgd(learner, lr=0.3)
    train(learner, optimizer=optimizer, schedule=WarmupCosine(6, warmup=2))
    assert rates == [0.3 * WarmupCosine(6, warmup=2)(step) for step in range(6)]


@pytest.mark.parametrize(("epochs", "warmup"), [(2, 0), (5, 1), (40, 12), (120, 30)])
def test_default_schedule_warms_up_for_ten_epochs_or_a_tenth(monkeypatch, epochs, warmup):
    asked = []

    class Noted(Exception):
        pass

    def note(steps, *, warmup):
        asked.append((steps, warmup))
        raise Noted

    monkeypatch.setattr(importlib.import_module("advcontrast.engine.fit"), "WarmupCosine", note)
    with pytest.raises(Noted):
        train(Separable(), epochs=epochs, schedule=None)
    assert asked == [(3 * epochs, warmup)]


def test_default_optimizer_is_that_of_the_acl_code():
    ours, theirs = Separable(), Separable()
    train(ours, optimizer=None)
    train(theirs, optimizer=LARS(theirs.parameters(), lr=5.0))
    assert same(weights(ours), weights(theirs))


def test_learner_trains_in_train_mode_even_if_evaluation_leaves_another():
    modes = []

    class Watched(Separable):
        def forward(self, *batch):
            modes.append(self.training and self.model.training)
            return super().forward(*batch)

    learner = Watched().eval()
    train(learner, evaluate=lambda epoch: learner.eval() and {})
    assert modes == [True] * 6


def test_average_follows_every_step():
    learner = Separable()
    ema = EMA(learner.model, decay=0.0)
    train(learner, ema=ema)
    assert ema.updates == 6
    assert same(ema.model.state_dict(), learner.model.state_dict())


def test_gradients_from_before_do_not_count():
    clean, stale = Separable(), Separable()
    stale(*labelled())[0].backward()
    stale.seen.clear()
    train(clean)
    train(stale)
    assert same(weights(stale), weights(clean))


@pytest.mark.skipif(
    torch.__version__.startswith("2.10."),
    reason="PyTorch 2.10 crashes in the gradient of a group norm over channels-last images that need none",
)
def test_frozen_weights_stay():
    learner = Separable()
    learner.model[0].requires_grad_(False)
    before = weights(learner)
    train(learner, optimizer=torch.optim.SGD([p for p in learner.parameters() if p.requires_grad], lr=0.1))
    moved = {name for name, value in weights(learner).items() if not torch.equal(value, before[name])}
    assert moved == {"model.1.weight", "model.1.bias", "model.5.weight", "model.5.bias"}


@pytest.mark.parametrize("deterministic", [False, True])
def test_cudnn_measures_its_algorithms_during_training_where_these_may_vary(deterministic, monkeypatch):
    monkeypatch.setattr(cudnn, "deterministic", deterministic)
    seen = []

    def schedule(step):
        seen.append(cudnn.benchmark)
        if step == 2:
            raise OSError("stop")
        return 1.0

    with pytest.raises(OSError, match="stop"):
        train(Separable(), schedule=schedule)
    assert seen[0] is not deterministic
    assert cudnn.benchmark is False
