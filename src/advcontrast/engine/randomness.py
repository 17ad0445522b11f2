"""The state of every global random generator that a training step may draw from, as plain data."""

from __future__ import annotations

import hashlib
import random
import sys
from typing import Any

import torch


def capture(device: torch.device) -> dict[str, Any]:
    """Return the states of the generators of torch, of the device, of Python, and of NumPy where it is in use."""
    state: dict[str, Any] = {"torch": torch.get_rng_state(), "python": random.getstate()}
    if device.type != "cpu":
        state["device"] = torch.get_device_module(device).get_rng_state(device)
    if "numpy" in sys.modules:
        _, key, position, has_gauss, gauss = sys.modules["numpy"].random.get_state()
        state["numpy"] = [key.tolist(), int(position), int(has_gauss), float(gauss)]
    return state


def restore(state: dict[str, Any], device: torch.device) -> None:
    """Put every generator into the state that :func:`capture` returned."""
    torch.set_rng_state(state["torch"])
    random.setstate(state["python"])
    if "device" in state and device.type != "cpu":
        torch.get_device_module(device).set_rng_state(state["device"], device)
    if "numpy" in state and "numpy" in sys.modules:
        sys.modules["numpy"].random.set_state(("MT19937", *state["numpy"]))


def reseed(seed: int, device: torch.device) -> None:
    """Seed what :func:`capture` captures. ``torch.manual_seed`` would seed other devices too."""
    torch.default_generator.manual_seed(seed)
    if device.type != "cpu":
        torch.get_device_module(device).manual_seed(seed)
    random.seed(seed)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(seed % 2**32)


def branch_off(state: dict[str, Any], rank: int, device: torch.device) -> None:
    """Seed every generator from a captured state and the number of a process: one that joins a run has no stream yet.

    Its stream is neither that of another process nor one that a process of this number has had before.
    """
    digest = hashlib.sha256(repr((rank, state["torch"].tolist(), state["python"])).encode()).digest()
    reseed(int.from_bytes(digest[:8], "big"), device)
