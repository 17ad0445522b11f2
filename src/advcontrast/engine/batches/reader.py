"""Read data during training in worker processes, which may crash or hang."""

import multiprocessing
import signal
import threading
import time
import warnings
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from typing import Any

import torch
from torch.utils.data import ConcatDataset, DataLoader, Dataset, IterableDataset, Subset, TensorDataset

from ..._checks import check_int, check_real, complaint, type_name
from ..._digest import digest
from ..._transfer import to_device
from ...data.stream import ImageStream
from .plan import Plan
from .worker import Batch, BatchDataset, LoadedBatch, WorkerError

_OWNER = "DataReader"
_PATIENCE = 5.0  # seconds that a process may take to end


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
        counted = hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")
        if not isinstance(dataset, Dataset) or isinstance(dataset, IterableDataset) or not counted:
            remedy = "Derive it from torch.utils.data.Dataset, with __len__ and __getitem__"
            raise TypeError(complaint(_OWNER, "a map-style data set", type_name(dataset), remedy))
        check_int(_OWNER, "workers", workers, low=0, remedy="0 reads in the process that trains")
        check_real(_OWNER, "timeout", timeout, low=0, above=True, remedy="Pass seconds")
        check_int(_OWNER, "prefetch", prefetch, low=1, remedy="Pass the batches that each worker reads ahead")
        self.dataset = dataset
        self.workers, self.timeout, self.prefetch = int(workers), float(timeout), int(prefetch)

    def __repr__(self) -> str:
        settings = f"workers={self.workers}, timeout={self.timeout}, prefetch={self.prefetch}"
        return f"{_OWNER}({type_name(self.dataset)} of {len(self)} samples, {settings})"

    def __len__(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]


