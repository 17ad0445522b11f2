"""timm: its networks in, and folders out that ``timm.create_model("local-dir:FOLDER", pretrained=True)`` loads."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from .._checks import complaint, type_name
from .._random import kept
from ..models import Normalize
from ._folder import new_folder
from ._plain import plain_copy
from ._timm_config import describe
from ._timm_folder import write

try:
    import timm
except ImportError as error:
    raise ImportError(complaint("adapters.timm", "timm", "no such package", "Call pip install timm")) from error


def from_timm(model: nn.Module) -> nn.Sequential:
    """Return a network of timm behind the normalisation of its config: it takes images in [0, 1] from now on."""
    data: Any = timm.data
    config = data.resolve_input_data_config(_checked("from_timm", model))  # with one number a channel
    return nn.Sequential(Normalize(config["mean"], config["std"]), model)


def save_timm(
    model: nn.Module,
    folder: str | os.PathLike[str],
    *,
    branch: str | None = None,
    size: int | None = None,
    labels: Sequence[str] | None = None,
) -> None:
    """Write a network of timm, or a branch of one, to a new folder that timm loads to the same outputs, bit for bit.

    For the transforms of timm the config gets the constants of a ``Normalize`` in front, mean 0 and deviation 1 without
    one; ``size``, the side of the images, if given; and ``labels``, the names of the classes in their order, as
    ``label_names``. The folder appears once loaded and compared; what timm cannot build, as a stem, is refused.
    """
    plain = plain_copy("save_timm", model, branch).cpu()
    first, network = plain if type(plain) is nn.Sequential and len(plain) == 2 else (None, plain)
    _checked("save_timm", network if first is None or type(first) is Normalize else plain)
    about = describe(network, getattr(first, "values", None), size, labels)
    for tensor in (*network.parameters(), *network.buffers()):
        tensor.data = tensor.data.clone(memory_format=torch.contiguous_format)
    with new_folder("save_timm", folder) as draft, kept(), torch.device("cpu"), torch.no_grad():
        write(network, draft, about)


def _checked(owner: str, network: Any) -> Any:
    if isinstance(network, nn.Module) and "architecture" in getattr(network, "pretrained_cfg", {}):
        return network
    raise TypeError(complaint(owner, "a network of timm, bare or normalized", type_name(network), "Leave heads out"))
