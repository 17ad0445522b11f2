"""Batches: the order of the samples, and the sources that they are read from.

The order is a function of the seed and the step, so that a resume needs no state.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
import traceback
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from numbers import Real
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor
from torch.utils.data import ConcatDataset, DataLoader, Dataset, IterableDataset, Subset, TensorDataset, get_worker_info

from .. import _deprecated, distributed
from .._checks import check_finite, check_int, check_real, complaint, type_name
from .._digest import digest
from .._random import preserve_rng_state, reseed
from .._transfer import to_device
from ..data import interleave
from ..data.decoding import UnreadableImageError
from ..data.stream import ImageStream

Batch: TypeAlias = tuple[Tensor, ...]
# On the device, each with the number of its samples that others replace; None if samples are never replaced.
Batches: TypeAlias = Iterator[tuple[Batch, int | None]]
_OWNER = "fit"
_POLL = 1.0  # seconds between two checks of whether the run has ended
_REMEDY = "Pass a tensor [N, C, H, W] or (images, labels), or for a folder image_folder(path).x or ImageStream(path)"


def steps_per_epoch(samples: int, batch_size: int) -> int:
    """Return the number of steps in an epoch of :func:`fit`, for schedules that count steps.

    Args:
        samples: length of the data, at least 1.
        batch_size: samples per step, of all processes together, at least 1.

    Returns:
        The number of batches that contain every sample once, for any number of processes.

    Raises:
        ValueError: a number below 1.
        TypeError: an argument is not an int.

    Example:
        >>> from advcontrast.engine import steps_per_epoch
        >>> steps_per_epoch(8, 4), steps_per_epoch(9, 4)
        (2, 3)
    """
    check_int("steps_per_epoch", "samples", samples, low=1, remedy="Pass the length of the data")
    check_int("steps_per_epoch", "batch_size", batch_size, low=1, remedy="Pass the samples of all processes in a step")
    return -(-samples // batch_size)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Indices of the batches of every epoch; ``batch_size``, ``seed`` and ``groups`` are those of :func:`fit`.

    Every epoch is a permutation of all samples that depends only on the seed and the epoch, divided into batches of
    equal size. The last batch is filled up with the first samples of the permutation; data smaller than a batch are one
    batch. Processes take turns within a batch, so that all of them get the same number of samples.
    """

    samples: int
    batch_size: int
    seed: int
    groups: Tensor | None = None
    chosen: Tensor | None = None  # indices of the samples; None for all of the data

    def subset(self, chosen: Tensor) -> Plan:
        """Return the plan of some of the samples."""
        groups = None if self.groups is None else self.groups[chosen]
        return replace(self, samples=len(chosen), groups=groups, chosen=chosen)

    @property
    def steps(self) -> int:
        """Return the number of steps in an epoch."""
        return -(-self.samples // self.batch_size)

    def order(self, epoch: int) -> Tensor:
        """Return the permutation of an epoch."""
        # The generator takes 32 bits. With seed + epoch, seed 1 would have the orders of seed 0, shifted by an epoch.
        generator = torch.Generator().manual_seed(int(digest(f"{self.seed} {epoch}")[:8], 16))
        if self.groups is None:
            order = torch.randperm(self.samples, generator=generator)
        else:
            order = interleave(self.groups, generator=generator)
        return order if self.chosen is None else self.chosen[order]

    def batches(self, epoch: int, device: torch.device, *, skip: int = 0) -> list[Tensor]:
        """Return the indices that this process takes in each step of an epoch, without the first ``skip`` steps."""
        world, rank = distributed.world_size(), distributed.rank()
        order = self.order(epoch).to(device)  # once, as a copy to an accelerator waits for it
        size = min(self.batch_size, self.samples)
        order = torch.cat([order, order[: self.steps * size - self.samples]])
        return [batch[rank::world] for batch in torch.split(order, size)[skip:]]

    def run(self, epochs: range, device: torch.device, *, skip: int) -> Iterator[Tensor]:
        """Return the indices of several epochs, without the first ``skip`` steps of the first one."""
        for epoch in epochs:
            yield from self.batches(epoch, device, skip=skip if epoch == epochs.start else 0)


class DataReader:
    """A data set that :func:`~advcontrast.engine.fit` reads during training, and the settings for reading it.

    Worker processes read ahead, in the order that the seed of :func:`fit` gives. Their number affects only the speed:
    the weights are bit-identical, also after an interruption in the middle of an epoch. Random numbers that a sample
    draws, in a data set that augments, depend only on the seed, the step and the sample.

    At most ``workers * prefetch + 1`` batches are in memory. A disk that delivers no sample for ``timeout``
    seconds, or a worker that dies, ends the training with an error that names the sample; the next call of ``fit``
    continues from the last checkpoint.

    Args:
        dataset: a map-style data set, such as :class:`advcontrast.data.ImageStream`: each sample is a tensor, or a
            tuple of tensors and numbers, all of one shape and dtype. If it has a method ``fingerprint()`` that returns
            a string, a resume detects changed samples.
        workers: processes that read; 0 reads between the steps, in the process that trains, without a timeout.
        timeout: seconds without a sample from any worker after which an error is raised, > 0.
        prefetch: batches that each worker reads ahead, at least 1.

    Raises:
        ValueError: an argument out of range.
        TypeError: an argument has the wrong type.

    Example:
        >>> from torch.utils.data import TensorDataset
        >>> from advcontrast.engine import DataReader
        >>> DataReader(TensorDataset(torch.zeros(5, 3, 8, 8)), workers=2)
        DataReader(TensorDataset of 5 samples, workers=2, timeout=120.0, prefetch=2)
    """

    def __init__(self, dataset: Dataset[Any], *, workers: int = 4, timeout: float = 120.0, prefetch: int = 2) -> None:
        if not isinstance(dataset, Dataset) or isinstance(dataset, IterableDataset) or not hasattr(dataset, "__len__"):
            remedy = "Derive it from torch.utils.data.Dataset, with __len__ and __getitem__"
            raise TypeError(complaint("DataReader", "a map-style data set", type_name(dataset), remedy))
        check_int("DataReader", "workers", workers, low=0, remedy="0 reads in the process that trains")
        check_real("DataReader", "timeout", timeout, low=0, above=True, remedy="Pass seconds")
        check_int("DataReader", "prefetch", prefetch, low=1, remedy="Pass the batches that each worker reads ahead")
        self.dataset = dataset
        self.workers, self.timeout, self.prefetch = int(workers), float(timeout), int(prefetch)

    def __repr__(self) -> str:
        settings = f"workers={self.workers}, timeout={self.timeout}, prefetch={self.prefetch}"
        return f"DataReader({type_name(self.dataset)} of {len(self)} samples, {settings})"

    def __len__(self) -> int:
        return len(self.dataset)


class TensorSource:
    """Tensors with one entry per sample."""

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self.tensors = tensors
        self.lengths = [len(tensor) if tensor.dim() else 0 for tensor in tensors]

    def identity(self) -> str:
        """Return a description of the samples."""
        return fingerprint(self.tensors)

    @contextmanager
    def batches(self, plan: Plan, device: torch.device, *, epochs: range, skip: int) -> Iterator[Batches]:
        """Index the tensors on the device, in some epochs, without the first ``skip`` batches."""
        tensors = [tensor.to(device) for tensor in self.tensors]
        indices = plan.run(epochs, device, skip=skip)
        yield ((tuple(tensor[chosen] for tensor in tensors), None) for chosen in indices)


class WorkerSource:
    """Source of batches that the workers of a :class:`DataReader` read."""

    def __init__(self, reader: DataReader) -> None:
        self._reader, self._dataset, self._workers = reader, reader.dataset, reader.workers
        self.lengths = [len(reader)]

    def identity(self) -> str:
        """Return a description of the samples."""
        return _identity(self._dataset)

    @contextmanager
    def batches(self, plan: Plan, device: torch.device, *, epochs: range, skip: int) -> Iterator[Batches]:
        """Read the batches of some epochs, without the first ``skip``; the workers end with the block."""
        batches = BatchDataset(self._dataset, plan.seed, self._workers)
        steps = range(epochs.start * plan.steps + skip, epochs.stop * plan.steps)
        indices = plan.run(epochs, torch.device("cpu"), skip=skip)
        requests = ((step, chosen.tolist()) for step, chosen in zip(steps, indices, strict=True))
        if self._workers == 0:
            yield (self._received(batches[request], device) for request in requests)
            return
        loading = self._start(batches, requests, pin=device.type == "cuda")
        try:
            yield (self._received(_next(loading, batches), device) for _ in steps)
        except RuntimeError as error:
            # PyTorch raises an error of this name at any time when a worker dies, also within a step or a save.
            found: BaseException | None = error
            while found is not None and not str(found).startswith("DataLoader"):
                found = found.__cause__ or found.__context__  # torch.save raises another error after it
            if found is None:
                raise
            dead = [worker.pid for worker in loading._workers if not worker.is_alive()]
            rows = [(index, pid) for index, _, pid in batches.at.tolist() if index >= 0]
            read = dict.fromkeys(self._sample(index) for index, pid in rows if not dead or pid in dead)
            got = f"{str(found).rstrip('. ')} while they read {' and '.join(read) or 'nothing'}"
            remedy = "Check the disk, the memory and df /dev/shm; try fewer workers or a longer timeout"
            remedy += ". The last checkpoint is intact"
            raise RuntimeError(complaint(_OWNER, "batches from the data-loading workers", got, remedy)) from error
        finally:
            batches.stop.fill_(True)
            loading._shutdown_workers()
            for worker in loading._workers:
                worker.kill()  # if it holds the lock of the interpreter

    def _start(self, batches: BatchDataset, requests: Any, *, pin: bool) -> Any:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "This DataLoader will create")  # as many as were asked for
            loader = DataLoader(
                batches,
                batch_size=None,
                sampler=requests,
                num_workers=self._workers,
                prefetch_factor=self._reader.prefetch,
                worker_init_fn=batches.start_worker,
                timeout=self._reader.timeout,
                pin_memory=pin,
                generator=torch.Generator(),  # the global one belongs to the training
            )
            try:
                return iter(loader)
            except (AttributeError, TypeError, OSError, RuntimeError) as error:
                expected = f"{type_name(self._dataset)} to start in {self._workers} worker processes"
                got = f"{type(error).__name__}: {error}".rstrip(".")
                remedy = "Define its classes and functions in a module (for pickle), or pass DataReader workers=0"
                raise RuntimeError(complaint(_OWNER, expected, got, remedy)) from error

    def _received(self, batch: LoadedBatch | WorkerError, device: torch.device) -> tuple[Batch, int | None]:
        if isinstance(batch, WorkerError):
            raise batch.kind(batch.text) from Exception(f"\n{batch.traceback}")
        tensors = tuple(to_device(tensor, device) for tensor in batch.tensors)
        if not isinstance(self._dataset, ImageStream) or self._dataset.unreadable == "raise":
            return tensors, None
        for index, reason in batch.replaced:
            self._dataset.note(index, reason)
        return tensors, len(batch.replaced)

    def _sample(self, index: int) -> str:
        path = f" ({str(self._dataset.path(index))!r})" if isinstance(self._dataset, ImageStream) else ""
        return f"sample {index}{path}"


