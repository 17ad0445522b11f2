"""What can go wrong in a run: processes that end, numbers that are not finite, arguments that make no sense."""

import math
import multiprocessing
import os
import random
import re
import signal
import threading
import time

import numpy as np
import pytest
import torch
from torch import nn

from advcontrast.engine import EMA, Checkpoint, CheckpointBusyError, fit
from tests.engine.learners import (
    Halving,
    Interrupted,
    Noisy,
    Separable,
    acl,
    images,
    same,
    scramble,
    sgd,
    timeless,
    train,
    weights,
)

HANDLED = (signal.SIGTERM, signal.SIGINT)
EPOCHS = 4


# Processes that end


def last(folder):
    step, state = Checkpoint(folder / "checkpoints").load()
    state["history"] = timeless(state["history"])
    return step, state


def train_in_a_process(folder, pipe, number, step):
    """Train, tell when the first step begins, and send oneself signal ``number`` in the middle of ``step``."""
    torch.set_num_threads(1)
    scramble(0)

    class Telling(Noisy):
        def forward(self, *batch):
            if not self.seen:
                pipe.send_bytes(b"begun")
            if len(self.seen) == step:
                os.kill(os.getpid(), number)
            return super().forward(*batch)

    train(Telling(), epochs=EPOCHS, folder=folder, save_every=1)


@pytest.fixture(scope="module")
def processes():
    """Return a function that starts such a process and waits for its first step.

    A server imports once what all of them need, and forks; the process of the tests has threads and must not.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.engine.test_fit_faults", "torch._dynamo", "tqdm"])

    def start(folder, number=None, step=None):
        ours, theirs = context.Pipe(duplex=False)
        process = context.Process(target=train_in_a_process, args=(folder, theirs, number, step))
        process.start()
        theirs.close()
        with ours:
            assert ours.poll(60)  # or it has ended
        return process

    return start


@pytest.fixture(scope="module")
def uninterrupted(processes, tmp_path_factory):
    """Return the last checkpoint of a run in a process of its own, and the seconds it took."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    process = processes(folder)
    began = time.monotonic()
    process.join(60)
    assert process.exitcode == 0
    return last(folder), time.monotonic() - began


def test_killed_at_random_moments_and_resumed_equals_uninterrupted(processes, uninterrupted, tmp_path):
    expected, seconds = uninterrupted
    kills = 0
    for number in range(3):
        folder, moments = tmp_path / str(number), random.Random(number)
        for _ in range(4):
            process = processes(folder)
            time.sleep(moments.uniform(0, 0.5 * seconds))
            process.kill()
            process.join(60)
            kills += process.exitcode == -signal.SIGKILL
        while last_step(folder) < 3 * EPOCHS:
            process = processes(folder)
            process.join(60)
            assert process.exitcode == 0
        assert same(last(folder), expected)
    assert kills >= 3


def last_step(folder):
    return max(Checkpoint(folder / "checkpoints").steps(), default=0)


@pytest.mark.parametrize("step", [0, 2, 7, 11])
def test_killed_in_a_given_step_and_resumed_equals_uninterrupted(processes, uninterrupted, tmp_path, step):
    process = processes(tmp_path, signal.SIGKILL, step)
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    assert last_step(tmp_path) == step
    process = processes(tmp_path)
    process.join(60)
    assert process.exitcode == 0
    assert same(last(tmp_path), uninterrupted[0])


def test_asked_to_terminate_exits_with_0_and_resumed_equals_uninterrupted(processes, uninterrupted, tmp_path):
    process = processes(tmp_path, signal.SIGTERM, 7)
    process.join(60)
    assert process.exitcode == 0
    assert last_step(tmp_path) == 8
    processes(tmp_path).join(60)
    assert same(last(tmp_path), uninterrupted[0])


