"""Files and lines that a run writes."""

import csv
import errno
import re
import shutil
import sys
import threading

import pytest

from advcontrast.engine import Checkpoint, CheckpointError, CheckpointWriteError
from tests.engine.faults import failing
from tests.engine.learners import (
    Halving,
    Interrupted,
    Separable,
    train,
)


class Losses(Separable):
    """A classifier that notes its losses."""

    def __init__(self):
        super().__init__()
        self.losses = []

    def forward(self, *batch):
        loss, terms = super().forward(*batch)
        self.losses.append(loss.item())
        return loss, terms


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


def test_a_table_that_cannot_be_written_is_an_error_of_the_disk_with_a_remedy(tmp_path):
    message = rf"^Checkpoint: expected to write {re.escape(str(tmp_path / 'metrics.csv'))}"
    with failing("replace", 0, errno.ENOSPC), pytest.raises(CheckpointWriteError, match=message):
        train(Separable(), folder=tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoints"]
    assert Checkpoint(tmp_path / "checkpoints").steps() == [3]


@pytest.fixture
def threads_may_fail(monkeypatch):
    """Ignore errors in threads of TensorBoard, and wait until they end: afterwards, pytest blames the next test."""
    monkeypatch.setattr(threading, "excepthook", lambda error: None)
    before = set(threading.enumerate())
    yield
    for thread in set(threading.enumerate()) - before:
        thread.join()


@pytest.mark.usefixtures("threads_may_fail")
@pytest.mark.parametrize("tensorboard", [False, True])
def test_the_table_of_another_run_in_the_place_of_the_folder_is_not_overwritten(tmp_path, tensorboard):
    if tensorboard:
        pytest.importorskip("tensorboard")
    home = tmp_path / "run"

    def replace(step):
        if step == 2:
            home.rename(tmp_path / "moved")
            with Checkpoint(home / "checkpoints").locked():
                (home / "steps.csv").write_text("another run")

    settings = {"folder": home, "tensorboard": tensorboard, "log_every": 1, "after_step": replace}
    with pytest.raises(CheckpointError, match="to be the folder that this process has locked"):
        train(Separable(), **settings)
    assert (home / "steps.csv").read_text() == "another run"


@pytest.mark.usefixtures("threads_may_fail")
def test_a_tensorboard_folder_that_is_removed_does_not_hide_the_error_of_the_run(tmp_path):
    pytest.importorskip("tensorboard")

    def remove(step):
        if step == 2:
            shutil.rmtree(tmp_path / "run")

    with pytest.raises(CheckpointError, match="to be the folder that this process has locked"):
        train(Separable(), folder=tmp_path / "run", tensorboard=True, log_every=1, after_step=remove)


@pytest.mark.parametrize("name", [".metrics.csv.partial", "metrics.csv"])
def test_a_link_in_the_folder_is_not_followed(tmp_path, name):
    precious = tmp_path / "precious"
    precious.write_text("precious")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / name).symlink_to(precious)
    train(Separable(), folder=tmp_path / "run")
    assert precious.read_text() == "precious"
    assert (tmp_path / "run/metrics.csv").read_text().startswith("epoch,step")


def test_a_metric_name_that_is_not_text_is_written(tmp_path):
    train(Separable(), folder=tmp_path, evaluate=lambda epoch: {"\ud800": 1.0})
    assert "\\ud800" in (tmp_path / "metrics.csv").read_text()


def test_folder_may_be_below_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    train(Separable(), folder="~/run")
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["checkpoints", "metrics.csv"]


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
    message = r"^fit: expected tensorboard to be installed"
    with pytest.raises(RuntimeError, match=message):
        train(Separable(), folder=tmp_path, tensorboard=True)


def test_a_folder_for_tensorboard_that_cannot_be_made_is_an_error_of_the_disk(tmp_path):
    pytest.importorskip("tensorboard")
    (tmp_path / "tensorboard").touch()
    learner = Separable()
    message = r"^Checkpoint: expected to write .*tensorboard"
    with pytest.raises(CheckpointWriteError, match=message):
        train(learner, folder=tmp_path, tensorboard=True)
    assert learner.seen == []


def test_an_error_of_the_evaluation_is_not_one_of_tensorboard(tmp_path):
    pytest.importorskip("tensorboard")

    def evaluate(epoch):
        raise FileNotFoundError(errno.ENOENT, "mine")

    with pytest.raises(FileNotFoundError, match="mine"):
        train(Separable(), folder=tmp_path, tensorboard=True, evaluate=evaluate)


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
    assert len(train(Separable(), progress=True)) == 2
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("progress", [None, False])
def test_no_bar_is_drawn_into_a_file_or_a_pipe_unless_it_is_asked_for(capsys, progress):
    train(Separable(), progress=progress)
    assert capsys.readouterr() == ("", "")


def test_a_bar_is_drawn_on_a_terminal(capsys, monkeypatch):
    pytest.importorskip("tqdm")
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    train(Separable())
    assert "6/6" in capsys.readouterr().err


def test_bar_shows_the_loss_within_an_epoch(capsys, monkeypatch):
    pytest.importorskip("tqdm")
    monkeypatch.setattr("advcontrast._progress._SECONDS", 0.0)
    (first, _) = train(learner := Losses(), progress=True)
    shown = capsys.readouterr().err
    means = [sum(learner.losses[:n]) / n for n in (1, 2, 3)]
    assert all(f" loss {mean:.4g}]" in shown for mean in means)
    assert f"loss {learner.losses[3]:.4g} after epoch 1, lr {first['lr']:.4g}, loss {first['loss']:.4g}" in shown


def test_bar_reads_the_loss_now_and_then(capsys, monkeypatch):
    pytest.importorskip("tqdm")
    monkeypatch.setattr("advcontrast._progress._SECONDS", 3600.0)
    train(learner := Losses(), progress=True)
    shown = capsys.readouterr().err
    assert f" loss {learner.losses[0]:.4g}]" in shown
    assert " after " not in shown


def test_bar_shows_the_last_row(capsys):
    history = train(Separable(), progress=True)
    _, shown = capsys.readouterr()
    assert "6/6" in shown
    assert f"epoch 2, lr 0.04204, loss {history[1]['loss']:.4g}, accuracy {history[1]['accuracy']:.4g}" in shown


def test_an_epoch_is_a_line_of_the_log(caplog):
    with caplog.at_level("INFO", logger="advcontrast"):
        history = train(Separable())
    lines = [record.getMessage() for record in caplog.records]
    assert lines[0] == "SGD with lr 0.1, schedule Halving()"
    assert lines[1:] == [
        f"epoch {row['epoch']}, lr {row['lr']:.4g}, loss {row['loss']:.4g}, accuracy {row['accuracy']:.4g}"
        for row in history
    ]


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
