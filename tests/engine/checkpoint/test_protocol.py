"""Checkpoints without faults: contents, order, retention."""

import math
import os
import re
import time
from collections import OrderedDict

import pytest
import torch

from advcontrast.engine import Checkpoint, CheckpointCorruptError, CheckpointMismatchError

from ..faults import filled, leftovers, same, state


def test_a_state_comes_back_to_the_bit(tmp_path):
    filled(tmp_path, (7,))
    step, loaded = Checkpoint(tmp_path).load()
    assert step == 7
    assert same(loaded, state(7))


def test_values_that_are_not_numbers_come_back_to_the_bit(tmp_path):
    odd = torch.tensor([float("nan"), float("inf"), -0.0, 1e-45])
    Checkpoint(tmp_path).save(0, {"x": odd})
    assert torch.equal(Checkpoint(tmp_path).read(0)["x"].view(torch.int32), odd.view(torch.int32))


def test_any_mapping_comes_back_as_a_dict(tmp_path):
    Checkpoint(tmp_path).save(0, OrderedDict(b=1, a=2))
    assert Checkpoint(tmp_path).read(0) == {"b": 1, "a": 2}


def test_an_empty_state_is_a_state(tmp_path):
    Checkpoint(tmp_path).save(0, {})
    assert Checkpoint(tmp_path).load() == (0, {})


def test_a_folder_that_is_not_there_has_no_checkpoints_and_is_not_made(tmp_path):
    checkpoint = Checkpoint(tmp_path / "run")
    assert checkpoint.steps() == []
    assert checkpoint.load() is None
    assert not checkpoint.folder.exists()


@pytest.mark.parametrize(("keep", "kept"), [(1, [5]), (2, [4, 5]), (3, [3, 4, 5]), (9, [1, 2, 3, 4, 5])])
def test_the_newest_are_kept(tmp_path, keep, kept):
    checkpoint = filled(tmp_path, (1, 2, 3, 4, 5), keep=keep)
    assert checkpoint.steps() == kept
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"step-{step:08d}" for step in kept]


def test_two_are_kept_by_default(tmp_path):
    assert Checkpoint(tmp_path).keep == 2


def test_steps_are_ordered_by_number(tmp_path):
    checkpoint = filled(tmp_path, (9, 20, 100, 1_000_000_000), keep=9)
    assert checkpoint.steps() == [9, 20, 100, 1_000_000_000]
    assert checkpoint.load()[0] == 1_000_000_000


def test_a_checkpoint_is_named_by_its_step(tmp_path):
    assert Checkpoint(tmp_path).save(12, {}) == tmp_path / "step-00000012" == Checkpoint(tmp_path).path(12)


def test_a_clock_that_jumps_changes_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(time, "time", lambda: -1.0)
    checkpoint = filled(tmp_path, (1, 2))
    os.utime(checkpoint.path(1), (4e9, 4e9))
    os.utime(checkpoint.path(2), (0, 0))
    assert checkpoint.steps() == [1, 2]
    assert checkpoint.load()[0] == 2


def test_the_same_state_makes_the_same_bytes(tmp_path):
    first, second = (filled(tmp_path / name, (3,)).path(3) for name in ("a", "b"))
    for name in ("state.pt", "manifest.json"):
        assert (first / name).read_bytes() == (second / name).read_bytes()


def test_an_equal_state_may_have_keys_that_are_not_a_number(tmp_path):
    checkpoint = Checkpoint(tmp_path)
    for _ in range(2):
        checkpoint.save(1, {"x": {math.nan: 1}})


def test_an_equal_checkpoint_is_not_written_again(tmp_path):
    checkpoint = filled(tmp_path, (1,))
    before = (checkpoint.path(1) / "state.pt").stat()
    assert checkpoint.save(1, state(1)) == checkpoint.path(1)
    after = (checkpoint.path(1) / "state.pt").stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


ANOTHER = {
    "a value": {"x": torch.tensor([1.0, 3.0])},
    "the sign of zero": {"x": torch.tensor([1.0, 2.0]), "y": torch.tensor(-0.0), "z": 0.0, 1: 1},
    "the sign of a zero that is a number": {"x": torch.tensor([1.0, 2.0]), "y": torch.tensor(0.0), "z": -0.0, 1: 1},
    "the type of a key": {"x": torch.tensor([1.0, 2.0]), "y": torch.tensor(0.0), "z": 0.0, True: 1},
    "a dtype": {"x": torch.tensor([1, 2])},
    "a shape": {"x": torch.tensor([[1.0, 2.0]])},
    "a type": {"x": [1.0, 2.0]},
    "an entry more": {"x": torch.tensor([1.0, 2.0]), "y": torch.tensor(0.0), "z": 0.0, 1: 1, "more": None},
}


