"""A checkpoint that was made to do harm is refused even where its manifest fits."""

import contextlib
import io
import re
import zipfile

import pytest
import torch

from advcontrast.engine import Checkpoint, CheckpointCorruptError, CheckpointVersionError

from .faults import filled, same, state
from .forgery import MALICE, claiming, forge, repacked, saved


@pytest.fixture
def checkpoint(tmp_path):
    return Checkpoint(tmp_path / "run")


@pytest.fixture
def _unparsed(monkeypatch):
    """Let nothing be parsed."""

    def load(*args, **kwargs):
        raise AssertionError("parsed")

    monkeypatch.setattr(torch, "load", load)


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


@pytest.mark.usefixtures("_unparsed")
def test_a_bomb_is_not_unpacked(checkpoint):
    bomb = repacked(saved({"x": torch.zeros(1 << 20)}), compression=zipfile.ZIP_DEFLATED)
    assert len(bomb) < 1 << 14
    forge(checkpoint, 1, bomb)
    with pytest.raises(CheckpointCorruptError, match="got an archive that unpacks to more than its size"):
        checkpoint.read(1)


@pytest.mark.usefixtures("_unparsed")
def test_a_compressed_archive_is_refused_however_small(checkpoint):
    forge(checkpoint, 1, repacked(saved({"x": torch.randn(1000)}), compression=zipfile.ZIP_DEFLATED))
    with pytest.raises(CheckpointCorruptError, match="got an archive that unpacks to more than its size"):
        checkpoint.read(1)


@pytest.mark.usefixtures("_unparsed")
@pytest.mark.parametrize("record", ["data.pkl", "data/0"])
@pytest.mark.parametrize("size", [1 << 16, 0x7FFFFFFF, 0xFFFFFFFE])
def test_a_record_that_claims_to_be_large_is_not_allocated(checkpoint, record, size):
    forge(checkpoint, 1, claiming(saved({"x": torch.ones(16)}), record, size))
    with pytest.raises(CheckpointCorruptError):
        checkpoint.read(1)


@pytest.mark.usefixtures("_unparsed")
def test_records_that_share_their_bytes_are_refused(checkpoint):
    content = saved({"x": torch.ones(1000)})
    for record in ("data.pkl", "version", "byteorder"):
        content = claiming(content, record, 4000)
    forge(checkpoint, 1, content)
    with pytest.raises(CheckpointCorruptError, match="unpacks to more than its size"):
        checkpoint.read(1)


@pytest.mark.parametrize("size", [0, 1, 63])
def test_a_record_that_claims_to_be_small_is_refused(checkpoint, size):
    forge(checkpoint, 1, claiming(saved({"x": torch.ones(16)}), "data/0", size))
    with pytest.raises(CheckpointCorruptError):
        checkpoint.read(1)


def test_a_tensor_that_claims_more_than_its_record_holds_is_refused(checkpoint):
    content = saved({"x": torch.ones(16)})
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith("data.pkl")]
        program = archive.read(name)
    assert program.count(b"K\x10") >= 2  # 16, of the storage and of the tensor
    forge(checkpoint, 1, repacked(content, data=program.replace(b"K\x10", b"J\x00\x00\x00\x10")))
    with pytest.raises(CheckpointCorruptError):
        checkpoint.read(1)


@pytest.mark.parametrize(
    ("value", "name"), [([1, 2], "list"), (torch.ones(2), "torch.float32"), (None, "NoneType"), (3, "int")]
)
def test_a_state_that_is_no_dict_is_refused(checkpoint, value, name):
    forge(checkpoint, 1, saved(value))
    message = f"expected a good checkpoint in {checkpoint.path(1)}, got a {name} instead of a dict. Delete that folder."
    with pytest.raises(CheckpointCorruptError, match=f"^Checkpoint: {re.escape(message)}$"):
        checkpoint.read(1)


def test_a_later_format_is_refused_by_name(checkpoint):
    forge(checkpoint, 1, b"whatever", version=2, novelty=[1])
    message = (
        f"Checkpoint: expected format version 1 or older in {checkpoint.path(1)}, got 2. Install a newer advcontrast."
    )
    for load in (checkpoint.load, lambda: checkpoint.read(1)):
        with pytest.raises(CheckpointVersionError, match=f"^{re.escape(message)}$"):
            load()


def test_an_earlier_checkpoint_does_not_stand_in_for_one_of_a_later_format(tmp_path):
    checkpoint = filled(tmp_path / "run", (1,))
    forge(checkpoint, 2, b"whatever", version=2)
    with pytest.raises(CheckpointVersionError, match="got 2"):
        checkpoint.load()


@pytest.mark.parametrize(
    "changes",
    [{"step": 2}, {"step": True}, {"version": 1.0}, {"bytes": -1}, {"torch": 2}, {"more": 1}, {"sha256": "0" * 64}],
)
def test_a_sealed_manifest_that_does_not_fit_is_refused(checkpoint, changes):
    forge(checkpoint, 1, saved({}), **changes)
    with pytest.raises(CheckpointCorruptError):
        checkpoint.read(1)


def test_a_manifest_of_any_torch_is_read(checkpoint):
    forge(checkpoint, 1, saved({}), torch="9.9")
    assert checkpoint.read(1) == {}
