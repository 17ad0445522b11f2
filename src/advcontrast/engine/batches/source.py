"""Sources of batches: tensors on the device, or a data set that is read during training."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset

from ..._checks import check_finite, complaint, type_name
from ..._digest import digest
from .plan import Plan
from .reader import DataReader, WorkerSource
from .worker import Batch

_OWNER = "fit"
_REMEDY = "Pass a tensor [N, C, H, W] or (images, labels), or for a folder image_folder(path).x or ImageStream(path)"


class TensorSource:
    """Tensors with one entry per sample."""

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self.tensors = tensors
        self.lengths = [len(tensor) if tensor.dim() else 0 for tensor in tensors]

    def identity(self) -> str:
        """Return a description of the samples."""
        return fingerprint(self.tensors)

    @contextmanager
    def batches(
        self, plan: Plan, device: torch.device, *, epochs: range, skip: int
    ) -> Iterator[Iterator[tuple[Batch, int | None]]]:
        """Index the tensors on the device; arguments and result are those of :meth:`WorkerSource.batches`."""
        tensors = [tensor.to(device) for tensor in self.tensors]
        indices = plan.run(epochs, device, skip=skip)
        yield ((tuple(tensor[chosen] for tensor in tensors), None) for chosen in indices)


Source: TypeAlias = TensorSource | WorkerSource


def source_of(data: Any) -> Source:
    """Return the source for the ``data`` of :func:`fit`.

    Raises:
        TypeError: it is neither tensors nor a map-style data set.
        ValueError: a tensor is not finite.
    """
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
