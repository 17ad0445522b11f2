"""Files are written into their folder only, whatever their name."""

import sys
from pathlib import Path

import pytest
import torch

from advcontrast.engine import Checkpoint
from advcontrast.evaluation import ResultCard
from tests.engine.learners import Separable, train

NAMES = [
    "../escaped",
    "../../escaped",
    "/tmp/escaped",
    "a/../../escaped",
    "a\nb",
    "=cmd()",
    "..",
    ".",
    "",
    pytest.param("a\x00b", marks=pytest.mark.skipif(sys.version_info < (3, 11), reason="its csv knows no NUL")),
    "\x1b[2J",
]


def tree(folder):
    """Return every path below a folder."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


@pytest.mark.parametrize("name", NAMES)
def test_a_metric_is_a_column_and_no_path(tmp_path, name):
    home = tmp_path / "home" / "run"
    train(Separable(), folder=home, epochs=1, evaluate=lambda epoch: {name: 1.0})
    train(Separable(), folder=tmp_path / "plain", epochs=1, evaluate=lambda epoch: {"plain": 1.0})
    assert tree(home) == tree(tmp_path / "plain")
    assert {path.name for path in tmp_path.iterdir()} == {"home", "plain"}


def test_a_metric_for_tensorboard_is_no_path_either(tmp_path):
    pytest.importorskip("tensorboard")
    home = tmp_path / "home" / "run"
    train(Separable(), folder=home, epochs=1, evaluate=lambda epoch: {"../../escaped": 1.0}, tensorboard=True)
    assert {path.name for path in tmp_path.iterdir()} == {"home"}
    assert {path.name for path in (tmp_path / "home").iterdir()} == {"run"}


@pytest.mark.parametrize("step", ["../../escaped", "/tmp/escaped", 1.5, None, -1])
def test_a_step_is_a_number_and_no_path(tmp_path, step):
    checkpoint = Checkpoint(tmp_path / "home" / "checkpoints")
    with pytest.raises((TypeError, ValueError), match="expected step to be an int >= 0"):
        checkpoint.save(step, {})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "name", ["step-../../x", "step-1", "step-0000001x", "step-²", "step--0000001", "step-00000001/.."]
)
def test_a_foreign_name_in_the_folder_is_no_checkpoint(tmp_path, name):
    (tmp_path / name.replace("/", "_")).mkdir()
    assert Checkpoint(tmp_path).steps() == []


def test_sweeping_does_not_follow_links(tmp_path):
    home, precious = tmp_path / "home", tmp_path / "precious"
    home.mkdir()
    precious.mkdir()
    (precious / "file").touch()
    (home / ".partial-00000001").symlink_to(precious)
    (home / ".discarded-00000002").symlink_to(precious / "file")
    Checkpoint(home).save(3, {"x": 1})
    assert (precious / "file").exists()
    assert {path.name for path in home.iterdir()} == {"step-00000003"}


def card(name):
    """Return a card of which every name is given."""
    correct = torch.tensor([True, False])
    words = {"settings": {name: name}, "versions": {name: name}, "corruptions": {name: 0.5}, "label_free": {name: 0.5}}
    known = {"seeds": [0], "data": name, "fingerprint": "0" * 64, "dtype": "float32"}
    return ResultCard(name=name, verdicts={name: [correct]}, **known, **words)


@pytest.mark.parametrize("name", [name for name in NAMES if name])
def test_a_card_is_written_to_its_path_whatever_it_says(tmp_path, name):
    try:
        made = card(name)
    except ValueError:
        return  # some names are refused
    (tmp_path / "home").mkdir()
    made.write(tmp_path / "home" / "card.json")
    assert tree(tmp_path) == {"home", str(Path("home", "card.json"))}
    assert ResultCard.read(tmp_path / "home" / "card.json") == made