@pytest.mark.parametrize("other", ANOTHER)
def test_another_state_of_a_step_that_is_there_is_refused(tmp_path, other):
    checkpoint = Checkpoint(tmp_path)
    checkpoint.save(1, {"x": torch.tensor([1.0, 2.0]), "y": torch.tensor(0.0), "z": 0.0, 1: 1})
    with pytest.raises(CheckpointMismatchError, match=r"expected a step after 1, .*, got another state of step 1\."):
        checkpoint.save(1, ANOTHER[other])
    assert torch.equal(checkpoint.read(1)["x"], torch.tensor([1.0, 2.0]))
    assert leftovers(tmp_path) == []


def test_a_run_that_begins_anew_in_the_folder_of_another_is_refused(tmp_path):
    checkpoint = filled(tmp_path, (98, 99))
    with pytest.raises(CheckpointMismatchError, match=r"expected a step after 99, .*, got 1\."):
        checkpoint.save(1, state(1))
    assert checkpoint.steps() == [98, 99]


@pytest.mark.parametrize("name", ["state.pt", "manifest.json"])
def test_a_damaged_checkpoint_is_written_again(tmp_path, name):
    checkpoint = filled(tmp_path, (1, 2))
    (checkpoint.path(2) / name).write_bytes(b"damage")
    checkpoint.save(2, state(2))
    step, loaded = checkpoint.load()
    assert step == 2
    assert same(loaded, state(2))
    assert leftovers(tmp_path) == []


def test_a_step_that_is_not_there_cannot_be_read(tmp_path):
    checkpoint = filled(tmp_path, (1,))
    with pytest.raises(
        CheckpointCorruptError, match=re.escape(f"a good checkpoint in {checkpoint.path(2)}, got [Errno 2]")
    ):
        checkpoint.read(2)


@pytest.mark.parametrize("method", ["path", "read"])
@pytest.mark.parametrize(("step", "error"), [(None, TypeError), (-1, ValueError)])
def test_wrong_step_has_no_folder(tmp_path, method, step, error):
    with pytest.raises(error, match=r"^Checkpoint: expected step "):
        getattr(filled(tmp_path, (1,)), method)(step)


def test_tensors_are_written_to_the_cpu_of_the_reader(tmp_path):
    loaded = filled(tmp_path, (1,)).read(1)
    assert loaded["learner"]["weight"].device.type == "cpu"


def test_repr(tmp_path):
    assert repr(Checkpoint("/runs/a", keep=3)) == "Checkpoint('/runs/a', keep=3)"


@pytest.mark.parametrize("folder", [None, 3, b"run", ["run"]])
def test_folder_must_be_a_path(folder):
    with pytest.raises(TypeError, match=r"^Checkpoint: expected folder "):
        Checkpoint(folder)


@pytest.mark.parametrize(("keep", "error"), [(0, ValueError), (-1, ValueError), (True, TypeError), (2.0, TypeError)])
def test_wrong_keep(tmp_path, keep, error):
    with pytest.raises(error, match=r"^Checkpoint: expected keep "):
        Checkpoint(tmp_path, keep=keep)


@pytest.mark.parametrize(("step", "error"), [(-1, ValueError), (1.0, TypeError), ("1", TypeError)])
def test_wrong_step_is_refused_before_anything_is_written(tmp_path, step, error):
    with pytest.raises(error, match=r"^Checkpoint: expected step "):
        Checkpoint(tmp_path / "run").save(step, {})
    assert not (tmp_path / "run").exists()


def test_a_state_that_cannot_be_written_leaves_earlier_ones_and_is_swept_away(tmp_path):
    checkpoint = filled(tmp_path, (1,))
    with pytest.raises(TypeError, match=re.escape("expected state['x'] to be a tensor")):
        checkpoint.save(2, {"x": lambda: None})
    assert checkpoint.load()[0] == 1
    checkpoint.save(3, state(3))
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize("value", [None, 3, "ab", [1, 2]], ids=repr)
def test_a_state_that_is_no_mapping_is_refused_before_anything_is_written(tmp_path, value):
    with pytest.raises(TypeError, match=r"^Checkpoint: expected state to be a dict"):
        Checkpoint(tmp_path / "run").save(1, value)
    assert not (tmp_path / "run").exists()


def test_a_step_may_be_any_integer(tmp_path):
    numpy = pytest.importorskip("numpy")
    checkpoint = Checkpoint(tmp_path)
    checkpoint.save(numpy.int64(3), state(3))
    assert same(checkpoint.read(3), state(3))
