"""A network of timm as a folder that timm was seen to load."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from .._checks import complaint


def write(network: Any, folder: Path, about: Mapping[str, Any]) -> None:
    """Write a network and what is known ``about`` it, load it, and compare outputs and state to the bit.

    Raises:
        ValueError: what timm loads is not the same, or cannot be loaded or written.
    """
    import timm

    first = next(network.parameters())
    try:
        timm.models.save_for_hf(network, str(folder), model_config=dict(about), safe_serialization=True)
        loaded: Any = timm.create_model(f"local-dir:{folder}", pretrained=True).to(first).eval()
        x = torch.randn(2, *loaded.pretrained_cfg["input_size"]).to(first)
        torch.testing.assert_close(*([f(x), f.state_dict()] for f in (loaded, network)), rtol=0, atol=0, equal_nan=True)
    except (AssertionError, AttributeError, RuntimeError, TypeError, ValueError) as error:
        rule, got = "a network that timm can build again", " ".join(str(error).split())[:300]
        raise ValueError(complaint("save_timm", rule, got, "Keep its stem; use reset_classifier")) from error
