"""Killed at any instant of a save, nothing is lost."""

import io
import os
import shutil
import warnings
from functools import partial
from pathlib import Path

import pytest
import torch

from advcontrast import _atomic_io
from advcontrast.engine import Checkpoint

from ..faults import dying, exit_code, filled, fork, kill_everywhere, leftovers, require_recovery, state, tamper

AFTER = ("after", "half")
EVERY = ("before", *AFTER)


@pytest.fixture(autouse=True)
def _many_writes(monkeypatch):
    """Let even a small state take several writes."""
    monkeypatch.setattr(_atomic_io, "_CHUNK", 2048)


def save(step, folder):
    Checkpoint(folder).save(step, state(step))


def test_killed_in_the_first_save_ever(tmp_path):
    check = partial(require_recovery, allowed=(None, 1))
    found = kill_everywhere(tmp_path / "runs/new", partial(save, 1), check, AFTER)
    assert len(found) >= 15
    assert set(found) == {None, 1}


@pytest.mark.nightly
def test_killed_in_the_third_save_which_removes_the_first(tmp_path):
    template = filled(tmp_path / "run", (1, 2)).folder
    found = kill_everywhere(template, partial(save, 3), partial(require_recovery, allowed=(2, 3)), EVERY)
    assert len(found) >= 40
    assert set(found) == {2, 3}


@pytest.mark.parametrize(("name", "newest", "step"), [(".partial-00000003", 2, 3), (".discarded-00000001", 3, 4)])
@pytest.mark.sample(1)
def test_killed_in_a_save_that_finds_leftovers_of_an_earlier_kill(tmp_path, name, newest, step):
    template = filled(tmp_path / "run", (1, 2)).folder
    original = shutil.copytree(template, tmp_path / "original")
    for k in range(100):
        shutil.rmtree(template)
        shutil.copytree(original, template)
        assert exit_code(fork(partial(dying, partial(save, 3, template), k, "after"))) != 0
        if len(list(template.glob(f"{name}/*"))) == 2:
            break
    assert leftovers(template) == [name]
    check = partial(require_recovery, allowed=(newest, step))
    found = kill_everywhere(template, partial(save, step), check, AFTER[:1])
    assert len(found) >= 20
    assert set(found) == {newest, step}


@pytest.mark.nightly
def test_killed_while_a_damaged_checkpoint_is_replaced(tmp_path):
    checkpoint = filled(tmp_path / "run", (1, 2))
    (checkpoint.path(2) / "state.pt").write_bytes(b"")

    def check(folder):
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", r"Checkpoint: expected a good checkpoint in .*step-00000002")
            return require_recovery(folder, (1, 2))

    found = kill_everywhere(checkpoint.folder, partial(save, 2), check, AFTER[:1])
    assert len(found) >= 15
    assert set(found) == {1, 2}


class InPlace(io.RawIOBase):
    """File of ``open(path, "wb", buffering=0)`` whose writes the harness sees."""

    def __init__(self, path):
        self.descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)

    def writable(self):
        return True

    def write(self, data):
        return os.write(self.descriptor, data)


def test_writing_in_place_does_not_survive_the_same_kills(tmp_path):
    (tmp_path / "run").mkdir()
    torch.save(state(1), tmp_path / "run/state.pt")

    def is_lost(folder):
        try:
            torch.load(folder / "state.pt", weights_only=True)
        except Exception:
            return True
        return False

    def naive(folder):
        with io.BufferedWriter(InPlace(folder / "state.pt"), 2048) as file:
            torch.save(state(2), file)

    lost = kill_everywhere(tmp_path / "run", naive, is_lost, AFTER[:1])
    print(f"in place: {sum(lost)} of {len(lost)} kills lost the only checkpoint")
    assert sum(lost) > len(lost) / 2 > 1


def changes(job):
    """Return each change that the job makes, as what was done to which name; several writes to a file are one."""
    names, events = {}, []

    def around(name, call, args):
        result = call()
        if name == "open":
            names[result] = Path(args[0]).name
        else:
            event = (name, names[args[0]] if name in ("write", "fsync") else Path(args[0]).name)
            events.extend([event] if events[-1:] != [event] else [])
        return result

    with pytest.MonkeyPatch.context() as patch:
        tamper(patch, around)
        job()
    return events


def test_contents_are_on_the_disk_before_the_name_and_the_name_before_anything_is_removed(tmp_path):
    events = changes(partial(save, 3, filled(tmp_path / "run", (1, 2)).folder))
    assert events[:9] == [
        ("mkdir", ".partial-00000003"),
        ("write", "state.pt"),
        ("fsync", "state.pt"),
        ("write", "manifest.json"),
        ("fsync", "manifest.json"),
        ("fsync", ".partial-00000003"),
        ("rename", ".partial-00000003"),
        ("fsync", "run"),
        ("rename", "step-00000001"),
    ]


def test_a_checkpoint_loses_its_name_before_its_contents(tmp_path):
    events = changes(partial(save, 3, filled(tmp_path / "run", (1, 2)).folder))
    removals = [event for event in events if event[0] in ("rename", "unlink", "rmdir")]
    assert removals[1] == ("rename", "step-00000001")
    assert sorted(removals[2:4]) == [("unlink", "manifest.json"), ("unlink", "state.pt")]
    assert removals[4:] == [("rmdir", ".discarded-00000001")]
