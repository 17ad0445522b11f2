"""Other files in the folder of a checkpoint."""

import pytest

from advcontrast.engine import Checkpoint

from ..faults import filled, same, state


@pytest.fixture
def checkpoint(tmp_path):
    return filled(tmp_path / "run", (1, 2))


FOREIGN = [
    "step-xyz",
    "step-",
    "step--1",
    "step-00000001.bak",
    "step-\u0661",
    "step-\u00b2",
    "step-1 ",
    "steps",
    "step_00000009",
]


@pytest.mark.parametrize("name", FOREIGN)
def test_names_of_others_are_left_alone(checkpoint, name):
    (checkpoint.folder / name).mkdir()
    assert checkpoint.steps() == [1, 2]
    assert checkpoint.load()[0] == 2
    checkpoint.save(3, state(3))
    assert (checkpoint.folder / name).exists()


def test_only_foreign_names_are_no_checkpoints(tmp_path):
    for name in FOREIGN:
        (tmp_path / name).mkdir()
    assert Checkpoint(tmp_path).load() is None


def empty(path):
    for file in path.iterdir():
        file.unlink()


def put_a_picture(path):
    empty(path)
    (path / "cat.png").write_bytes(b"\x89PNG")


def cut_off(path):
    (path / "state.pt").write_bytes(b"")


@pytest.mark.parametrize("keep", [1, 2])
@pytest.mark.parametrize("damage", [empty, put_a_picture, cut_off])
def test_checkpoints_are_kept_whatever_lies_beside_them(tmp_path, keep, damage):
    checkpoint = filled(tmp_path, (1, 98, 99), keep=3)
    for step in (98, 99):
        damage(checkpoint.path(step))
    checkpoint = Checkpoint(tmp_path, keep=keep)
    checkpoint.save(2, state(2))
    assert same(checkpoint.read(2), state(2))


def test_a_number_in_another_writing_is_no_checkpoint(tmp_path):
    (tmp_path / "step-7").mkdir()
    checkpoint = filled(tmp_path, (7,), keep=1)
    assert checkpoint.steps() == [7]
    assert same(checkpoint.read(7), state(7))


def a_file_named_as_an_old_step(checkpoint):
    empty(checkpoint.path(1))
    checkpoint.path(1).rmdir()
    checkpoint.path(1).touch()


def an_old_step_that_is_a_link(checkpoint):
    checkpoint.path(1).rename(checkpoint.folder.parent / "elsewhere")
    checkpoint.path(1).symlink_to(checkpoint.folder.parent / "elsewhere")


def a_file_named_as_a_leftover(checkpoint):
    (checkpoint.folder / ".partial-notes.txt").touch()


@pytest.mark.parametrize(
    "litter", [a_file_named_as_an_old_step, an_old_step_that_is_a_link, a_file_named_as_a_leftover]
)
def test_saving_goes_on_beside_files_and_links(checkpoint, litter):
    litter(checkpoint)
    for step in (3, 4):
        checkpoint.save(step, state(step))
    assert checkpoint.steps() == [3, 4]
