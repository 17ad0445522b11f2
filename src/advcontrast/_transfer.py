"""Copies between the host and an accelerator that synchronise with it at most once."""

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass


def to_device(x: Tensor, device: torch.device) -> Tensor:
    """Copy a tensor of the host to the device without waiting, through pinned memory for a GPU."""
    return (x.pin_memory() if device.type == "cuda" and x.device.type == "cpu" else x).to(device, non_blocking=True)


def on_cpu(entry: Any) -> Any:
    """Return nested containers with the tensors of an accelerator on the CPU; parameters stay.

    Each copy waits for the device, so the tensors are copied together.
    """
    found: list[Tensor] = []
    _mapped(entry, found.append)
    far = [each for each in found if each.device.type not in ("cpu", "meta") and not isinstance(each, nn.Parameter)]
    near = {id(tensor): copied for tensor, copied in zip(far, copied_together(far), strict=True)}
    return _mapped(entry, lambda tensor: near.get(id(tensor), tensor))


def _mapped(entry: Any, function: Callable[[Tensor], Any]) -> Any:
    if isinstance(entry, dict):
        mapped = copy.copy(entry)  # a state dict has attributes
        for key, value in entry.items():
            mapped[key] = _mapped(value, function)
        return mapped
    if isinstance(entry, (list, tuple)):
        return type(entry)(_mapped(item, function) for item in entry)
    return function(entry) if isinstance(entry, Tensor) else entry


def copied_together(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Return copies of tensors on the CPU, with their strides; one transfer copies all dense ones of one dtype."""
    copies = [*tensors]
    together: dict[Any, list[int]] = {}
    for place, tensor in enumerate(tensors):
        if tensor.layout == torch.strided and not is_traceable_wrapper_subclass(tensor):
            together.setdefault((tensor.device, tensor.dtype), []).append(place)
        else:
            copies[place] = tensor.detach().cpu()
    for places in together.values():
        group = [tensors[place].detach() for place in places]
        orders = [sorted(range(each.dim()), key=each.stride, reverse=True) for each in group]
        flat = torch.cat([each.permute(order).reshape(-1) for each, order in zip(group, orders, strict=True)]).cpu()
        parts = torch.split(flat, [each.numel() for each in group])
        for place, each, order, part in zip(places, group, orders, parts, strict=True):
            packed = part.view([each.shape[dim] for dim in order])
            # Cloned, so that each tensor has a storage of its own when it is saved.
            copies[place] = packed.permute([order.index(dim) for dim in range(each.dim())]).clone()
    return copies
