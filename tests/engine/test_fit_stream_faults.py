"""Workers that die or hang while they read the data of a run."""

import itertools
import os
import re
import select
import signal
import textwrap
import threading
import time
from pathlib import Path

import pytest
import torch

from advcontrast._atomic_io import _Sink
from advcontrast.data.stream import ImageStream
from advcontrast.engine import Checkpoint
from advcontrast.engine.batches import DataReader, Plan, WorkerSource
from advcontrast.engine.checkpoint import CheckpointWriteError
from tests.engine.faults import exit_code, fork
from tests.engine.learners import (
    images,
    last_checkpoint,
    same,
    train,
)
from tests.engine.streams import Misbehaving, Pictures, nobody_left, trained, write
from tests.processes import run

ROOT = Path(__file__).parents[2]


@pytest.fixture
def folder(tmp_path):
    return write(tmp_path / "pictures", images())


@pytest.fixture(autouse=True)
def _nobody_left():
    with nobody_left():
        yield


# Workers that die or hang.


def kill():
    os.kill(os.getpid(), signal.SIGKILL)


def bus():
    signal.signal(signal.SIGBUS, signal.SIG_DFL)
    os.kill(os.getpid(), signal.SIGBUS)


def leave():
    os._exit(0)


def fail():
    os._exit(3)


LOST = "fit: expected batches from the data-loading workers, got DataLoader"


@pytest.mark.parametrize("deed", [kill, bus, fail, leave])
@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.sample(3)
def test_a_worker_that_dies_is_named_and_the_last_checkpoint_is_good(tmp_path, deed, workers):
    data = Misbehaving(5, deed)
    with pytest.raises(RuntimeError, match=rf"^{LOST} worker \(pid.* while they read sample 5\. Check"):
        trained(DataReader(data, workers=workers, timeout=30, prefetch=1), folder=tmp_path, save_every=1)
    data.at = None
    assert same(trained(DataReader(data, workers=workers), folder=tmp_path)[0], trained(images())[0])


def test_a_death_that_interrupts_a_save_is_named_too(folder, monkeypatch):
    def interrupted(*args, **kwargs):
        raise CheckpointWriteError("Checkpoint: expected to write") from RuntimeError("DataLoader worker (pid 1) died.")

    monkeypatch.setattr(Checkpoint, "save", interrupted)
    reader = DataReader(ImageStream(folder, size=8), workers=1)
    with pytest.raises(RuntimeError, match=rf"^{LOST} worker \(pid 1\) died while they read"):
        trained(reader, folder=folder.parent / "run", save_every=1)


def kill_and_wait(worker):
    """Kill a worker, and run until the signal of its death arrives."""
    os.kill(worker, signal.SIGKILL)
    end = time.monotonic() + 20
    while time.monotonic() < end:
        sum(range(1000))


class Assassin(Pictures):
    """Kills a worker in the middle of a step."""

    def forward(self, x):
        if len(self.seen) == 2:
            kill_and_wait(self.data.reader.item())
        return super().forward(x)


class Known(Misbehaving):
    """Images, whose reader gives its process number."""

    def __init__(self):
        super().__init__(None, None)
        self.reader = torch.zeros((), dtype=torch.int64).share_memory_()

    def __getitem__(self, index):
        self.reader.fill_(os.getpid())
        return super().__getitem__(index)


def test_a_worker_killed_while_the_learner_learns_is_noticed_at_once(tmp_path):
    learner = Assassin()
    learner.data = Known()
    with pytest.raises(RuntimeError, match=rf"^{LOST} worker \(pid.* is killed by signal: Killed while they read"):
        train(learner, DataReader(learner.data, workers=2), folder=tmp_path, save_every=1)
    assert Checkpoint(tmp_path / "checkpoints").steps() == [1, 2]


@pytest.mark.parametrize("call", [1, 5, 40])
def test_a_worker_killed_while_torch_save_writes_is_named(tmp_path, monkeypatch, call):
    data, calls, write = Known(), itertools.count(1), _Sink.write

    def written(sink, content):
        if next(calls) == call:
            kill_and_wait(data.reader.item())
        return write(sink, content)

    monkeypatch.setattr(_Sink, "write", written)
    with pytest.raises(RuntimeError, match=rf"^{LOST} worker \(pid.* is killed by signal: Killed while they read"):
        trained(DataReader(data, workers=2), folder=tmp_path, save_every=1)


class Sleeping(Misbehaving):
    """Images, each of which announces itself and then takes half a minute."""

    def __init__(self, pipe):
        super().__init__(None, None)
        self.pipe = pipe

    def __getitem__(self, index):
        os.write(self.pipe, b"0")
        time.sleep(30)
        return super().__getitem__(index)


def test_workers_end_in_the_middle_of_a_sample_when_the_run_is_killed():
    reading, writing = os.pipe()  # it is at its end when the last worker is

    def job():
        plan = Plan(samples=22, batch_size=1, seed=0, groups=None)
        data = WorkerSource(DataReader(Sleeping(writing), workers=2))
        with data.batches(plan, torch.device("cpu"), epochs=range(1), skip=0) as batches:
            next(batches)

    pid = fork(job)
    os.close(writing)
    assert os.read(reading, 1) + os.read(reading, 1) == b"00"
    os.kill(pid, signal.SIGKILL)
    exit_code(pid)
    assert select.select([reading], [], [], 20)[0]
    assert os.read(reading, 1) == b""
    os.close(reading)


