"""Tensors that are computed with must be where the others are."""

from __future__ import annotations

from torch import Tensor

from .._checks import complaint


def check_one_device(owner: str, **tensors: Tensor) -> None:
    """Require tensors, given under the names that their user knows them by, to be on one device."""
    devices = [tensor.device for tensor in tensors.values()]
    if any(device != devices[0] for device in devices):
        expected = f"{' and '.join(tensors)} on one device"
        remedy = "Move them to the device of the model"
        raise ValueError(complaint(owner, expected, " and ".join(map(str, devices)), remedy))
