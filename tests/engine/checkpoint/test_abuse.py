"""A checkpoint that was made to do harm is refused even where its manifest fits."""

import contextlib
import io
import re
import struct
import tracemalloc
import zipfile

import pytest
import torch

from advcontrast.engine import Checkpoint, CheckpointCorruptError, CheckpointVersionError
from advcontrast.engine.checkpoint import archive

from ..faults import filled, same, state
from . import bombs
from .forgery import MALICE, claiming, forge, repacked, saved


@pytest.fixture
def checkpoint(tmp_path):
    return Checkpoint(tmp_path / "run")


@pytest.fixture
def _unparsed(monkeypatch):
    """Let nothing be parsed."""

    def run(*args):
        raise AssertionError("parsed")

    monkeypatch.setattr(archive._Parser, "run", run)


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


@pytest.mark.parametrize("there", [0, 1, 8, 15])
def test_a_record_that_goes_beyond_the_file_is_refused(checkpoint, there):
    """The rest of the tensor would be what the memory of the process held before."""
    content = bytearray(bombs.archive(bombs.tensor(), bytes(16)))
    struct.pack_into("<I", content, content.rfind(b"archive/data/0") - 46 + 42, len(content))
    struct.pack_into("<H", content, len(content) - 2, 30 + there)  # a comment: the head of the record, and its values
    forge(checkpoint, 1, bytes(content) + bytes(30 + there))
    with pytest.raises(CheckpointCorruptError):
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


def test_a_pickle_that_is_written_by_hand_is_read(checkpoint):
    values = struct.pack("<4f", 1, 2, 3, 4)
    forge(checkpoint, 1, bombs.archive(bombs.tensor(), values))
    assert same(checkpoint.read(1), {"a": torch.tensor([1.0, 2.0, 3.0, 4.0])})


N = 1 << 34  # what is allocated for this is noticed
BOMBS = {
    "torch.Size of a bytearray": bombs.size_of_bytearray(N),
    "a bytearray": bombs.zeros("builtins bytearray", N),
    "zero bytes": bombs.zeros("__builtin__ bytes", N),
    "torch.Size again and again": bombs.repeated("torch Size", 1000),
    "bytes again and again": bombs.repeated("_codecs encode", 1000),
    "a claim of bytes": bombs.Program().code + b"\x8e" + N.to_bytes(8, "little"),
    "a claim of a bytearray": bombs.Program().code + b"\x96" + N.to_bytes(8, "little"),
    "a claim of a long int": bombs.Program().code + b"\x8b" + (1 << 30).to_bytes(4, "little"),
    "a claim of text": bombs.Program().code + b"X" + (1 << 31).to_bytes(4, "little"),
    "a claim of a frame": b"\x80\x02\x95" + N.to_bytes(8, "little") + b".",
    "a memo far away": bombs.Program().code + b"r" + (1 << 31).to_bytes(4, "little"),
    "lists": bombs.many_without_memos(10_000),
    "marks": bombs.many_marks(10_000),
    "a list that holds itself": b"\x80\x02}q\x00X\x01\x00\x00\x00aq\x01]q\x02h\x02as.",
    "tuples in a tuple as key": bombs.nested_key(3),
    "arguments again": bombs.called_again(b""),
    "arguments again, memoized": bombs.called_again(b"q\x07", 1),
    "arguments again, behind a protocol": bombs.called_again(b"\x80\x02"),
    "a storage that is claimed": bombs.tensor(numbers=N, size=(N,)),
    "a tensor that is claimed": bombs.tensor(size=(N,)),
    "an entry that repeats": bombs.tensor(size=(N,), stride=(0,)),
    "entries that overlap": bombs.tensor(size=(4, 4), stride=(0, 1)),
    "an offset": bombs.tensor(offset=1),
    "a negative stride": bombs.tensor(stride=(2**72 - 1,)),
    "a name of a file": bombs.tensor(key="../data.pkl"),
    "another storage": bombs.tensor(kind="torch.cuda FloatStorage"),
    "a class": bombs.tensor(kind="torch.nn Module"),
}


