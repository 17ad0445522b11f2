"""The reading of batches in a worker process, which reports the sample that it is reading."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
import traceback
from collections.abc import Sequence
from numbers import Real
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset, get_worker_info

from ..._checks import complaint, type_name
from ..._digest import digest
from ..._random import kept, reseed
from ...data.decoding import UnreadableImageError
from ...data.stream import ImageStream

_OWNER = "fit"
_LOOK_EVERY = 1.0  # second, for the parent of a worker


class Read(NamedTuple):
    """A batch, and why some of its samples are replaced by others."""

    tensors: tuple[Tensor, ...]
    replaced: list[tuple[int, str]]


class Failure(NamedTuple):
    """An error in another process, of which only the text crosses over."""

    kind: type[Exception]
    text: str
    traceback: str

    def error(self) -> Exception:
        """Return the error, with the traceback of the other process for a cause."""
        error = self.kind(self.text)
        error.__cause__ = Exception(f"\n{self.traceback}")
        return error


class Order(NamedTuple):
    """A request for the samples of one step of a run."""

    step: int
    indices: list[int]


class Shelf(Dataset["Read | Failure"]):
    """A data set by whole batches.

    Random numbers that a sample draws depend only on the seed, the step and the sample, not on the process.

    Args:
        dataset: what is read, sample by sample.
        seed: of what the samples draw.
        workers: number of processes that will read.

    Attributes:
        at: int64 ``[max(1, workers), 3]``, in memory that all processes share: the sample that each worker is reading,
            or -1; how many it has read; its process number.
    """

    def __init__(self, dataset: Dataset[Any], seed: int, workers: int) -> None:
        self.dataset, self.seed = dataset, seed
        self.at: Tensor = torch.tensor([[-1, 0, 0]] * max(1, workers)).share_memory_()  # type: ignore[no-untyped-call]

    def begin(self, worker: int) -> None:
        """Make this process a worker: it ignores the signals that the run obeys, and ends when the run does."""
        self.at[worker, 2] = os.getpid()
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
        threading.Thread(target=_end_with_parent, daemon=True).start()

    def __getitem__(self, order: Order) -> Read | Failure:
        worker = get_worker_info()
        at = self.at[0 if worker is None else worker.id]
        try:
            with kept():  # with workers=0, reading must not advance the generators of the training
                return self._read(order, at)
        except UnreadableImageError as error:
            return Failure(UnreadableImageError, str(error), traceback.format_exc())
        except _UnusableSampleError as error:
            return Failure(error.kind, str(error), traceback.format_exc())
        except Exception as error:
            expected = f"sample {int(at[0])} of {type_name(self.dataset)}"
            got = f"{type(error).__name__}: {error}".rstrip(".")
            text = complaint(_OWNER, expected, got, "Look at its __getitem__")
            return Failure(RuntimeError, text, traceback.format_exc())
        finally:
            at[0] = -1

    def _read(self, order: Order, at: Tensor) -> Read:
        samples, replaced = [], []
        for index in order.indices:
            at[0] = index
            reseed(int(digest(f"{self.seed} {order.step} {index}")[:8], 16))
            if isinstance(self.dataset, ImageStream):
                sample, reason = self.dataset.read(index)
                if reason is not None:
                    replaced.append((index, reason))
            else:
                sample = self.dataset[index]
            samples.append(_tensors(index, sample))
            at[1] += 1
        return Read(_stacked(order.indices, samples), replaced)


class _UnusableSampleError(Exception):
    """An error about an invalid sample, with its complete message."""

    def __init__(self, kind: type[Exception], expected: str, got: str) -> None:
        remedy = "Return images as uint8 tensors [C, H, W] of one size, and numbers beside them"
        if got.endswith(("Image", "ImageFile")):  # of Pillow
            remedy += ", or pass advcontrast.data.ImageStream(folder, size=...)"
        super().__init__(complaint(_OWNER, expected, got, remedy))
        self.kind = kind


def _end_with_parent() -> None:
    """Wait until the parent process has ended, then end this one, even in the middle of a sample."""
    started_by, parent = os.getppid(), multiprocessing.parent_process()
    # is_alive sees a parent that died before this line. A copy of its pipe elsewhere can mislead it, but not getppid.
    while (parent is None or parent.is_alive()) and os.getppid() == started_by:
        time.sleep(_LOOK_EVERY)
    os._exit(1)


def _tensors(index: int, sample: Any) -> tuple[Tensor, ...]:
    """Return a sample as tensors."""
    parts = tuple(sample) if isinstance(sample, (tuple, list)) else (sample,)
    for part in parts:
        if not isinstance(part, (Tensor, Real)):
            raise _UnusableSampleError(TypeError, f"sample {index} to be tensors and numbers", type_name(part))
    tensors = tuple(part if isinstance(part, Tensor) else torch.tensor(part) for part in parts)
    if not tensors:
        raise _UnusableSampleError(ValueError, f"sample {index} to be tensors and numbers", "none")
    for tensor in tensors:
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            bad = int((~tensor.isfinite()).sum())
            raise _UnusableSampleError(ValueError, f"sample {index} to be finite", f"{bad} values that are not")
    return tensors


def _stacked(indices: Sequence[int], samples: Sequence[tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
    kinds = [[f"{str(t.dtype).removeprefix('torch.')} {list(t.shape)}" for t in sample] for sample in samples]
    for index, kind in zip(indices, kinds, strict=True):
        if kind != kinds[0]:
            expected = f"sample {index} to be {' and '.join(kinds[0])} like sample {indices[0]}"
            raise _UnusableSampleError(ValueError, expected, " and ".join(kind))
    return tuple(torch.stack(column) for column in zip(*samples, strict=True))