class WorkerSource:
    """Source of batches that the workers of a :class:`DataReader` read."""

    def __init__(self, reader: DataReader) -> None:
        self._reader, self._dataset, self._workers = reader, reader.dataset, reader.workers
        self._processes: list[BaseProcess] = []  # of the workers
        self.lengths = [len(reader)]

    def identity(self) -> str:
        """Return a description of the samples."""
        return _identity(self._dataset)

    @contextmanager
    def batches(
        self, plan: Plan, device: torch.device, *, epochs: range, skip: int
    ) -> Iterator[Iterator[tuple[Batch, int | None]]]:
        """Read the batches of some epochs, without the first ``skip``; the workers end with the block.

        Yields:
            An iterator over batches on the device, each with the number of its samples that others replace; ``None``
            if samples are never replaced.
        """
        batches = BatchDataset(self._dataset, plan.seed, self._workers)
        steps = range(epochs.start * plan.steps + skip, epochs.stop * plan.steps)
        indices = plan.run(epochs, torch.device("cpu"), skip=skip)
        requests = ((step, chosen.tolist()) for step, chosen in zip(steps, indices, strict=True))
        loading = self._load(batches, requests, len(steps), pin=device.type == "cuda")
        try:
            yield (self._received(batch, device) for batch in loading)
        except RuntimeError as error:
            # PyTorch raises this whenever a worker dies.
            if dead := self._death(batches):
                raise dead from error
            raise
        finally:
            loading.close()
            self._kill()

    def _load(self, batches: BatchDataset, requests: Any, number: int, *, pin: bool) -> Generator[Any, None, None]:
        if self._workers == 0:
            yield from map(batches.__getitem__, requests)
            return
        before = set(multiprocessing.active_children())
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "This DataLoader will create")  # as many as were asked for
            loader = DataLoader(
                batches,
                batch_size=None,
                sampler=requests,
                num_workers=self._workers,
                prefetch_factor=self._reader.prefetch,
                collate_fn=_unchanged,
                worker_init_fn=batches.start_worker,
                timeout=self._reader.timeout,
                pin_memory=pin,
                generator=torch.Generator(),  # the global one belongs to the training
            )
            try:
                only = [iter(loader)]
            except (AttributeError, TypeError, OSError, RuntimeError) as error:
                expected = f"{type_name(self._dataset)} to start in {self._workers} worker processes"
                got = f"{type(error).__name__}: {error}".rstrip(".")
                remedy = "Define its classes and functions in a module (for pickle), or pass DataReader workers=0"
                raise RuntimeError(complaint("fit", expected, got, remedy)) from error
        self._processes += {child for child in multiprocessing.active_children() if child.daemon} - before
        try:
            for _ in range(number):
                yield self._next(only, batches)
        finally:
            only.clear()  # the only reference to the iterator, even in tracebacks: its finaliser ends the workers

    def _next(self, only: list[Any], batches: BatchDataset) -> Any:
        """Wait for the next batch while workers make progress."""
        while True:
            count, since = int(batches.at[:, 1].sum()), time.monotonic()
            try:
                return next(only[0])
            except BaseException as error:
                error = error.with_traceback(None)
                if not isinstance(error, Exception):
                    raise error
                late = isinstance(error, RuntimeError) and time.monotonic() - since >= 0.9 * self._reader.timeout
                if not late:
                    # A dying worker can truncate a message in many ways, shortly before its death is detected.
                    ended = wait([process.sentinel for process in self._processes], _PATIENCE)
                    for process in self._processes:
                        if process.sentinel in ended:
                            process.join(_PATIENCE)
                if dead := self._death(batches):
                    raise dead from error
                if not late:
                    raise error
                if int(batches.at[:, 1].sum()) == count:  # else the disk is slow
                    with _without_sigchld():
                        self._kill()
                    self._processes.clear()
                    at = " and ".join(self._sample(i) for i in batches.at[:, 0].tolist() if i >= 0) or "nothing"
                    expected = f"a sample from any of {self._workers} workers within {self._reader.timeout:g} s"
                    remedy = "Check the disk, or pass DataReader a longer timeout; the last checkpoint is intact"
                    raise RuntimeError(complaint("fit", expected, f"none while they read {at}", remedy)) from error

    def _kill(self) -> None:
        for process in self._processes:
            process.kill()
        for process in self._processes:
            process.join(_PATIENCE)

    def _received(self, batch: LoadedBatch | WorkerError, device: torch.device) -> tuple[Batch, int | None]:
        if isinstance(batch, WorkerError):
            raise batch.exception()
        tensors = tuple(to_device(tensor, device) for tensor in batch.tensors)
        if not isinstance(self._dataset, ImageStream) or self._dataset.unreadable == "raise":
            return tensors, None
        for index, reason in batch.replaced:
            self._dataset.note(index, reason)
        return tensors, len(batch.replaced)

    def _sample(self, index: int) -> str:
        path = f" ({str(self._dataset.path(index))!r})" if isinstance(self._dataset, ImageStream) else ""
        return f"sample {index}{path}"

    def _death(self, batches: BatchDataset) -> RuntimeError | None:
        """Return the error for a worker that has died, if one has."""
        dead = next((process for process in self._processes if not process.is_alive()), None)
        if dead is None:
            return None
        code = dead.exitcode or 0
        how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"ended with status {code}"
        read = [index for index, _, number in batches.at.tolist() if number == dead.pid and index >= 0]
        got = f"one of {self._workers} {how}" + (f" while it read {self._sample(read[0])}" if read else "")
        remedy = "The memory may be full: try fewer workers. The next run resumes from the last checkpoint"
        if code == -signal.SIGBUS:
            remedy = "Shared memory may be full (see df /dev/shm): enlarge it, or pass DataReader workers=0"
        return RuntimeError(complaint("fit", "the data-loading workers to stay alive", got, remedy))


@contextmanager
def _without_sigchld() -> Iterator[None]:
    """Prevent PyTorch's signal handler from raising an error for a worker that ends in the block."""
    if not hasattr(signal, "SIGCHLD") or threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGCHLD, before or signal.SIG_DFL)


def _unchanged(batch: Any) -> Any:
    return batch


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
