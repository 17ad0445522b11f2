"""Data that is read while it is trained on, by processes that may die or wait for a disk for ever."""

from __future__ import annotations

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
from torch import Tensor
from torch.utils.data import ConcatDataset, DataLoader, Subset, TensorDataset

from ..._checks import complaint, type_name
from ..._digest import digest
from ...data.stream import ImageStream
from .plan import Plan
from .reader import Reader
from .worker import Failure, Order, Shelf

_GOING = 5.0  # seconds that a killed process has to go


class Reading:
    """A running :class:`Reader`."""

    def __init__(self, reader: Reader) -> None:
        self._reader, self._dataset = reader, reader.dataset
        self._workers, self._timeout, self._prefetch = reader.workers, reader.timeout, reader.prefetch

    @property
    def lengths(self) -> list[int]:
        """The number of samples."""
        return [len(self._reader)]

    def identity(self) -> str:
        """Return an identification of this data set, without reading it."""
        return _identity(self._dataset)

    @contextmanager
    def batches(
        self, plan: Plan, device: torch.device, *, epochs: range, skip: int
    ) -> Iterator[Iterator[tuple[tuple[Tensor, ...], int | None]]]:
        """Read the batches of some epochs, without the first ``skip``, and end all workers behind the block.

        Yields:
            An iterator over batches on the device, and how many samples of each are replaced by others; ``None`` where
            none ever is.
        """
        shelf = Shelf(self._dataset, plan.seed, self._workers)
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
        if self._workers == 0:
            yield from map(shelf.__getitem__, orders)
            return
        before = set(multiprocessing.active_children())
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "This DataLoader will create")  # as many as were asked for
            loader = DataLoader(
                shelf,
                batch_size=None,
                sampler=orders,
                num_workers=self._workers,
                prefetch_factor=self._prefetch,
                collate_fn=_as_it_is,
                worker_init_fn=shelf.begin,
                timeout=self._timeout,
                pin_memory=pin,
                generator=torch.Generator(),  # the global one belongs to the training
            )
            try:
                alone = [iter(loader)]
            except (AttributeError, TypeError, OSError, RuntimeError) as error:
                remedy = "Define what it holds in a module, so that it can be pickled, or pass Reader workers=0"
                got = f"{type(error).__name__}: {error}".rstrip(".")
                expected = f"{type_name(self._dataset)} to be taken over by {self._workers} worker processes"
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
                if not isinstance(error, Exception):
                    raise error
                late = isinstance(error, RuntimeError) and time.monotonic() - since >= 0.9 * self._timeout
                if not late:
                    # A dying worker can break off a message in many ways, shortly before it is found dead.
                    ended = wait([process.sentinel for process in processes], _GOING)
                    for process in processes:
                        if process.sentinel in ended:
                            process.join(_GOING)
                if dead := self._dead(shelf, processes):
                    raise dead from error
                if not late:
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
        if not isinstance(self._dataset, ImageStream) or self._dataset.unreadable == "raise":
            return tensors, None
        for index, reason in batch.replaced:
            self._dataset.note(index, reason)
        return tensors, len(batch.replaced)

    def _sample(self, index: int) -> str:
        path = f" ({str(self._dataset.path(index))!r})" if isinstance(self._dataset, ImageStream) else ""
        return f"sample {index}{path}"

    def _hanging(self, shelf: Shelf) -> RuntimeError:
        read = " and ".join(self._sample(index) for index in shelf.at[:, 0].tolist() if index >= 0)
        remedy = "Look at the disk, or pass Reader a longer timeout; the last checkpoint is good"
        expected = f"a sample from any of {self._workers} workers within {self._timeout:g} s"
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
            remedy = "Memory may be short: try fewer workers. The next run resumes from the last checkpoint"
            if code == -signal.SIGBUS:
                remedy = "Shared memory may be short, see df /dev/shm; enlarge it, or pass Reader workers=0"
            got = f"one of {self._workers} {how}{doing}"
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


def _identity(dataset: Any) -> str:
    """Return class and length, and a digest of the samples where one is known without reading them."""
    known = getattr(dataset, "fingerprint", None)
    if callable(known):
        about = f" {known()}"
    elif isinstance(dataset, TensorDataset):
        about = f" {digest(*dataset.tensors)[:16]}"
    elif isinstance(dataset, Subset):
        about = f" {digest(torch.as_tensor(dataset.indices))[:16]} of {_identity(dataset.dataset)}"
    elif isinstance(dataset, ConcatDataset):
        about = f" of {', '.join(map(_identity, dataset.datasets))}"
    else:
        about = ""
    return f"{type_name(dataset)} of {len(dataset)} samples{about}"