Source: TypeAlias = TensorSource | WorkerSource


def source_of(data: Any) -> Source:
    """Require tensors without NaN or infinity, or a map-style data set, and return the source of their batches."""
    if isinstance(data, (DataLoader, IterableDataset)):
        remedy = "Pass a data set with __len__ and __getitem__; fit shuffles it by seed="
        raise TypeError(complaint(_OWNER, "data to be tensors or a map-style data set", type_name(data), remedy))
    if isinstance(data, (DataReader, Dataset)):
        return WorkerSource(data if isinstance(data, DataReader) else DataReader(data))
    if not isinstance(data, (Tensor, tuple, list)):
        raise TypeError(complaint(_OWNER, "data to be tensors", type_name(data), _REMEDY))
    tensors = [data] if isinstance(data, Tensor) else list(data)
    for i, tensor in enumerate(tensors):
        if not isinstance(tensor, Tensor):
            remedy = _REMEDY if isinstance(tensor, (tuple, list)) else "Call torch.as_tensor"
            raise TypeError(complaint(_OWNER, f"data[{i}] to be a tensor", type_name(tensor), remedy))
        if tensor.is_floating_point():
            # One such value would make the running statistics of a batch norm infinite or NaN permanently.
            check_finite(_OWNER, "data", tensor, everywhere=True, remedy="Clean the data")
    return TensorSource(tensors)


