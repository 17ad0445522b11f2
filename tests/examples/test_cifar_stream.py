"""Pre-training on a folder that is read meanwhile."""

import pytest

from tests.data.test_folder import empty
from tests.engine.learners import images
from tests.engine.streams import write
from tests.examples.cifar import TINY, inside, training, weights

pytest.importorskip("safetensors")


@pytest.fixture
def folder(tmp_path):
    write(tmp_path / "pictures" / "some", images(30))
    write(tmp_path / "pictures", images(13, seed=1))
    return tmp_path / "pictures"


def pretrain(folder, out, *flags):
    return inside("pretrain", *TINY, "--mode", "S2S", "--stream", folder, "--out", out, *flags)


def test_a_folder_is_pre_trained_on_whatever_the_number_of_workers(folder, tmp_path):
    for workers in (0, 2):
        assert pretrain(folder, tmp_path / str(workers), "--workers", workers) == 0
    ours, theirs = weights(tmp_path / "0"), weights(tmp_path / "2")
    assert all(ours[name].equal(theirs[name]) for name in ours)
    assert training(tmp_path / "0")["stream"].startswith("ImageStream of 43 samples ")
    assert training(tmp_path / "0")["loss"] > 0


@pytest.mark.nightly
def test_another_folder_is_another_run(folder, tmp_path, capsys):
    assert pretrain(folder, tmp_path / "run", "--workers", 0, "--epochs", 2) == 0
    first = training(tmp_path / "run")["stream"]
    (folder / "000.png").rename(folder / "renamed.png")
    assert pretrain(folder, tmp_path / "other", "--workers", 0) == 0
    assert training(tmp_path / "other")["stream"] != first


def test_a_file_that_is_no_image_ends_with_one_line_or_is_skipped(folder, tmp_path, capsys):
    for i in range(100):
        (folder / f"more{i}.png").write_bytes((folder / "000.png").read_bytes())
    empty(folder / "more7.png")
    assert pretrain(folder, tmp_path / "a", "--workers", 1) == 2
    assert "pretrain.py: ImageStream: expected an image in " in capsys.readouterr().err
    with pytest.warns(UserWarning, match="It is skipped"):
        assert pretrain(folder, tmp_path / "b", "--workers", 1, "--unreadable", "skip") == 0
    assert training(tmp_path / "b")["unreadable"] > 0


def test_no_folder_ends_with_one_line(tmp_path, capsys):
    assert pretrain(tmp_path / "absent", tmp_path / "run") == 2
    assert "pretrain.py: ImageStream: expected a folder at " in capsys.readouterr().err
