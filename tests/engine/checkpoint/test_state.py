"""Plain states are restored unchanged; all others are refused before anything is written."""

import errno
import os
import re
from collections import Counter, OrderedDict, defaultdict
from enum import Enum
from pathlib import Path

import pytest
import torch
from torch import nn

from advcontrast import _atomic_io
from advcontrast.engine import Checkpoint, CheckpointError, CheckpointWriteError, fit

from ..faults import filled, leftovers, same, state
from ..learners import Separable, labelled

DTYPES = [
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2),
    *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.uint16, torch.uint32, torch.uint64),
    *(torch.bool, torch.complex64, torch.complex128),
]


def there_and_back(folder, value):
    Checkpoint(folder).save(1, {"x": value})
    return Checkpoint(folder).read(1)["x"]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_tensors_of_every_dtype_are_restored(tmp_path, dtype):
    x = torch.tensor([0, 1, 1, 0]).to(dtype)
    found = there_and_back(tmp_path, x)
    assert found.dtype == dtype
    assert found.view(torch.uint8).tolist() == x.view(torch.uint8).tolist()


LAYOUTS = {
    "a scalar": torch.tensor(3.0),
    "an empty one": torch.empty(0, 5),
    "a slice": torch.arange(10.0)[2:8:2],
    "a transposed one": torch.arange(6.0).view(2, 3).T,
    "channels last": torch.arange(96.0).view(2, 3, 4, 4).to(memory_format=torch.channels_last),
    "one that wants a gradient": torch.ones(2, requires_grad=True),
    "a parameter": nn.Parameter(torch.ones(2)),
    "a frozen parameter": nn.Parameter(torch.ones(2), requires_grad=False),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_tensors_of_every_layout_are_restored(tmp_path, name):
    x = LAYOUTS[name]
    found = there_and_back(tmp_path, x)
    assert same(found, x)
    assert (found.stride(), found.requires_grad) == (x.stride(), x.requires_grad)


@pytest.mark.parametrize("x", [torch.ones(1, 3).expand(100, 3), torch.ones(2, dtype=torch.complex64).conj()])
def test_a_tensor_without_values_of_its_own_is_written_out(tmp_path, x):
    assert torch.equal(there_and_back(tmp_path, x), x)


def test_tensors_that_share_their_values_still_do(tmp_path):
    x = torch.arange(4.0)
    first, second, part = there_and_back(tmp_path, [x, x, x[1:]])
    first.zero_()
    assert second.tolist() == [0, 0, 0, 0]
    assert part.tolist() == [0, 0, 0]


VALUES = [
    *(0, 255, 256, 65536, -1, 2**31, -(2**40), 2**1999, -(2**1999), True, False, None, 1e-320, float("inf")),
    *("", "ä", "日本", "\ud800", b"\x00\xff", (), (1, (2, [3])), [], {}, OrderedDict(b=1, a=2), Counter(b=1)),
    *(torch.Size([2, 3]), torch.float16, torch.device("cpu"), torch.device("cuda", 1)),
    {1: 2, 2.5: 3, None: 4, (1, "a"): 5, False: 6},
]


@pytest.mark.parametrize("value", VALUES, ids=lambda value: ascii(value)[:20])
def test_plain_values_are_restored(tmp_path, value):
    found = there_and_back(tmp_path, value)
    assert found == value
    assert type(found) is type(value)


def test_a_container_may_be_in_several_places(tmp_path):
    row = {"loss": 1.0, "betas": (0.9, [0.99])}
    assert there_and_back(tmp_path, [row, (row, row)]) == [row, (row, row)]


def test_versions_of_modules_are_restored(tmp_path):
    weights = nn.BatchNorm1d(2).state_dict()
    assert there_and_back(tmp_path, weights)._metadata == weights._metadata == {"": {"version": 2}}


@pytest.mark.parametrize("metadata", [{"": 1}, None])
def test_metadata_of_other_kinds_comes_back(tmp_path, metadata):
    weights = OrderedDict(x=1)
    weights._metadata = metadata
    assert there_and_back(tmp_path, weights)._metadata == metadata


@pytest.mark.parametrize("x", [torch.arange(4.0)[:1:2], torch.arange(4.0).as_strided((1,), (3,)), torch.ones(1, 4).T])
def test_an_equal_state_is_recognised_whatever_the_strides_are(tmp_path, x):
    for _ in range(2):
        Checkpoint(tmp_path).save(1, {"x": x})


# Values that could not be read back.


class Mode(Enum):
    ONE = 1


def released():
    value = torch.ones(4)
    value.untyped_storage().resize_(0)
    return value


class Sub(torch.Tensor):
    pass


UNREADABLE = {
    "a path": (Path("x"), "PosixPath"),
    "a pattern": (re.compile("x"), "Pattern"),
    "a member": (Mode.ONE, "Mode"),
    "a range": (range(3), "range"),
    "a set": ({1}, "set"),
    "a complex number": (1j, "complex"),
    "a bytearray": (bytearray(2), "bytearray"),
    "a storage": (torch.ones(2).untyped_storage(), "UntypedStorage"),
    "a kind of dict": (defaultdict(list), "defaultdict"),
    "a subclass": (torch.ones(2).as_subclass(Sub), "Sub"),
    "a parameter of a subclass": (nn.Parameter(torch.ones(2).as_subclass(Sub)), "Sub"),
    "an uninitialised parameter": (nn.LazyLinear(2).weight, "UninitializedParameter"),
    "an uninitialised buffer": (nn.LazyBatchNorm1d().running_mean, "UninitializedBuffer"),
    "a sparse tensor": (torch.eye(2).to_sparse(), "one of torch.float32 and torch.sparse_coo on cpu"),
    "released memory": (released(), "one whose memory was released"),
    "a meta tensor": (torch.ones(2, device="meta"), "one of torch.float32 and torch.strided on meta"),
    "a plain tensor as key": ({torch.ones(2): 1}, "Tensor"),
    "a tuple in a tuple as key": ({(1, (2, 3)): 1}, "tuple"),
    "a tensor as key": ({torch.ones(2).as_subclass(Sub): 1}, "Sub"),
}


@pytest.mark.parametrize("name", UNREADABLE)
def test_a_state_that_could_not_be_read_is_refused_before_anything_is_written(tmp_path, name):
    value, got = UNREADABLE[name]
    checkpoint = Checkpoint(tmp_path / "run")
    with pytest.raises(TypeError, match=rf"^Checkpoint: expected .*state.*, got {re.escape(got)}\. "):
        checkpoint.save(1, {"x": value})
    assert not checkpoint.folder.exists()


def test_a_learner_that_cannot_be_saved_is_refused_before_it_trains(tmp_path):
    learner = Separable()
    learner.register_buffer("odd", torch.ones(2).as_subclass(Sub))
    with pytest.raises(
        TypeError, match=r"^Checkpoint: expected state\['learner'\]\['odd'\] to be a dense Tensor .* Sub"
    ):
        fit(learner, labelled(), epochs=1, folder=tmp_path)
    assert learner.seen == []


class Subclassed(Separable):
    def forward(self, images, labels):
        loss, terms = super().forward(images, labels)
        return loss.as_subclass(Sub), terms


def test_a_loss_of_a_subclass_is_summed_and_saved_as_a_tensor(tmp_path):
    history = fit(Subclassed(), labelled(), epochs=2, folder=tmp_path, save_every=1, log_every=2)
    assert len(history) == 2


# A checkpoint is read back before an older one is removed.


@pytest.mark.parametrize("damage", ["lost", "changed"])
def test_a_failed_read_back_removes_nothing(tmp_path, monkeypatch, damage):
    checkpoint, real = filled(tmp_path, (1, 2)), _atomic_io._Sink.close

    def close(sink):
        """Corrupt data as a failing disk or memory does."""
        if sink.size > 1000:
            (os.ftruncate if damage == "lost" else os.pwrite)(
                sink.descriptor, *((500,) if damage == "lost" else (b"!", 500))
            )
        real(sink)

    monkeypatch.setattr(_atomic_io._Sink, "close", close)
    with pytest.raises(CheckpointWriteError, match=r"^Checkpoint: expected .*step-00000003 to be read back"):
        checkpoint.save(3, state(3))
    assert checkpoint.steps() == [1, 2]
    assert leftovers(tmp_path) == []
    assert same(checkpoint.load()[1], state(2))


@pytest.mark.parametrize("value", [2**3000, b""], ids=["a huge int", "no bytes"])
def test_a_state_that_torch_writes_but_cannot_read_is_refused(tmp_path, value):
    checkpoint = filled(tmp_path, (1,))
    with pytest.raises(CheckpointWriteError, match=r"^Checkpoint: expected .*step-00000002 to be read back"):
        checkpoint.save(2, {"x": value})
    assert checkpoint.steps() == [1]
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize(
    "error",
    [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory"), OSError(errno.EIO, "I/O error")],
)
def test_a_state_too_large_for_this_machine_is_not_called_damaged(tmp_path, monkeypatch, error):
    checkpoint = filled(tmp_path, (1, 2))

    def load(*_, **__):
        raise error

    monkeypatch.setattr(torch, "load", load)
    with pytest.raises(CheckpointError, match=r"^Checkpoint: expected to read .*step-00000002") as caught:
        checkpoint.load()
    assert type(caught.value) is CheckpointError
