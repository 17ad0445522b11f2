"""Data that is read while it is trained on, by processes that may die or wait for a disk for ever."""

from __future__ import annotations

import multiprocessing
import signal
import threading
import time
import warnings
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset

from .._checks import check_int, check_real, complaint, type_name
from ..data.stream import ImageStream
from .sampling import Plan
from .shelf import Failure, Order, Shelf

_OWNER = "Reader"
_GOING = 5.0  # seconds that a killed process has to go


class Reader:
    """A data set that :func:`fit` reads while it trains, with the settings of how.

    Worker processes read ahead, in the order that the seed of :func:`fit` gives. How many they are changes nothing but
    the time: the weights are the same to the bit, also after a run was interrupted in the middle of an epoch. What a
    sample draws at random, in a data set that augments, depends on the seed and the step alone.

    In memory are at most ``workers * prefetch + 1`` batches. A slow disk slows the training. A disk that gives no
    sample at all for ``timeout`` seconds, or a worker that dies, ends it with an error that names the sample; started
    again it goes on from the last checkpoint.

    Args:
        dataset: a map-style data set, as :class:`advcontrast.data.ImageStream`: each sample is a tensor, or a tuple of
            tensors and numbers, all of one shape and dtype.
        workers: processes that read; 0 reads between the steps, in the process that trains, where nothing can be timed
            out.
        timeout: seconds without a sample from any worker after which they are taken to hang, > 0.
        prefetch: batches that each worker reads ahead, at least 1.

    Raises:
        ValueError: an argument out of its range.
        TypeError: an argument of the wrong kind.

    Example:
        >>> from torch.utils.data import TensorDataset
        >>> from advcontrast.engine import Reader
        >>> Reader(TensorDataset(torch.zeros(5, 3, 8, 8)), workers=2)
        Reader(TensorDataset of 5 samples, workers=2, timeout=120.0, prefetch=2)
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

    @property
    def lengths(self) -> list[int]:
        """The number of samples."""
        return [len(self)]

    def identity(self) -> str:
        """Return what tells this data set from others, without reading it."""
        known = getattr(self.dataset, "fingerprint", None)
        return f"{type_name(self.dataset)} of {len(self)} samples" + (f" {known()[:16]}" if callable(known) else "")

    @contextmanager
    def batches(
        self, plan: Plan, device: torch.device, *, epochs: range, skip: int
    ) -> Iterator[Iterator[tuple[tuple[Tensor, ...], int | None]]]:
        """Read the batches of some epochs, without the first ``skip``, and end all workers behind the block.

        Yields:
            An iterator over batches on the device, and how many samples of each are replaced by others; ``None`` where
            none ever is.
        """
        shelf = Shelf(self.dataset, plan.seed, self.workers)
        steps = range(epochs.start * plan.steps + skip, epochs.stop * plan.steps)
        indices = plan.run(epochs, torch.device("cpu"), skip=skip)
        orders = (Order(step, chosen.tolist()) for step, chosen in zip(steps, indices, strict=True))
        processes: list[BaseProcess] = []
        reading = self._read(shelf, orders, len(steps), processes, pin=device.type == "cuda")
        try:
            yield (self._received(batch, device) for batch in reading)
        except RuntimeError as error:
            # PyTorch raises this at any instant at which a worker dies.
            dead = self._dead(shelf, processes)
            if dead is None:
                raise
            raise dead from error
        finally:
            reading.close()
            _end(processes)

    def _read(
        self, shelf: Shelf, orders: Iterator[Order], batches: int, processes: list[BaseProcess], *, pin: bool
    ) -> Generator[Any, None, None]:
        """Yield what the shelf returns, from workers that are put into ``processes``."""
        if self.workers == 0:
            yield from map(shelf.__getitem__, orders)
            return
        before = set(multiprocessing.active_children())
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "This DataLoader will create")  # as many as were asked for
            loader = DataLoader(
                shelf,
                batch_size=None,
                sampler=orders,
                num_workers=self.workers,
                prefetch_factor=self.prefetch,
                collate_fn=_as_it_is,
                worker_init_fn=shelf.begin,
                timeout=self.timeout,
                pin_memory=pin,
                generator=torch.Generator(),  # the global one belongs to the training
            )
            try:
                alone = [iter(loader)]
            except (AttributeError, TypeError, OSError, RuntimeError) as error:
                remedy = "Define what it holds in a module, so that it can be pickled, or pass Reader workers=0"
                got = f"{type(error).__name__}: {error}".rstrip(".")
                expected = f"{type_name(self.dataset)} to be taken over by {self.workers} worker processes"
                raise RuntimeError(complaint("fit", expected, got, remedy)) from error
        processes += {child for child in multiprocessing.active_children() if child.daemon} - before
        try:
            for _ in range(batches):
                yield self._next(alone, shelf, processes)
        finally:
            alone.clear()  # nobody else holds the loader, which ends its workers; not even the traceback of an error

    def _next(self, alone: list[Any], shelf: Shelf, processes: list[BaseProcess]) -> Any:
        """Wait for the next batch of a loader as long as samples are read at all."""
        while True:
            counted, since = int(shelf.at[:, 1].sum()), time.monotonic()
            try:
                return next(alone[0])
            except BaseException as error:
                error = error.with_traceback(None)
                late = isinstance(error, RuntimeError) and time.monotonic() - since >= 0.9 * self.timeout
                if not late or self._dead(shelf, processes):
                    raise error
                if int(shelf.at[:, 1].sum()) == counted:
                    with _deaf():
                        _end(processes)
                    processes.clear()
                    raise self._hanging(shelf) from error
                # It is slow, and does not hang.

    def _received(self, batch: Any, device: torch.device) -> tuple[tuple[Tensor, ...], int | None]:
        if isinstance(batch, Failure):
            raise batch.error()
        tensors = tuple(tensor.to(device, non_blocking=True) for tensor in batch.tensors)
        if not isinstance(self.dataset, ImageStream) or self.dataset.unreadable == "raise":
            return tensors, None
        for index, reason in batch.replaced:
            self.dataset.note(index, reason)
        return tensors, len(batch.replaced)

    def _sample(self, index: int) -> str:
        path = f" ({str(self.dataset.path(index))!r})" if isinstance(self.dataset, ImageStream) else ""
        return f"sample {index}{path}"

    def _hanging(self, shelf: Shelf) -> RuntimeError:
        read = " and ".join(self._sample(index) for index in shelf.at[:, 0].tolist() if index >= 0)
        remedy = "Look at the disk, or pass Reader a longer timeout; the last checkpoint is good"
        expected = f"a sample from any of {self.workers} workers within {self.timeout:g} s"
        return RuntimeError(complaint("fit", expected, f"none while they read {read or 'nothing'}", remedy))

    def _dead(self, shelf: Shelf, processes: list[BaseProcess]) -> RuntimeError | None:
        """Return the error for a worker that has died, if one has."""
        for process in processes:
            if process.is_alive():
                continue
            code = process.exitcode or 0
            how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"ended with status {code}"
            indices = [at for at, _, number in shelf.at.tolist() if number == process.pid and at >= 0]
            doing = f" while it read {self._sample(indices[0])}" if indices else ""
            remedy = "Memory may be short, try fewer workers; started again it goes on from the last checkpoint"
            if code == -signal.SIGBUS:
                remedy = "Shared memory may be short, see df /dev/shm; enlarge it, or pass Reader workers=0"
            got = f"one of {self.workers} {how}{doing}"
            return RuntimeError(complaint("fit", "the workers that read the data to live", got, remedy))
        return None


def _end(processes: list[BaseProcess]) -> None:
    for process in processes:
        process.kill()
    for process in processes:
        process.join(_GOING)


@contextmanager
def _deaf() -> Iterator[None]:
    """Keep PyTorch from raising the death of a worker inside the block, as it does from a signal handler."""
    if not hasattr(signal, "SIGCHLD") or threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGCHLD, before or signal.SIG_DFL)


def _as_it_is(batch: Any) -> Any:
    return batch