def hang():
    time.sleep(1000)


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.sample(1)
def test_a_worker_that_hangs_is_ended_and_what_it_waited_for_is_named(tmp_path, folder, workers, monkeypatch):
    monkeypatch.setattr("advcontrast.data.stream.decode", Hanging(folder / "005.png"))
    data = ImageStream(folder, size=8)
    waiting = re.escape(f"sample 5 ({str(folder / '005.png')!r})")
    with pytest.raises(RuntimeError, match=rf"^{LOST} timed out after 10\.0 seconds while they read {waiting}\."):
        trained(DataReader(data, workers=workers, timeout=10, prefetch=1), folder=tmp_path, save_every=1)
    monkeypatch.undo()
    assert same(trained(DataReader(data, workers=workers), folder=tmp_path)[0], trained(images())[0])


class Hanging:
    """Decodes, save for one file, of which it waits for ever."""

    def __init__(self, path):
        from advcontrast.data.decoding import decode

        self.path, self.decode = path, decode

    def __call__(self, owner, path, size):
        if path == self.path:
            hang()
        return self.decode(owner, path, size)


class Slow(Misbehaving):
    def __getitem__(self, index):
        time.sleep(0.15)
        return super().__getitem__(index)


@pytest.mark.nightly
def test_a_slow_disk_only_slows():
    # A batch takes longer than the timeout, and no sample does.
    settings = {"batch_size": 22, "epochs": 1}
    slow = DataReader(Slow(None, None), workers=1, timeout=2.5, prefetch=1)
    assert same(trained(slow, **settings)[0], trained(images(), **settings)[0])


@pytest.mark.parametrize("workers", [0, 2])
def test_an_error_of_the_data_set_is_named_with_its_sample(workers):
    def break_():
        raise KeyError("five")

    message = "fit: expected sample 5 of Misbehaving"
    with pytest.raises(RuntimeError, match=f"^{message}") as caught:
        trained(DataReader(Misbehaving(5, break_), workers=workers))
    assert "in break_" in str(caught.value.__cause__)


def test_an_error_of_the_learner_stays_what_it_was(folder):
    class Broken(Pictures):
        def forward(self, x):
            raise RuntimeError("mine")

    with pytest.raises(RuntimeError, match=r"^mine$"):
        train(Broken(), ImageStream(folder, size=8))


def test_an_error_after_the_last_batch_stays_what_it_was(folder):
    def evaluate(epoch):
        raise RuntimeError("mine")

    with pytest.raises(RuntimeError, match=r"^mine$"):
        train(Pictures(), ImageStream(folder, size=8), epochs=1, evaluate=evaluate)


@pytest.mark.slow
def test_a_signal_to_all_processes_is_obeyed_by_the_one_that_saves(tmp_path):
    """As a batch system sends it, or Ctrl-C in a terminal."""
    script = f"""
        import os, signal, sys
        os.setsid()
        sys.path.insert(0, {str(ROOT)!r})
        from advcontrast.engine.batches import DataReader
        from tests.engine.learners import train
        from tests.engine.streams import Misbehaving, Pictures

        class Signalled(Pictures):
            def forward(self, x):
                if len(self.seen) == 3:
                    os.killpg(0, signal.SIGTERM)
                return super().forward(x)

        train(Signalled(), DataReader(Misbehaving(None, None), workers=2), epochs=9, folder={str(tmp_path)!r})
    """
    done = run("-c", textwrap.dedent(script))
    assert done.returncode == 0, done.stderr
    assert Checkpoint(tmp_path / "checkpoints").steps() == [3, 4]


def test_ctrl_c_leaves_no_process_behind(folder, tmp_path):
    class Signalled(Pictures):
        def forward(self, x):
            if len(self.seen) == 3:
                signal.raise_signal(signal.SIGINT)
            return super().forward(x)

    with pytest.raises(KeyboardInterrupt):
        train(Signalled(), DataReader(ImageStream(folder, size=8), workers=2), folder=tmp_path)
    assert last_checkpoint(tmp_path)[0] == 4


@pytest.mark.slow
@pytest.mark.nightly
def test_it_works_in_a_thread_and_for_processes_that_are_spawned(folder, tmp_path):
    script = f"""
        import multiprocessing, sys, threading
        sys.path.insert(0, {str(ROOT)!r})
        import torch
        from advcontrast.data.stream import ImageStream
        from advcontrast.engine.batches import DataReader
        from tests.engine.learners import images, same, train, weights
        from tests.engine.streams import Misbehaving, Pictures

        def main():
            torch.set_num_threads(1)
            multiprocessing.set_start_method("spawn")
            learner, expected = Pictures(), Pictures()
            train(expected, images(), epochs=1)
            data = DataReader(ImageStream({str(folder)!r}, size=8), workers=1)
            thread = threading.Thread(target=train, args=(learner, data), kwargs=dict(epochs=1))
            thread.start()
            thread.join()
            assert same(weights(learner), weights(expected))
            try:
                train(Pictures(), DataReader(Misbehaving(1, lambda: 0), workers=1))
            except RuntimeError as error:
                print(error)

        if __name__ == "__main__":
            main()
    """
    (tmp_path / "script.py").write_text(textwrap.dedent(script))
    done = run(tmp_path / "script.py")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("fit: expected Misbehaving to start in 1 worker processes")
    assert done.stdout.endswith(
        "Define its classes and functions in a module (for pickle), or pass DataReader workers=0.\n"
    )


@pytest.mark.nightly
def test_a_worker_that_dies_is_noticed_in_a_thread_too():
    found = []

    def work():
        try:
            train(Pictures(), DataReader(Misbehaving(5, kill), workers=2, timeout=5))
        except RuntimeError as error:
            found.append(str(error))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join(60)
    assert found
    assert found[0].startswith(LOST)