@pytest.fixture
def obeyed():
    """Replace the handlers of both signals by one that raises, and put them back."""

    class Obeyed(BaseException):
        pass

    def obey(number, frame):
        raise Obeyed(number)

    before = [signal.signal(number, obey) for number in HANDLED]
    yield Obeyed
    ours = [signal.signal(number, handler) for number, handler in zip(HANDLED, before, strict=True)]
    assert ours == [obey, obey], "the handlers were not put back"


class Signalled(Separable):
    """Gets signals in the middle of its step number ``step``."""

    def __init__(self, *signals, step=1):
        super().__init__()
        self.signals, self.step = signals, step

    def forward(self, *batch):
        if len(self.seen) == self.step:
            for number in self.signals:
                signal.raise_signal(number)
        return super().forward(*batch)


@pytest.mark.parametrize(
    ("number", "error"), [(signal.SIGTERM, SystemExit), (signal.SIGINT, KeyboardInterrupt)], ids=["SIGTERM", "SIGINT"]
)
@pytest.mark.parametrize("step", range(6))
def test_signal_ends_the_run_after_the_step_is_saved(tmp_path, obeyed, number, error, step):
    learner, again, expected = Signalled(number, step=step), Separable(), Separable()
    with pytest.raises(error) as caught:
        train(learner, folder=tmp_path)
    if error is SystemExit:
        assert caught.value.code == 0
    assert len(learner.seen) == step + 1
    assert last_step(tmp_path) == step + 1
    train(again, folder=tmp_path)
    train(expected)
    assert again.seen == expected.seen[step + 1 :]
    assert same(weights(again), weights(expected))


@pytest.mark.parametrize("second", HANDLED)
@pytest.mark.parametrize("first", HANDLED)
def test_second_signal_is_obeyed_at_once(tmp_path, obeyed, first, second):
    learner = Signalled(first, second, step=1)
    with pytest.raises(obeyed, match=str(int(second))):
        train(learner, folder=tmp_path)
    assert len(learner.seen) == 1
    assert last_step(tmp_path) == 0


@pytest.mark.parametrize("number", HANDLED)
def test_without_a_folder_signals_keep_their_effect(obeyed, number):
    learner = Signalled(number, step=1)
    with pytest.raises(obeyed):
        train(learner)
    assert len(learner.seen) == 1


def test_handlers_are_put_back_after_a_run(tmp_path, obeyed):
    before = [*map(signal.getsignal, HANDLED)]
    train(Separable(), folder=tmp_path)
    assert [*map(signal.getsignal, HANDLED)] == before


def test_handlers_are_put_back_after_an_error(tmp_path, obeyed):
    before = [*map(signal.getsignal, HANDLED)]
    with pytest.raises(Interrupted):
        train(Separable(), schedule=Halving(2), folder=tmp_path)
    assert [*map(signal.getsignal, HANDLED)] == before


def test_in_another_thread_signals_keep_their_effect(tmp_path):
    inside, history = [], []

    class Watched(Separable):
        def forward(self, *batch):
            inside.append([*map(signal.getsignal, HANDLED)])
            return super().forward(*batch)

    before = [*map(signal.getsignal, HANDLED)]
    thread = threading.Thread(target=lambda: history.extend(train(Watched(), folder=tmp_path)))
    thread.start()
    thread.join()
    assert len(history) == 2
    assert inside == [before] * 6


def test_handlers_that_python_does_not_know_become_the_default(tmp_path, monkeypatch):
    before = [*map(signal.getsignal, HANDLED)]
    with monkeypatch.context() as patch:
        patch.setattr(signal, "getsignal", lambda number: None)
        train(Separable(), folder=tmp_path)
    after = [signal.signal(number, handler) for number, handler in zip(HANDLED, before, strict=True)]
    assert after == [signal.SIG_DFL, signal.SIG_DFL]


def test_folder_in_use_is_refused(tmp_path):
    learner = Separable()
    with (
        Checkpoint(tmp_path / "checkpoints").locked(),
        pytest.raises(CheckpointBusyError, match=rf"to be free, got process {os.getpid()} on "),
    ):
        train(learner, folder=tmp_path)
    assert learner.seen == []


