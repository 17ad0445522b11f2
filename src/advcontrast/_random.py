"""State of the global random generators: torch, the accelerator of the process, Python, and NumPy if it is imported.

No function initialises an accelerator: one that the process has not used has no state to save.
"""

import random
import sys
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from types import FunctionType, MethodType, ModuleType
from typing import Any

import torch

from ._digest import digest

# They hold no generators, and there may be millions of them.
_PLAIN = (int, float, str, bytes, torch.Tensor, type, FunctionType, ModuleType)


def capture(*devices: torch.device) -> dict[str, Any]:
    """Return the states of the generators of the host and of these devices, as plain data."""
    state: dict[str, Any] = {"torch": torch.get_rng_state(), "python": random.getstate()}
    state["devices"] = [module.get_rng_state(*which) for _, module, which in _accelerators(devices)]
    if "numpy" in sys.modules:
        _, key, position, has_gauss, gauss = sys.modules["numpy"].random.get_state()
        state["numpy"] = [key.tolist(), int(position), int(has_gauss), float(gauss)]
    return state


def restore(state: dict[str, Any], *devices: torch.device) -> None:
    """Restore the states that :func:`capture` returned for as many devices, not necessarily the same ones."""
    torch.set_rng_state(state["torch"])
    random.setstate(state["python"])
    for (_, module, which), saved in zip(_accelerators(devices), state["devices"], strict=False):
        module.set_rng_state(saved, *which)
    if "numpy" in state and "numpy" in sys.modules:
        sys.modules["numpy"].random.set_state(("MT19937", *state["numpy"]))


def reseed(seed: int, *devices: torch.device) -> None:
    """Seed the generators of :func:`capture`. ``torch.manual_seed`` would seed other devices too."""
    torch.default_generator.manual_seed(seed)
    for device, module, which in _accelerators(devices):
        module.set_rng_state(torch.Generator(device).manual_seed(seed).get_state(), *which)
    random.seed(seed)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(seed % 2**32)


def branch_off(state: dict[str, Any], rank: int, *devices: torch.device) -> int:
    """Seed every generator from a captured state and the number of a process that joins a run; return the seed.

    Its stream differs from those of the other processes, and from those of earlier processes with this number.
    """
    seed = int(digest(repr((rank, state["torch"].tolist(), state["python"])))[:16], 16)
    reseed(seed, *devices)
    return seed


def generators(owner: object) -> dict[str, torch.Generator]:
    """Return the generators in the attributes of an object and of the objects that it holds, by their full names.

    Attributes, lists, tuples, deques, dicts, methods and the arguments of ``functools.partial`` are followed,
    functions, their closures, classes and sets are not.
    """
    found: dict[str, torch.Generator] = {}
    seen: set[int] = set()
    left: list[tuple[str, Any]] = [("", owner)]
    while left:
        name, value = left.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, torch.Generator):
            found[name.removeprefix(".").replace("_modules.", "")] = value
        else:
            left += [(f"{name}.{key}", held) for key, held in _held(value) if not isinstance(held, _PLAIN)]
    return found


def _held(value: Any) -> Iterable[tuple[Any, Any]]:
    if isinstance(value, (list, tuple, deque)):
        return enumerate(value)
    if isinstance(value, dict):
        # The keys of hooks are counters of the process.
        return [(key if isinstance(key, str) else i, held) for i, (key, held) in enumerate(value.items())]
    if isinstance(value, partial):
        return [("args", value.args), ("keywords", value.keywords), ("func", value.func)]
    if isinstance(value, MethodType):
        return [("self", value.__self__)]
    slots = [name for kind in type(value).__mro__ for name in getattr(kind, "__slots__", ())]
    held = {name: getattr(value, name) for name in slots if hasattr(value, name)}
    return {**held, **getattr(value, "__dict__", {})}.items()


@contextmanager
def preserve_rng_state(seed: int | None = None) -> Iterator[None]:
    """Restore every global generator on exit, those of all devices included; seed them first if a seed is given."""
    devices = in_use()
    before = capture(*devices)
    try:
        if seed is not None:
            reseed(seed, *devices)
        yield
    finally:
        restore(before, *devices)


def on_host(generator: torch.Generator | None) -> torch.Generator | None:
    """Return a CPU generator: the one passed, or one seeded from that of an accelerator, which is advanced.

    This does not synchronise with the device: the state of its generator is on the host.
    """
    if generator is None or generator.device.type == "cpu":
        return generator
    seed = int(digest(generator.get_state())[:15], 16)
    torch.empty((), device=generator.device).uniform_(generator=generator)
    return torch.Generator().manual_seed(seed)


def _accelerators(devices: tuple[torch.device, ...]) -> list[tuple[torch.device, Any, tuple[torch.device, ...]]]:
    """Return the accelerators with their modules and the arguments that name their generators; MPS has only one."""
    far = [device for device in devices if device.type != "cpu"]
    return [(device, torch.get_device_module(device), () if device.type == "mps" else (device,)) for device in far]


def in_use() -> list[torch.device]:
    """Return all devices of the accelerator that this process has used."""
    kind = torch.accelerator.current_accelerator()
    if kind is None:
        return []
    module = torch.get_device_module(kind)
    # MPS has one generator, which needs no initialisation.
    if not getattr(module, "is_initialized", torch.accelerator.is_available)():
        return []
    return [torch.device(kind.type, index) for index in range(module.device_count())]
