"""Adapters for timm: its networks as encoders, and folders for ``timm.create_model("local-dir:FOLDER", ...)``."""

import os
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from .._checks import check_int, check_type, complaint, type_name
from .._random import preserve_rng_state
from ..models import Normalize
from ._export import new_folder, plain_copy

try:
    import timm
except ImportError as error:
    raise ImportError(complaint("adapters.timm", "timm", "no such package", "Call pip install timm")) from error

_OF_OTHER_WEIGHTS = ("tag", "url", "hf_hub_id", "license", "origin_url", "test_input_size", "test_crop_pct")


def from_timm(model: nn.Module) -> nn.Sequential:
    """Return a network of timm with the normalisation of its config in front, so that it takes images in [0, 1]."""
    data: Any = timm.data
    config = data.resolve_input_data_config(_checked("from_timm", model))  # with one number per channel
    return nn.Sequential(Normalize(config["mean"], config["std"]), model)


def save_timm(
    model: nn.Module,
    folder: str | os.PathLike[str],
    *,
    branch: str | None = None,
    size: int | None = None,
    labels: Sequence[str] | None = None,
) -> None:
    """Write a network of timm, or a branch of one, to a new folder that timm loads with bit-identical outputs.

    For the transforms of timm, the config gets the constants of a ``Normalize`` in front, or mean 0 and deviation 1;
    ``size``, the side of the images, if given; and ``labels``, the names of the classes in order, as ``label_names``.
    The folder is created once timm has loaded it and outputs agree. Networks that timm cannot build raise an error.
    """
    plain = plain_copy("save_timm", model, branch).cpu()
    first, network = plain if type(plain) is nn.Sequential and len(plain) == 2 else (None, plain)
    _checked("save_timm", network if first is None or type(first) is Normalize else plain)
    about = _describe(network, getattr(first, "values", None), size, labels)
    for tensor in (*network.parameters(), *network.buffers()):
        tensor.data = tensor.data.clone(memory_format=torch.contiguous_format)
    like = next(network.parameters())
    with new_folder("save_timm", folder) as draft, preserve_rng_state(), torch.device("cpu"), torch.no_grad():
        try:
            timm.models.save_for_hf(network, str(draft), model_config=about, safe_serialization=True)
            loaded: Any = timm.create_model(f"local-dir:{draft}", pretrained=True).to(like).eval()
            x = torch.randn(2, *loaded.pretrained_cfg["input_size"]).to(like)
            pair = ([each(x), each.state_dict()] for each in (loaded, network))
            torch.testing.assert_close(*pair, rtol=0, atol=0, equal_nan=True)
        except (AssertionError, AttributeError, RuntimeError, TypeError, ValueError) as error:
            rule, got = "a network that timm can build again", " ".join(str(error).split())[:300]
            raise ValueError(complaint("save_timm", rule, got, "Keep its stem; use reset_classifier")) from error


def _checked(owner: str, network: Any) -> Any:
    if isinstance(network, nn.Module) and "architecture" in getattr(network, "pretrained_cfg", {}):
        return network
    raise TypeError(complaint(owner, "a network of timm, bare or normalized", type_name(network), "Remove the head"))


def _describe(network: Any, constants: Sequence[Any] | None, size: int | None, labels: Any) -> dict[str, Any]:
    """Describe the new weights in a network's config, with ``constants`` as (mean, std); return further entries."""
    config = network.pretrained_cfg
    if size is not None:
        check_int("save_timm", "size", size, low=1, remedy="Pass the side of the images in pixels")
        config.update(input_size=(config["input_size"][0], int(size), int(size)), crop_pct=1.0)
    channels = config["input_size"][0]
    config.update(zip(("mean", "std"), constants or ((0.0,) * channels, (1.0,) * channels), strict=True))
    for name in _OF_OTHER_WEIGHTS:
        config.pop(name, None)
    if labels is None:
        return {}
    remedy = "Pass the names of the classes in their order"
    check_type("save_timm", "labels", labels, (tuple, list), remedy=remedy)
    for label in labels:
        check_type("save_timm", "each of labels", label, str, remedy=remedy)
    if len(labels) != network.num_classes:
        raise ValueError(complaint("save_timm", f"{network.num_classes} labels", str(len(labels)), remedy))
    config.pop("label_descriptions", None)  # of the names before
    return {"label_names": list(labels)}