def test_folder_is_free_again_after_an_error(tmp_path):
    with pytest.raises(Interrupted):
        train(Separable(), schedule=Halving(2), folder=tmp_path)
    assert len(train(Separable(), folder=tmp_path)) == 2


# Numbers that are not finite


class Spoilt(Noisy):
    """Has a loss or a gradient that is not finite in its step number ``step``."""

    def __init__(self, what, value, step):
        super().__init__()
        self.what, self.value, self.step = what, value, step
        self.before = []

    def forward(self, *batch):
        self.before.append({name: p.detach().clone() for name, p in self.named_parameters()})
        loss, terms = super().forward(*batch)
        if len(self.seen) == self.step + 1:
            if self.what == "gradient":
                loss.register_hook(lambda gradient: gradient * self.value)
            else:
                loss = loss * self.value
        return loss, terms


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize(("what", "expected"), [("loss", "a finite loss"), ("gradient", "finite gradients")])
@pytest.mark.parametrize("step", [0, 1, 3])
def test_what_is_not_finite_stops_the_run_before_the_weights_are_hurt(tmp_path, what, expected, value, step):
    learner, again = Spoilt(what, value, step), Noisy()
    message = (
        rf"^fit: expected {expected}, got (nan|inf) in step {step + 1}. "
        r"Lower the learning rate, or look for a division by zero; the last checkpoint is good.$"
    )
    scramble(0)
    with pytest.raises(RuntimeError, match=message):
        train(learner, folder=tmp_path, save_every=1)
    for name, parameter in learner.named_parameters():
        assert torch.equal(parameter, learner.before[step][name])
    assert last_step(tmp_path) == step
    train(again, folder=tmp_path)
    assert all(parameter.isfinite().all() for parameter in again.parameters())


def test_loss_that_is_not_finite_in_one_part_of_a_batch_stops_the_run():
    learner = Spoilt("loss", math.nan, 3)
    with pytest.raises(RuntimeError, match=r"^fit: expected a finite loss, got nan in step 2. "):
        train(learner, accumulate=2)
    for name, parameter in learner.named_parameters():
        assert torch.equal(parameter, learner.before[3][name])


def test_run_goes_on_in_memory_after_a_step_that_failed(tmp_path):
    expected, learner = Noisy(), Spoilt("gradient", math.inf, 4)
    optimizer = sgd(learner)
    scramble(0)
    train(expected)
    scramble(0)
    with pytest.raises(RuntimeError, match=r"^fit: expected finite gradients, got "):
        train(learner, optimizer=optimizer, folder=tmp_path, save_every=1)
    train(learner, optimizer=optimizer, folder=tmp_path)  # the spoilt step was a matter of the moment
    assert same(weights(learner), weights(expected))


def test_where_values_are_not_read_at_once_a_spoilt_checkpoint_is_not_written(tmp_path, monkeypatch):
    monkeypatch.setattr("advcontrast.engine.run.readable", lambda tensor: False)
    message = "^fit: expected a finite loss, got nan in the steps before 4. Lower the learning rate, or "
    with pytest.raises(RuntimeError, match=message):
        train(Spoilt("loss", math.nan, 3), folder=tmp_path, save_every=1)
    assert last_step(tmp_path) == 3


def test_where_values_are_not_read_at_once_the_row_of_a_spoilt_epoch_is_not_written(tmp_path, monkeypatch):
    monkeypatch.setattr("advcontrast.engine.run.readable", lambda tensor: False)
    with pytest.raises(RuntimeError, match=r"^fit: expected a finite loss, got nan in the steps before 3. "):
        train(Spoilt("loss", math.nan, 0), folder=tmp_path, evaluate=lambda epoch: pytest.fail("evaluated"))
    assert last_step(tmp_path) == 0


