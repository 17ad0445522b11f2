"""Batches as samples of a data set, read in worker processes that report their progress."""

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

from ..._checks import check_finite, complaint, type_name
from ..._digest import digest
from ..._random import preserve_rng_state, reseed
from ...data.decoding import UnreadableImageError
from ...data.stream import ImageStream

Batch = tuple[Tensor, ...]
_OWNER = "fit"
_POLL = 1.0  # seconds between two checks of whether the run has ended


class LoadedBatch(NamedTuple):
    """Batch, with the index of each sample that was replaced by another one, and the reason."""

    tensors: Batch
    replaced: list[tuple[int, str]]


class WorkerError(NamedTuple):
    """Error of a worker, as text: not every exception can be pickled."""

    kind: type[Exception]
    text: str
    traceback: str

    def exception(self) -> Exception:
        """Return the exception, caused by one with the traceback of the worker."""
        error = self.kind(self.text)
        error.__cause__ = Exception(f"\n{self.traceback}")
        return error


class BatchDataset(Dataset["LoadedBatch | WorkerError"]):
    """Data set of whole batches, indexed by a step and the indices of its samples.

    Random numbers that a sample draws depend on the seed, the step and the sample, not on the process.

    Attributes:
        at: int64 ``[max(1, workers), 3]``, in memory that all processes share: for each worker the sample that it
            reads, or -1; the number of samples that it has read; its process number.
        stop: shared bool that ends the workers, even in the middle of a sample, shortly after it is set.
    """

    def __init__(self, dataset: Dataset[Any], seed: int, workers: int) -> None:
        self.dataset, self.seed = dataset, seed
        self.at: Tensor = torch.tensor([[-1, 0, 0]] * max(1, workers)).share_memory_()  # type: ignore[no-untyped-call]
        self.stop: Tensor = torch.tensor(False).share_memory_()  # type: ignore[no-untyped-call]

    def start_worker(self, worker: int) -> None:
        """Make this process a worker: ignore the signals that the run handles, and end with the run."""
        self.at[worker, 2] = os.getpid()
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
        threading.Thread(target=self._end_with_run, daemon=True).start()

    def _end_with_run(self) -> None:
        """Wait for ``stop`` or for the end of the parent process, then end this process."""
        started_by, parent = os.getppid(), multiprocessing.parent_process()
        # is_alive detects a parent that died before this line; getppid works even if another process holds its pipe.
        while (parent is None or parent.is_alive()) and os.getppid() == started_by and not self.stop:
            time.sleep(_POLL)
        time.sleep(_POLL)  # a worker that reads nothing ends by itself, without a message cut short
        os._exit(0)

    def __getitem__(self, request: tuple[int, list[int]]) -> LoadedBatch | WorkerError:
        worker = get_worker_info()
        at = self.at[0 if worker is None else worker.id]
        try:
            with preserve_rng_state():  # with workers=0, reading must not advance the generators of the training
                return self._load(*request, at)
        except Exception as error:
            return WorkerError(type(error), str(error), traceback.format_exc())
        finally:
            at[0] = -1

    def _load(self, step: int, indices: list[int], at: Tensor) -> LoadedBatch:
        samples, replaced = [], []
        for index in indices:
            at[0] = index
            reseed(int(digest(f"{self.seed} {step} {index}")[:8], 16))
            try:
                data = self.dataset
                sample, reason = data.read(index) if isinstance(data, ImageStream) else (data[index], None)
            except UnreadableImageError:
                raise
            except Exception as error:
                expected, got = f"sample {index} of {type_name(self.dataset)}", f"{type(error).__name__}: {error}"
                raise RuntimeError(complaint(_OWNER, expected, got.rstrip("."), "Check its __getitem__")) from error
            if reason is not None:
                replaced.append((index, reason))
            samples.append(_tensors(index, sample))
            at[1] += 1
        return LoadedBatch(_stacked(indices, samples), replaced)


def _tensors(index: int, sample: Any) -> Batch:
    parts = tuple(sample) if isinstance(sample, (tuple, list)) else (sample,)
    others = [type_name(part) for part in parts if not isinstance(part, (Tensor, Real))]
    if others or not parts:
        error = TypeError if others else ValueError
        raise error(_unusable(f"sample {index} to be tensors and numbers", others[0] if others else "none"))
    tensors = tuple(part if isinstance(part, Tensor) else torch.tensor(part) for part in parts)
    for tensor in tensors:
        check_finite(_OWNER, f"sample {index}", tensor, everywhere=True, remedy="Repair it, or leave it out")
    return tensors


def _stacked(indices: Sequence[int], samples: Sequence[Batch]) -> Batch:
    kinds = [[f"{str(t.dtype).removeprefix('torch.')} {list(t.shape)}" for t in sample] for sample in samples]
    for index, kind in zip(indices, kinds, strict=True):
        if kind != kinds[0]:
            expected = f"sample {index} to be {' and '.join(kinds[0])} like sample {indices[0]}"
            raise ValueError(_unusable(expected, " and ".join(kind)))
    return tuple(torch.stack(column) for column in zip(*samples, strict=True))


def _unusable(expected: str, got: str) -> str:
    remedy = "Return images as uint8 tensors [C, H, W] of one size, and numbers beside them"
    if got.endswith(("Image", "ImageFile")):  # of Pillow
        remedy += ", or pass advcontrast.data.ImageStream(folder, size=...)"
    return complaint(_OWNER, expected, got, remedy)
