"""State that a failed call must not change."""

import random
from collections.abc import Mapping
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer


def everything(held: Any, folder: Path) -> dict[str, Any]:
    """Return a copy of all that a call could have changed: what it was given, global state, and files."""
    files = {str(path): path.read_bytes() if path.is_file() else None for path in sorted(folder.rglob("*"))}
    found: dict[str, Any] = {
        "torch's randomness": torch.get_rng_state(),
        "Python's randomness": random.getstate(),
        "numpy's randomness": np.random.get_state()[1:],
        "gradients being recorded": torch.is_grad_enabled(),
        "the default dtype": torch.get_default_dtype(),
        "the folder": {path: content for path, content in files.items() if not path.endswith(".lock")},
    }
    _look(found, "", held, set())
    return found


def changes(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """Name what is not the same, to the bit."""
    return [name for name in before.keys() | after.keys() if not _same(before.get(name), after.get(name))]


def _look(found: dict[str, Any], name: str, held: Any, seen: set[int]) -> None:
    if id(held) in seen:
        return
    seen.add(id(held))
    if isinstance(held, nn.Module):
        found[f"{name}: modules"] = [type(part).__name__ for part in held.modules()]
        found[f"{name}: modes"] = [part.training for part in held.modules()]
        found[f"{name}: hooks"] = [_hooks(part) for part in held.modules()]
        found[f"{name}: branches"] = [getattr(part, "branch", None) for part in held.modules()]
        found[f"{name}: state"] = {key: _copy(value) for key, value in held.state_dict().items()}
        for key, parameter in held.named_parameters():
            found[f"{name}: {key}"] = (parameter.requires_grad, _copy(parameter.grad))
    elif isinstance(held, Tensor):
        found[name] = (held.requires_grad, _copy(held), _copy(held.grad) if held.is_leaf else None)
    elif isinstance(held, Optimizer):
        found[name] = repr(held.state_dict())
    elif isinstance(held, Mapping):
        for key, value in held.items():
            _look(found, f"{name}.{key}", value, seen)
    elif isinstance(held, (list, tuple)):
        for i, value in enumerate(held):
            _look(found, f"{name}[{i}]", value, seen)
    elif hasattr(held, "__dict__") and (not callable(held) or _is_a_record(held)):
        _look(found, name, vars(held), seen)


def _is_a_record(held: Any) -> bool:
    return is_dataclass(held) and not isinstance(held, type)


def _hooks(module: nn.Module) -> list[int]:
    return [len(value) for key, value in vars(module).items() if key.endswith("_hooks") and value is not None]


def _copy(value: Any) -> Any:
    if not isinstance(value, Tensor):
        return value
    cheap = value.is_meta or value.is_sparse or value.numel() > 1 << 20
    return str(value.shape) if cheap else value.detach().clone()


def _same(a: Any, b: Any) -> bool:
    if type(a) is not type(b):
        return False
    if isinstance(a, Tensor):
        return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a.isnan(), b.isnan()) and _equal(a, b)
    if isinstance(a, np.ndarray):
        return np.array_equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(_same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(_same(x, y) for x, y in zip(a, b, strict=True))
    return a == b


def _equal(a: Tensor, b: Tensor) -> bool:
    return torch.equal(a.nan_to_num(), b.nan_to_num()) if a.is_floating_point() else torch.equal(a, b)
