"""Read data during training in worker processes, which may crash or hang."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
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
                found = found.__cause__
            if found is None:
                raise
            dead = [worker.pid for worker in loading._workers if not worker.is_alive()]
            rows = [(index, pid) for index, _, pid in batches.at.tolist() if index >= 0]
            read = dict.fromkeys(self._sample(index) for index, pid in rows if not dead or pid in dead)
            got = f"{str(found).rstrip('. ')} while they read {' and '.join(read) or 'nothing'}"
            remedy = "Check the disk, the memory and df /dev/shm; try fewer workers or a longer timeout"
            remedy += ". The last checkpoint is intact"
            raise RuntimeError(complaint("fit", "batches from the data-loading workers", got, remedy)) from error
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
                raise RuntimeError(complaint("fit", expected, got, remedy)) from error

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