def test_spoilt_gradient_never_reaches_a_checkpoint_even_where_values_are_not_read_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr("advcontrast.engine.run.readable", lambda tensor: False)
    with pytest.raises(RuntimeError, match=r"^fit: expected "):
        train(Spoilt("gradient", math.nan, 3), folder=tmp_path, save_every=1)
    assert all(value.isfinite().all() for value in last(tmp_path)[1]["learner"].values())


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
    with pytest.raises(
        ValueError, match=r"^fit: expected data to be finite, got 2 values that are not. Clean the data.$"
    ):
        train(learner, data)
    assert learner.seen == []
    assert same(weights(learner), before)


# Arguments

SHAPES = "Pass the images as a tensor [N, C, H, W], and labels beside them as (images, labels)."


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        (
            (images(8), torch.arange(7)),
            ValueError,
            f"expected data of one length, at least 2, got lengths [8, 7]. {SHAPES}",
        ),
        (images(0), ValueError, f"expected data of one length, at least 2, got lengths [0]. {SHAPES}"),
        (images(1), ValueError, f"expected data of one length, at least 2, got lengths [1]. {SHAPES}"),
        ([], ValueError, f"expected data of one length, at least 2, got lengths []. {SHAPES}"),
        (torch.tensor(3), ValueError, f"expected data of one length, at least 2, got lengths [0]. {SHAPES}"),
        (np.zeros((4, 3, 8, 8)), TypeError, f"expected data to be tensors, got ndarray. {SHAPES}"),
        ((images(4), [0, 1, 2, 3]), TypeError, f"expected data to be tensors, got list. {SHAPES}"),
        ("images", TypeError, f"expected data to be tensors, got str. {SHAPES}"),
        (None, TypeError, f"expected data to be tensors, got NoneType. {SHAPES}"),
        (7, TypeError, f"expected data to be tensors, got int. {SHAPES}"),
    ],
)
def test_wrong_data(data, error, message):
    learner = Separable()
    with pytest.raises(error, match=f"^{re.escape('fit: ' + message)}$"):
        fit(learner, data, epochs=1)
    assert learner.seen == []


BATCH = "A batch has two samples at least a process."


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"batch_size": 1}, ValueError, f"expected batch_size to be an int >= 2, got 1. {BATCH}"),
        ({"batch_size": 8.0}, TypeError, f"expected batch_size to be an int >= 2, got float. {BATCH}"),
        ({"epochs": 0}, ValueError, "expected epochs to be an int >= 1, got 0. Pass a number of at least 1."),
        ({"epochs": True}, TypeError, "expected epochs to be an int >= 1, got bool. Pass a number of at least 1."),
        ({"accumulate": 0}, ValueError, "expected accumulate to be an int >= 1, got 0. Pass a number of at least 1."),
        ({"seed": -1}, ValueError, "expected seed to be an int >= 0, got -1. Pass any number from 0."),
        ({"seed": 0.5}, TypeError, "expected seed to be an int >= 0, got float. Pass any number from 0."),
        (
            {"amp": "fp8"},
            ValueError,
            "expected amp to be one of 'off', 'bf16', 'fp16', got 'fp8'. Choose one of the 3.",
        ),
        (
            {"amp": "BF16"},
            ValueError,
            "expected amp to be one of 'off', 'bf16', 'fp16', got 'BF16'. Did you mean 'bf16'.",
        ),
        (
            {"amp": True},
            TypeError,
            "expected amp to be one of 'off', 'bf16', 'fp16', got bool. Pass amp as a string.",
        ),
        ({"compile": 1}, TypeError, "expected compile to be True or False, got 1. True compiles learner.model."),
        (
            {"tensorboard": "logs"},
            TypeError,
            "expected tensorboard to be True or False, got 'logs'. True writes folder/tensorboard.",
        ),
        ({"save_every": 5}, ValueError, "expected a folder to write to, got None. Pass folder=."),
        ({"tensorboard": True}, ValueError, "expected a folder to write to, got None. Pass folder=."),
        (
            {"save_every": 0},
            ValueError,
            "expected save_every to be an int >= 1, got 0. Pass a number of steps, or None.",
        ),
    ],
)
def test_wrong_argument(settings, error, message):
    learner = Separable()
    before = weights(learner)
    with pytest.raises(error, match=f"^{re.escape('fit: ' + message)}$"):
        train(learner, **settings)
    assert learner.seen == []
    assert same(weights(learner), before)
    assert not learner.model[0].weight.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("learner", [nn.Identity(), Separable().requires_grad_(False)])
