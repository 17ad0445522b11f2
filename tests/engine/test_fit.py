"""The training loop: what a step is, what it reports, and what it leaves alone."""

import csv
import importlib
import math
import random
import re
import sys
from itertools import chain

import numpy as np
import pytest
import torch
from torch import nn

from advcontrast.engine import EMA, LARS, Checkpoint, Constant, WarmupCosine, fit
from advcontrast.engine.randomness import capture
from tests.engine.learners import (
    CPU,
    Drawing,
    Halving,
    Interrupted,
    Noisy,
    Separable,
    acl,
    draw,
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


def test_every_sample_comes_once_an_epoch_and_the_last_batch_is_used():
    learner = Separable()
    train(learner)
    assert [len(batch) for batch in learner.seen] == [8, 8, 6] * 2
    epochs = [[*chain(*learner.seen[start : start + 3])] for start in (0, 3)]
    assert [sorted(epoch) for epoch in epochs] == [[*range(22)]] * 2
    assert epochs[0] != epochs[1]


def test_rest_of_one_sample_is_left_out():
    learner = Separable()
    train(learner, labelled(17))
    assert [len(batch) for batch in learner.seen] == [8, 8] * 2


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
    assert {len(batch) for batch in cut.seen} <= {
        math.ceil(n / min(parts, n)) - less for n in (8, 5) for less in (0, 1)
    }
    assert sum(map(len, cut.seen)) == 42
    for name, value in weights(whole).items():
        torch.testing.assert_close(weights(cut)[name], value, rtol=TOLERANCE, atol=TOLERANCE)
    for ours, theirs in zip(timeless(history), timeless(expected), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-6)


def test_accumulation_is_refused_where_the_loss_compares_samples():
    message = (
        "fit: expected accumulate to be 1 for ACLTrainer, whose loss compares all images of a batch, got 2. "
        "Save memory with NTXentLoss(tile=), activation checkpointing or more processes instead."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
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

    history = train(Watched())
    for row, first in zip(history, (0, 3), strict=True):
        epoch = slice(first, first + 3)
        weighed = sum(loss * n for loss, n in zip(losses[epoch], sizes[epoch], strict=True)) / 22
        assert row["loss"] == pytest.approx(weighed, rel=1e-6)
        assert row["size"] == pytest.approx((8 * 8 + 8 * 8 + 6 * 6) / 22, rel=1e-6)


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


def test_no_gradients_are_left_over():
    learner = Separable()
    train(learner)
    assert all(parameter.grad is None for parameter in learner.parameters())


def test_frozen_weights_stay():
    learner = Separable()
    learner.model[0].requires_grad_(False)
    before = weights(learner)
    train(learner, optimizer=torch.optim.SGD([p for p in learner.parameters() if p.requires_grad], lr=0.1))
    moved = {name for name, value in weights(learner).items() if not torch.equal(value, before[name])}
    assert moved == {"model.1.weight", "model.1.bias", "model.5.weight", "model.5.bias"}


# Random numbers


def test_nothing_is_drawn_that_the_learner_does_not_draw(tmp_path):
    scramble(0)
    before = capture(CPU)
    train(Separable(), folder=tmp_path, save_every=1)
    assert same(capture(CPU), before)


def test_generators_end_where_the_draws_of_the_learner_lead(tmp_path):
    scramble(0)
    for _ in range(6):
        draw()
    expected = capture(CPU)
    scramble(0)
    train(Drawing(), folder=tmp_path, save_every=1, evaluate=lambda epoch: {"score": float(torch.rand(()))})
    assert same(capture(CPU), expected)


def test_nothing_is_seeded(tmp_path, monkeypatch):
    learner, again = Noisy(), Noisy()
    seed = torch.default_generator.initial_seed()
    for module, name in [
        (torch, "manual_seed"),
        (torch, "seed"),
        (torch.random, "manual_seed"),
        (torch.random, "seed"),
        (torch.cuda, "manual_seed"),
        (torch.cuda, "manual_seed_all"),
        (random, "seed"),
        (np.random, "seed"),
    ]:
        monkeypatch.setattr(module, name, lambda *_, name=name: pytest.fail(f"{name} was called"))
    evaluate = {"evaluate": lambda epoch: {"score": float(torch.rand(()))}, "select": "score"}
    train(learner, folder=tmp_path, save_every=2, **evaluate)
    train(again, folder=tmp_path, save_every=2, **evaluate)
    assert torch.default_generator.initial_seed() == seed


@pytest.mark.parametrize(
    "source",
    [torch.rand, lambda n: torch.tensor([random.random()] * n), lambda n: torch.tensor(np.random.rand(n))],
    ids=["torch", "python", "numpy"],
)
def test_evaluation_does_not_change_the_training(source):
    with_it, without = Noisy(), Noisy()
    scramble(0)
    train(with_it, evaluate=lambda epoch: with_it.eval() and {"score": float(source(3).sum())})
    scramble(0)
    train(without)
    assert same(weights(with_it), weights(without))


@pytest.mark.parametrize("settings", [{}, {"save_every": 1}, {"tensorboard": True}])
def test_what_is_written_does_not_change_the_training(tmp_path, settings):
    if "tensorboard" in settings:
        pytest.importorskip("tensorboard")
    scramble(0)
    written, silent = Noisy(), Noisy()
    history = train(written, folder=tmp_path, **settings)
    ours = outcome(written, history)
    scramble(0)
    assert same(ours, outcome(silent, train(silent)))


# Precision, memory format, compilation


@pytest.mark.parametrize("amp", ["bf16", "fp16"])
@pytest.mark.parametrize("mode", ["S2S", "A2S", "DS"])
def test_mixed_precision_trains_float32_weights(amp, mode):
    kinds = set()
    learner = acl(mode)
    learner.model[0].register_forward_hook(lambda module, args, out: kinds.add(out.dtype))
    before = weights(learner)
    history = train(learner, images(), amp=amp)
    assert kinds == {{"bf16": torch.bfloat16, "fp16": torch.float16}[amp]}
    assert {parameter.dtype for parameter in learner.parameters()} == {torch.float32}
    idle = ".adv." if mode == "S2S" else "nothing"
    still = {n for n, p in learner.named_parameters() if torch.equal(p, before[n]) and idle not in n}
    assert still <= {"model.0.bias"}  # the norm after it takes it away
    assert all(math.isfinite(value) for row in history for value in row.values())


def test_mixed_precision_is_off_by_default():
    kinds = set()
    learner = Noisy()
    learner.model[0].register_forward_hook(lambda module, args, out: kinds.add(out.dtype))
    train(learner)
    assert kinds == {torch.float32}


def test_fp16_gradient_that_overflows_skips_the_step_and_lowers_the_scale(tmp_path):
    learner = Noisy()
    before = weights(learner)
    learner.model[5].weight.register_hook(lambda gradient: gradient * math.inf)
    train(learner, amp="fp16", folder=tmp_path)
    assert all(torch.equal(p, before[name]) for name, p in learner.named_parameters())
    _, state = Checkpoint(tmp_path / "checkpoints").load()
    assert state["scaler"]["scale"] == 2.0 ** (16 - 6)


def test_bf16_has_no_scaler(tmp_path):
    train(Noisy(), amp="bf16", folder=tmp_path)
    assert Checkpoint(tmp_path / "checkpoints").load()[1]["scaler"] == {}


def test_weights_and_batches_are_channels_last_and_an_earlier_optimizer_still_trains_them():
    batches = []

    class Watched(Separable):
        def forward(self, images, labels):
            batches.append(images.is_contiguous(memory_format=torch.channels_last))
            return super().forward(images, labels)

    learner = Watched()
    parameters = [*learner.parameters()]
    before = weights(learner)
    train(learner, optimizer=sgd(learner))
    assert learner.model[0].weight.is_contiguous(memory_format=torch.channels_last)
    assert not learner.model[0].weight.is_contiguous()
    assert batches == [True] * 6
    assert all(old is new for old, new in zip(parameters, learner.parameters(), strict=True))
    assert not any(torch.equal(value, before[name]) for name, value in learner.named_parameters())


def test_compile_compiles_the_model_in_place(monkeypatch, tmp_path):
    compiled = []
    monkeypatch.setattr(nn.Module, "compile", lambda module, *args, **settings: compiled.append(module))
    learner, done = Separable(), Separable()
    train(learner, compile=True, folder=tmp_path)
    assert [id(module) for module in compiled] == [id(learner.model)]
    train(done, compile=True, folder=tmp_path)
    assert len(compiled) == 1


def test_nothing_is_compiled_by_default(monkeypatch):
    monkeypatch.setattr(nn.Module, "compile", lambda *args, **settings: pytest.fail("compiled"))
    train(Separable())


# What is written


def test_table_of_metrics_is_the_history(tmp_path):
    history = train(Separable(), folder=tmp_path, evaluate=lambda epoch: {"second": 2.0} if epoch == 2 else {})
    with (tmp_path / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["epoch", "step", "seconds", "lr", "loss", "accuracy", "second"]
    assert [{name: float(value) for name, value in row.items() if value} for row in rows] == history
    assert rows[0]["second"] == ""


def test_table_of_metrics_forgets_what_came_after_the_checkpoint(tmp_path):
    train(Separable(), folder=tmp_path)
    expected = (tmp_path / "metrics.csv").read_bytes()
    with (tmp_path / "metrics.csv").open("a") as file:
        file.write("3,9,,,,\n")
    train(Separable(), folder=tmp_path)
    assert (tmp_path / "metrics.csv").read_bytes() == expected


def scalars(folder):
    reading = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = reading.EventAccumulator(str(folder / "tensorboard")).Reload()
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_tensorboard_has_the_history(tmp_path):
    pytest.importorskip("tensorboard")
    history = train(Separable(), folder=tmp_path, tensorboard=True)
    shown = scalars(tmp_path)
    assert shown.keys() == history[0].keys()
    for name, points in shown.items():
        assert [step for step, _ in points] == [3, 6]
        assert [value for _, value in points] == pytest.approx([row[name] for row in history], rel=1e-6)


def test_tensorboard_is_closed_when_the_run_is_interrupted(tmp_path, monkeypatch):
    tensorboard = pytest.importorskip("torch.utils.tensorboard")
    closed = []
    real = tensorboard.SummaryWriter.close
    monkeypatch.setattr(tensorboard.SummaryWriter, "close", lambda writer: closed.append(real(writer)))
    with pytest.raises(Interrupted):
        train(Separable(), schedule=Halving(4), folder=tmp_path, tensorboard=True)
    assert closed
    assert [step for step, _ in scalars(tmp_path)["loss"]] == [3]


def test_tensorboard_is_asked_for_by_name_where_it_is_missing(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    message = (
        r"^fit: expected tensorboard to be installed, got .*\. "
        r"Install it with pip install tensorboard, or leave the argument out\.$"
    )
    with pytest.raises(RuntimeError, match=message):
        train(Separable(), folder=tmp_path, tensorboard=True)


def test_checkpoints_are_those_of_the_epochs_and_of_every_few_steps(tmp_path, monkeypatch):
    saved = []
    real = Checkpoint.save
    monkeypatch.setattr(Checkpoint, "save", lambda self, step, state: saved.append(step) or real(self, step, state))
    train(Separable(), folder=tmp_path / "epochs")
    train(Separable(), folder=tmp_path / "steps", save_every=2)
    assert saved == [3, 6, 2, 3, 4, 6]
    assert sorted(path.name for path in (tmp_path / "steps").iterdir()) == ["checkpoints", "metrics.csv"]


def test_works_without_tqdm(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "tqdm", None)
    assert len(train(Separable())) == 2
    assert capsys.readouterr() == ("", "")


def test_bar_shows_the_last_row(capsys):
    history = train(Separable())
    _, shown = capsys.readouterr()
    assert "6/6" in shown
    assert f"epoch 2, lr 0.04204, loss {history[1]['loss']:.4g}, accuracy {history[1]['accuracy']:.4g}" in shown


def test_constant_schedule_of_the_package():
    learner = Separable()
    assert [row["lr"] for row in fit(learner, labelled(), epochs=2, optimizer=sgd(learner), schedule=Constant())] == [
        0.1
    ] * 2