@pytest.mark.parametrize("name", BOMBS)
def test_objects_that_are_not_plain_data_are_not_built(checkpoint, name):
    content = bombs.archive(BOMBS[name], bytes(16))
    forge(checkpoint, 1, content)
    tracemalloc.start()
    try:
        with pytest.raises(CheckpointCorruptError) as caught:
            checkpoint.read(1)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    print(name, caught.value)
    assert peak < 40 * len(content) + (1 << 20)  # the second is what the check of the SHA-256 takes


STRUCTURES = {
    "lists": bombs.many(b"]", 50_000),
    "dicts": bombs.many(b"}", 50_000),
    "ordered dicts": bombs.many_made("collections OrderedDict", 50_000),
    "counters": bombs.many_made("collections Counter", 50_000),
    "numbers": bombs.many(b"J\x00\x00\x01\x00", 50_000),
    "texts": bombs.many("X\x03\x00\x00\x00€".encode(), 50_000),
}


@pytest.mark.parametrize("name", STRUCTURES)
def test_containers_take_a_small_multiple_of_the_file(checkpoint, name):
    content = bombs.archive(STRUCTURES[name])
    forge(checkpoint, 1, content)
    checkpoint.read(1)  # imports
    tracemalloc.start()
    try:
        assert len(checkpoint.read(1)["a"]) == 50_000
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    print(f"{name}: {peak / len(content):.1f} bytes for each of {len(content)}")
    assert peak < 30 * len(content) + (1 << 20)


def test_tensors_take_the_size_of_the_file_once(checkpoint):
    content = saved({"x": torch.zeros(1 << 20), "y": [torch.zeros(100)] * 3})
    forge(checkpoint, 1, content)
    tracemalloc.start()
    try:
        checkpoint.read(1)
        peak = tracemalloc.get_traced_memory()[1]  # without the tensors themselves, which Python does not see
    finally:
        tracemalloc.stop()
    assert peak < 3 << 20


@pytest.mark.parametrize("new", [False, True])
def test_data_in_front_of_an_archive_are_refused(checkpoint, new):
    buffer = io.BytesIO()
    torch.save({"x": torch.ones(3)}, buffer, _use_new_zipfile_serialization=new)
    with zipfile.ZipFile(buffer, "a", zipfile.ZIP_STORED) as archive:
        for name, record in (("archive/data.pkl", b"\x80\x02}q\x00."), ("archive/byteorder", b"little")):
            if not new:
                archive.writestr(name, record)
    content = buffer.getvalue() if not new else b"junk" + buffer.getvalue()
    forge(checkpoint, 1, content)
    with pytest.raises(CheckpointCorruptError, match="got an archive preceded by other data"):
        checkpoint.read(1)


def test_tensors_of_the_other_byte_order_are_refused(checkpoint):
    forge(checkpoint, 1, repacked(saved({"x": torch.ones(2)}), byteorder=b"big"))
    with pytest.raises(CheckpointCorruptError, match="another byte order"):
        checkpoint.read(1)


@pytest.mark.parametrize("name", ["torch.Tensor", "torch.load", "torch.nn.Parameter", "torch.storage._load_from_bytes"])
def test_no_other_name_is_looked_up(checkpoint, name):
    program = bombs.Program()
    program.name(" ".join(name.rsplit(".", 1)))
    forge(checkpoint, 1, bombs.archive(program.done()))
    with pytest.raises(CheckpointCorruptError, match=f"got the name {re.escape(name)}, which is not part of a state"):
        checkpoint.read(1)


@pytest.mark.parametrize("number", [1, 2, 3])
def test_changed_pickles_are_read_or_refused(checkpoint, tmp_path, number):
    """Each byte in turn is replaced, as by an attacker who recomputes the SHA-256."""
    content = bytearray(saved(state(number)))
    with zipfile.ZipFile(io.BytesIO(bytes(content))) as file:
        entry = file.getinfo("archive/data.pkl")
    refused = 0
    for place in range(entry.header_offset, entry.header_offset + entry.file_size + 64, 3):
        changed = content.copy()
        changed[place] ^= 1 << (place + number) % 8
        (tmp_path / "file").write_bytes(changed)
        with (tmp_path / "file").open("rb") as file:
            try:
                archive.read(file)
            except (ValueError, LookupError, TypeError, RuntimeError, zipfile.BadZipFile, struct.error):
                refused += 1
    assert refused > 20