def fingerprint(tensors: Sequence[Tensor]) -> str:
    """Return the shapes of tensors and a digest of all values."""
    return f"{[list(tensor.shape) for tensor in tensors]} {digest(*tensors)[:16]}"


def _next(loading: Any, batches: BatchDataset) -> Any:
    """Wait for the next batch as long as any worker reads samples."""
    while True:
        count = int(batches.at[:, 1].sum())
        try:
            return next(loading)
        except RuntimeError as error:
            if "timed out" not in str(error) or int(batches.at[:, 1].sum()) == count:
                raise


def _identity(dataset: Any) -> str:
    """Return class and length of a data set, and a digest of its samples if one is known without reading them."""
    about, known = "", getattr(dataset, "fingerprint", None)
    if callable(known):
        about = f" {known()}"
    elif isinstance(dataset, TensorDataset):
        about = f" {digest(*dataset.tensors)[:16]}"
    elif isinstance(dataset, Subset):
        about = f" {digest(torch.as_tensor(dataset.indices))[:16]} of {_identity(dataset.dataset)}"
    elif isinstance(dataset, ConcatDataset):
        about = f" of {', '.join(map(_identity, dataset.datasets))}"
    return f"{type_name(dataset)} of {len(dataset)} samples{about}"


class LoadedBatch(NamedTuple):
    """Batch, with the index of each sample that was replaced by another one, and the reason."""

    tensors: Batch
    replaced: list[tuple[int, str]]


class WorkerError(NamedTuple):
    """Error of a worker, as text: not every exception can be pickled."""

    kind: type[Exception]
    text: str
    traceback: str


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


_deprecated.serve_old_names(__name__)
