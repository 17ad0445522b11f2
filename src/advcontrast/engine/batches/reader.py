"""How data is read that is not held in memory."""

from __future__ import annotations

from typing import Any

from torch.utils.data import Dataset, IterableDataset

from ..._checks import check_int, check_real, complaint, type_name

_OWNER = "Reader"


class Reader:
    """A data set that :func:`~advcontrast.engine.fit` reads while it trains, with the settings of how.

    Worker processes read ahead, in the order that the seed of :func:`fit` gives. Their number affects only the time:
    the weights are bit-identical, also after a run was interrupted in the middle of an epoch. Random numbers that a
    sample draws, in a data set that augments, depend only on the seed and the step.

    At most ``workers * prefetch + 1`` batches are in memory. A slow disk slows the training. A disk that gives no
    sample at all for ``timeout`` seconds, or a worker that dies, ends it with an error that names the sample; the next
    call of ``fit`` continues from the last checkpoint.

    Args:
        dataset: a map-style data set, as :class:`advcontrast.data.ImageStream`: each sample is a tensor, or a tuple of
            tensors and numbers, all of one shape and dtype. A method ``fingerprint()`` that returns a string lets a
            resume detect other samples.
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
