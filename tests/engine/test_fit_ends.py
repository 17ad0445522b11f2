"""Processes that end, however they end."""

import os
import random
import signal
import threading
import time

import pytest
import torch

from advcontrast.engine import Checkpoint, CheckpointBusyError
from tests.engine.learners import (
    Halving,
    Interrupted,
    Noisy,
    Separable,
    last_checkpoint,
    last_step,
    same,
    scramble,
    train,
    weights,
)
from tests.processes import WARM

HANDLED = (signal.SIGTERM, signal.SIGINT)
EPOCHS = 4


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
    """Return a function that starts such a process and waits for its first step."""

    def start(folder, number=None, step=None):
        ours, theirs = WARM.Pipe(duplex=False)
        process = WARM.Process(target=train_in_a_process, args=(folder, theirs, number, step))
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
    return last_checkpoint(folder), time.monotonic() - began


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
            killed = process.exitcode == -signal.SIGKILL
            kills += killed
            seconds *= 1 if killed else 0.5  # too late: the uninterrupted run was slowed down by other processes
        while last_step(folder) < 3 * EPOCHS:
            process = processes(folder)
            process.join(60)
            assert process.exitcode == 0
        assert same(last_checkpoint(folder), expected)
    assert kills >= 3


@pytest.mark.parametrize("step", [0, 2, 7, 11])
def test_killed_in_a_given_step_and_resumed_equals_uninterrupted(processes, uninterrupted, tmp_path, step):
    process = processes(tmp_path, signal.SIGKILL, step)
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    assert last_step(tmp_path) == step
    process = processes(tmp_path)
    process.join(60)
    assert process.exitcode == 0
    assert same(last_checkpoint(tmp_path), uninterrupted[0])


def test_asked_to_terminate_exits_with_0_and_resumed_equals_uninterrupted(processes, uninterrupted, tmp_path):
    process = processes(tmp_path, signal.SIGTERM, 7)
    process.join(60)
    assert process.exitcode == 0
    assert last_step(tmp_path) == 8
    processes(tmp_path).join(60)
    assert same(last_checkpoint(tmp_path), uninterrupted[0])


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


def signalled(*signals, step=1):
    """Return a learner that gets signals in the middle of its step number ``step``, and resumes like any other."""
    learner = Separable()

    def send(*_):
        if len(learner.seen) == step:
            for number in signals:
                signal.raise_signal(number)

    learner.register_forward_pre_hook(send)
    return learner


@pytest.mark.parametrize(
    ("number", "error"), [(signal.SIGTERM, SystemExit), (signal.SIGINT, KeyboardInterrupt)], ids=["SIGTERM", "SIGINT"]
)
@pytest.mark.parametrize("step", range(6))
def test_signal_ends_the_run_after_the_step_is_saved(tmp_path, obeyed, caplog, number, error, step):
    learner, again, expected = signalled(number, step=step), Separable(), Separable()
    with pytest.raises(error) as caught:
        train(learner, folder=tmp_path)
    if error is SystemExit:
        assert caught.value.code == 0
    assert ("fit was stopped by SIGTERM and has saved a checkpoint" in caplog.text) == (error is SystemExit)
    assert len(learner.seen) == step + 1
    assert last_step(tmp_path) == step + 1
    train(again, folder=tmp_path)
    train(expected)
    assert again.seen == expected.seen[step + 1 :]
    assert same(weights(again), weights(expected))


@pytest.mark.parametrize("second", HANDLED)
@pytest.mark.parametrize("first", HANDLED)
def test_second_signal_is_obeyed_at_once(tmp_path, obeyed, first, second):
    learner = signalled(first, second, step=1)
    with pytest.raises(obeyed, match=str(int(second))):
        train(learner, folder=tmp_path)
    assert len(learner.seen) == 1
    assert last_step(tmp_path) == 0


@pytest.mark.parametrize("number", HANDLED)
def test_without_a_folder_signals_keep_their_effect(obeyed, number):
    learner = signalled(number, step=1)
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