def test_learner_without_parameters_to_train_is_refused(learner):
    message = "fit: expected a learner with parameters to train, got none. Unfreeze what is to be trained."
    with pytest.raises(ValueError, match=f"^{message}$"):
        fit(learner, images(), epochs=1)


def test_learner_that_is_no_module_is_refused():
    with pytest.raises(TypeError, match=r"^fit: expected model to be an nn.Module, got function. "):
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
    with pytest.raises((AttributeError, ValueError, TypeError), match="model"):
        train(learner, images(), **settings)
    assert same(weights(learner), before)


@pytest.mark.parametrize("length", [10, 21, 23, 40])
def test_groups_of_another_length_are_refused(length):
    learner = Separable()
    with pytest.raises(ValueError, match=rf"^\w+: expected groups .*{length}.*"):
        train(learner, groups=torch.arange(length) % 2)
    assert learner.seen == []


@pytest.mark.parametrize("groups", [torch.zeros(22), [0] * 22, torch.zeros(22, 1, dtype=torch.long)])
def test_groups_of_a_wrong_kind_are_refused(groups):
    learner = Separable()
    with pytest.raises((TypeError, ValueError), match=r"^\w+: expected groups "):
        train(learner, groups=groups)
    assert learner.seen == []


def test_metric_to_select_by_that_nobody_reports():
    message = (
        "fit: expected a metric 'score' to select by, got ['epoch', 'step', 'seconds', 'lr', 'loss', 'accuracy', "
        "'robust']. Let evaluate return it, after the first epoch at least."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        train(Separable(), select="score", evaluate=lambda epoch: {"robust": 0.5})


@pytest.mark.parametrize("returned", [None, 0.5, [0.5], {"score": None}, {"score": "high"}, {"score": torch.ones(2)}])
def test_evaluation_that_returns_something_else_is_named(returned):
    with pytest.raises((TypeError, ValueError), match=r"^fit: expected evaluate to return .*, got .*\."):
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
    with pytest.raises((TypeError, ValueError), match=r"^fit: expected .*, got .*\."):
        train(learner)
    assert same(weights(learner), before)


def test_nan_metric_is_never_the_best():
    learner, kept = Separable(), []

    def score(epoch):
        kept.append(weights(learner))
        return {"score": math.nan if epoch == 1 else 1.0}

    train(learner, evaluate=score, select="score")
    assert same(weights(learner), kept[1])


def test_error_in_an_evaluation_reaches_the_caller_and_costs_no_more_than_the_epoch(tmp_path):
    learner = Separable()
    with pytest.raises(ZeroDivisionError):
        train(learner, evaluate=lambda epoch: {"score": 1 / (2 - epoch)}, folder=tmp_path, save_every=2)
    assert last_step(tmp_path) == 4


def test_out_of_memory_reaches_the_caller_and_leaves_a_good_checkpoint(tmp_path):
    class Full(acl().__class__):
        def forward(self, *batch):
            if last_step(tmp_path) == 4:
                raise torch.OutOfMemoryError("out of memory")
            return super().forward(*batch)

    learner = acl()
    learner.__class__ = Full
    with pytest.raises(torch.OutOfMemoryError):
        train(learner, images(), folder=tmp_path, save_every=1)
    again = acl()
    train(again, images(), folder=tmp_path)
    assert last_step(tmp_path) == 6
