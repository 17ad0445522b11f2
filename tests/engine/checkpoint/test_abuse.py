"""A checkpoint that was made to do harm is refused even where its manifest fits."""

import contextlib
import re
import zipfile

import pytest
import torch

from advcontrast.engine import Checkpoint, CheckpointCorruptError, CheckpointVersionError

from ..faults import filled, same, state
from .forgery import MALICE, claiming, forge, repacked, saved


@pytest.fixture
def checkpoint(tmp_path):
    return Checkpoint(tmp_path / "run")


def test_a_forgery_that_is_harmless_is_read(checkpoint):
    forge(checkpoint, 1, saved(state(1)))
    assert same(checkpoint.read(1), state(1))


@pytest.mark.parametrize("malice", MALICE)
def test_code_is_not_run(checkpoint, tmp_path, malice):
    forge(checkpoint, 1, malice(tmp_path / "canary"))
    with pytest.raises(CheckpointCorruptError, match=re.escape(f"a good checkpoint in {checkpoint.path(1)}, got ")):
        checkpoint.read(1)
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize("malice", MALICE[:4])
def test_the_same_bytes_do_run_code_where_they_are_trusted(tmp_path, malice):
    (tmp_path / "state.pt").write_bytes(malice(tmp_path / "canary"))
    with contextlib.suppress(RuntimeError, AttributeError):
        torch.load(tmp_path / "state.pt", weights_only=False)
    assert (tmp_path / "canary").exists()


def test_code_is_not_run_where_an_earlier_checkpoint_is_good(tmp_path):
    checkpoint = filled(tmp_path / "run", (1,))
    forge(checkpoint, 2, MALICE[2](tmp_path / "canary"))
    with pytest.warns(UserWarning, match="Falling back to step 1"):
        assert checkpoint.load()[0] == 1
    assert not (tmp_path / "canary").exists()


def test_a_bomb_is_not_unpacked(checkpoint, monkeypatch):
    monkeypatch.setattr(torch, "load", None)
    bomb = repacked(saved({"x": torch.zeros(1 << 20)}), compression=zipfile.ZIP_DEFLATED)
    assert len(bomb) < 1 << 14
    forge(checkpoint, 1, bomb)
    with pytest.raises(CheckpointCorruptError, match="got an archive that unpacks to more than its size"):
        checkpoint.read(1)


def test_a_compressed_archive_is_refused_however_small(checkpoint):
    forge(checkpoint, 1, repacked(saved({"x": torch.randn(1000)}), compression=zipfile.ZIP_DEFLATED))
    with pytest.raises(CheckpointCorruptError, match="got an archive that unpacks to more than its size"):
        checkpoint.read(1)


def test_records_that_share_their_bytes_are_refused(checkpoint):
    content = saved({"x": torch.ones(1000)})
    for record in ("data.pkl", "version", "byteorder"):
        content = claiming(content, record, 4000)
    forge(checkpoint, 1, content)
    with pytest.raises(CheckpointCorruptError, match="unpacks to more than its size"):
        checkpoint.read(1)


@pytest.mark.parametrize("value", [[1, 2], torch.ones(2), None, 3], ids=["list", "tensor", "nothing", "int"])
def test_a_state_that_is_no_dict_is_refused(checkpoint, value):
    forge(checkpoint, 1, saved(value))
    with pytest.raises(CheckpointCorruptError, match=r"^Checkpoint: expected a good checkpoint .* instead of a dict"):
        checkpoint.read(1)


def test_a_later_format_is_refused_by_name(checkpoint):
    forge(checkpoint, 1, b"whatever", version=2, novelty=[1])
    message = f"Checkpoint: expected format version 1 or older in {checkpoint.path(1)}"
    for load in (checkpoint.load, lambda: checkpoint.read(1)):
        with pytest.raises(CheckpointVersionError, match=f"^{re.escape(message)}"):
            load()


def test_an_earlier_checkpoint_does_not_stand_in_for_one_of_a_later_format(tmp_path):
    checkpoint = filled(tmp_path / "run", (1,))
    forge(checkpoint, 2, b"whatever", version=2)
    with pytest.raises(CheckpointVersionError, match="got 2"):
        checkpoint.load()


@pytest.mark.parametrize("changes", [{"step": 2}, {"bytes": -1}, {"sha256": "0" * 64}])
def test_a_sealed_manifest_that_does_not_fit_is_refused(checkpoint, changes):
    forge(checkpoint, 1, saved({}), **changes)
    with pytest.raises(CheckpointCorruptError):
        checkpoint.read(1)


def test_a_manifest_of_any_torch_is_read(checkpoint):
    forge(checkpoint, 1, saved({}), torch="9.9")
    assert checkpoint.read(1) == {}
