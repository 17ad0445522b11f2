"""The network of an encoder for the hub, from what its ``config.json`` holds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from .._checks import complaint, type_name
from ..models import Normalize, backbone
from ..models.normalize import input_layer


def network(
    owner: str, name: str, branch: str | None, normalize: Any, settings: Mapping[str, Any]
) -> tuple[nn.Module, int, dict[str, Any]]:
    """Return the network, the number of its features, and the config."""
    if not isinstance(branch, str | None):
        raise TypeError(complaint(owner, "branch to be a name or None", type_name(branch), 'For example "adv"'))
    given = tuple(normalize) if isinstance(normalize, list) else normalize  # as JSON has it
    own = None if given is None else input_layer(owner, given, 3)
    encoder, features = backbone(name, **settings)
    path, usual = next((path, part) for path, part in encoder.named_modules() if type(part) is Normalize)
    encoder.set_submodule(path, own or usual)
    return (
        encoder,
        features,
        {"name": name, "branch": branch, "normalize": (own or usual).values, **dict(sorted(settings.items()))},
    )
