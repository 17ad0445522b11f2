"""Checks of arguments, with one template of errors: owner: expected rule, got actual. remedy."""

import copy
import gc
import math
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from functools import _lru_cache_wrapper, partial
from itertools import chain
from numbers import Integral, Real
from pathlib import Path
from types import FunctionType, MethodType, NoneType
from typing import Any, TypeVar
from weakref import ref

import torch
from torch import Tensor, nn

Call = TypeVar("Call", bound=Callable[..., Any])

_LARGEST = 2**64  # the limit of tensors, counts and seeds of PyTorch
_COLDEST = 1e-30  # keeps quotients, and sums of millions of them, below the largest float32


def complaint(owner: str, expected: str, got: str, remedy: str) -> str:
    """Return the text of an error; ``remedy`` is a sentence without its full stop."""
    return f"{owner}: expected {expected}, got {got}. {remedy}."


def type_name(value: object) -> str:
    """Return the name of the type of ``value``, with the dtype where it has one."""
    return str(value.dtype) if isinstance(value, Tensor) else type(value).__name__


def check_real(
    owner: str,
    name: str,
    value: Any,
    *,
    low: float = -math.inf,
    high: float = math.inf,
    above: bool = False,
    finite: bool = True,
    remedy: str,
) -> None:
    """Require a real number in ``[low, high]``, or ``(low, high]`` where ``above`` is set."""
    rule = f"{name} to be a{' finite' if finite else ''} number"
    if low != -math.inf:
        rule += f" {'>' if above else '>='} {low:g}"
    if high != math.inf:
        rule += f"{' and' if low != -math.inf else ''} <= {high:g}"
    if isinstance(value, (bool, Fraction)) or not isinstance(value, Real):
        raise TypeError(complaint(owner, rule, type_name(value), remedy))
    number = int(value) if isinstance(value, Integral) else float(value)
    in_range = low < number <= high if above else low <= number <= high
    if not in_range or (finite and number in (-math.inf, math.inf)):
        raise ValueError(complaint(owner, rule, repr(value), remedy))
    if isinstance(value, Integral) and abs(number) >= _LARGEST:
        raise ValueError(complaint(owner, rule, "an int of more than 64 bits", remedy))


def check_int(owner: str, name: str, value: Any, *, low: int, remedy: str) -> None:
    """Require an integer of at least ``low``, and not a bool."""
    rule = f"{name} to be an int >= {low}"
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(complaint(owner, rule, type_name(value), remedy))
    if not low <= int(value) < _LARGEST:
        got = repr(value) if abs(int(value)) < _LARGEST else "one of more than 64 bits"
        raise ValueError(complaint(owner, rule, got, remedy))


def check_temperature(owner: str, value: Any, *, remedy: str = "1 leaves the predictions unchanged") -> None:
    """Require a positive number by which similarities or logits can be divided without leaving float32."""
    check_real(owner, "temperature", value, low=0, above=True, remedy=remedy)
    if value < _COLDEST:
        raise ValueError(complaint(owner, f"temperature >= {_COLDEST:g}", repr(value), remedy))


def check_bool(owner: str, name: str, value: Any, *, remedy: str) -> None:
    """Require a ``bool``."""
    if not isinstance(value, bool):
        raise TypeError(complaint(owner, f"{name} to be True or False", repr(value), remedy))


def check_choice(owner: str, name: str, value: Any, choices: Sequence[str]) -> None:
    """Require one of a few strings; the error suggests the one that differs in case only."""
    rule = f"{name} to be one of {', '.join(map(repr, choices))}"
    if not isinstance(value, str):
        raise TypeError(complaint(owner, rule, type_name(value), f"Pass {name} as a string"))
    if value not in choices:
        meant = [choice for choice in choices if choice.lower() == value.lower()]
        remedy = f"Did you mean {meant[0]!r}" if meant else f"Choose one of the {len(choices)}"
        raise ValueError(complaint(owner, rule, repr(value), remedy))


def check_callable(owner: str, name: str, value: Any, *, remedy: str) -> None:
    """Require a function or another callable object."""
    if not callable(value):
        raise TypeError(complaint(owner, f"{name} to be callable", type_name(value), remedy))


def check_path(owner: str, name: str, value: Any, *, remedy: str) -> Path:
    """Require a string or a path, and return the path with a leading ``~`` expanded."""
    text = os.fspath(value) if isinstance(value, (str, os.PathLike)) else None
    if not isinstance(text, str):
        raise TypeError(complaint(owner, f"{name} to be a path", type_name(value), remedy))
    if text == "" or "\0" in text:
        raise ValueError(complaint(owner, f"{name} to be a path", repr(value), remedy))
    return Path(os.path.expanduser(text))  # noqa: PTH111 (Path.expanduser raises for an unknown user)


def check_iterable(owner: str, name: str, value: Any, *, remedy: str) -> None:
    """Require an iterable other than a tensor, or a sequence, without iterating over it."""
    has = [hasattr(type(value), method) for method in ("__iter__", "__getitem__", "__len__")]
    if isinstance(value, Tensor) or not (has[0] or all(has[1:])):
        raise TypeError(complaint(owner, f"{name} to be an iterable", type_name(value), remedy))


def check_device(owner: str, value: Any) -> torch.device:
    """Require a device or its name, and return the device."""
    try:
        device = torch.device(value)
    except (RuntimeError, TypeError, ValueError, OverflowError):
        remedy = "Pass 'cpu', 'cuda' or a torch.device"
        raise TypeError(complaint(owner, "device to be a device or its name", repr(value), remedy)) from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise RuntimeError(complaint(owner, "device to be one of this machine", str(device), "Pass 'cpu'"))
    return device


def check_type(owner: str, name: str, value: Any, kinds: type | tuple[type, ...], *, remedy: str) -> None:
    """Require an instance of one of ``kinds``."""
    if not isinstance(value, kinds):
        each = kinds if isinstance(kinds, tuple) else (kinds,)
        names = " or ".join("None" if kind is NoneType else kind.__name__ for kind in each)
        raise TypeError(complaint(owner, f"{name} to be of type {names}", type_name(value), remedy))


def check_state(owner: str, state: Any, *names: str) -> None:
    """Require the extra state of a module, a dict with the values of ``names``."""
    if not isinstance(state, dict) or state.keys() != {*names}:
        got = repr([*state]) if isinstance(state, dict) else type_name(state)
        expected, remedy = f"state to be a dict of {' and '.join(names)}", "Pass what get_extra_state returned"
        raise TypeError(complaint(owner, expected, got, remedy))


def check_module(owner: str, model: Any) -> None:
    """Require an ``nn.Module``."""
    if not isinstance(model, nn.Module):
        raise TypeError(complaint(owner, "model to be an nn.Module", type_name(model), "Pass the network itself"))


def check_copyable(owner: str, model: nn.Module) -> None:
    """Require a model that ``copy.deepcopy`` can copy, without copying parameters or buffers."""
    tensors = (tensor for tensor in chain(model.parameters(), model.buffers()) if tensor.is_leaf)
    kept: dict[int, Any] = {id(tensor): tensor for tensor in tensors}
    try:
        copy.deepcopy(model, dict(kept))
    except Exception as error:
        kept |= {id(module): module for module in model.modules()}
        where = next(_uncopyable(model, kept), type(model).__name__)
        remedy = "Keep such objects outside of the model, or define __deepcopy__ in their class"
        got = f"{where!r}: {error}"
        if "graph leaves" in str(error):
            got = f"the result of a computation in {where!r}"
            remedy = "Use torch.nn.utils.parametrizations in place of the old weight_norm and spectral_norm, "
            remedy += "call torch.nn.utils.prune.remove on pruned layers, and detach results that a module keeps"
        raise RuntimeError(complaint(owner, "a model that copy.deepcopy can copy", got, remedy)) from error
    modules = {id(module) for module in model.modules()}
    for prefix, module in model.named_modules():
        for name, value in vars(module).items():
            if not name.endswith(("_hooks", "_compiled_call_impl")) and _captures(value, modules, set()):
                got = f"one in {f'{prefix}.{name}'.removeprefix('.')!r} that does"
                remedy = "A copy would run the modules of the original: make it a method, or an nn.Module"
                raise RuntimeError(complaint(owner, "functions that do not hold modules of the model", got, remedy))


def _uncopyable(model: nn.Module, kept: dict[int, Any]) -> Iterator[str]:
    for prefix, module in model.named_modules():
        for name, value in {**module._parameters, **module._buffers, **vars(module)}.items():
            try:
                copy.deepcopy(value, dict(kept))
            except Exception:
                yield f"{prefix}.{name}".removeprefix(".")


def _captures(value: Any, modules: set[int], seen: set[int], inside: bool = False) -> bool:
    """Return whether a function or weak reference in ``value`` or in its containers holds one of ``modules``."""
    if id(value) in modules:
        return inside
    if id(value) in seen:
        return False
    seen.add(id(value))
    if isinstance(value, FunctionType):
        inside, parts = True, gc.get_referents(*(value.__closure__ or ()), value.__defaults__, value.__kwdefaults__)
    elif isinstance(value, (dict, list, tuple, set, frozenset, deque, partial, MethodType)):
        parts = gc.get_referents(value)
    elif isinstance(value, (ref, _lru_cache_wrapper)):  # copied by reference too
        inside, parts = True, [value() if isinstance(value, ref) else value.__wrapped__]
    else:
        return False
    return any(_captures(part, modules, seen, inside) for part in parts)


def check_tensor(
    owner: str, name: str, value: Any, dtypes: Sequence[torch.dtype] | None = None, *, remedy: str
) -> None:
    """Require a tensor of one of ``dtypes``; ``None`` stands for every real floating dtype."""
    good = isinstance(value, Tensor) and (value.is_floating_point() if dtypes is None else value.dtype in dtypes)
    if not good:
        kinds = "floating point" if dtypes is None else " or ".join(map(str, dtypes))
        raise TypeError(complaint(owner, f"{name} to be a {kinds} tensor", type_name(value), remedy))
    if value.layout != torch.strided:
        raise TypeError(complaint(owner, f"{name} to be a dense tensor", str(value.layout), "Call to_dense() on it"))


def check_shape(owner: str, name: str, tensor: Tensor, shape: str, fits: bool, *, remedy: str) -> None:
    """Require that the tensor ``fits`` the ``shape``, which is written as in a docstring."""
    if not fits:
        raise ValueError(complaint(owner, f"{name} of shape {shape}", f"{list(tensor.shape)}", remedy))


def check_one_device(owner: str, **tensors: Tensor) -> None:
    """Require tensors, passed under the names of the arguments, to be on one device."""
    devices = [tensor.device for tensor in tensors.values()]
    if any(device != devices[0] for device in devices):
        got, remedy = " and ".join(map(str, devices)), "Move them to the device of the model"
        raise ValueError(complaint(owner, f"{' and '.join(tensors)} on one device", got, remedy))


def check_logits(owner: str, tensors: dict[str, Tensor], *, least: int = 2, remedy: str) -> None:
    """Require logits of one shape ``[N, C]`` with C at least ``least``, on one device."""
    for name, logits in tensors.items():
        check_tensor(owner, name, logits, remedy=remedy)
    shapes = [logits.shape for logits in tensors.values()]
    if len(set(shapes)) > 1 or len(shapes[0]) != 2 or shapes[0][1] < least:
        same = "to have the same shape" if len(shapes) > 1 else "of shape"
        expected = f"{' and '.join(tensors)} {same} [N, C] with C >= {least}"
        raise ValueError(complaint(owner, expected, " and ".join(str(list(shape)) for shape in shapes), remedy))
    check_one_device(owner, **tensors)


def check_classes(owner: str, name: str, classes: Tensor, logits: Tensor, *, low: int = 0, remedy: str) -> None:
    """Require a class index from ``low`` to C - 1 for each row of the logits."""
    check_tensor(owner, name, classes, (torch.int64,), remedy=remedy)
    check_shape(owner, name, classes, f"[{len(logits)}]", classes.shape == logits.shape[:1], remedy=remedy)
    check_one_device(owner, logits=logits, **{name: classes})
    check_within(owner, name, classes, (low, logits.shape[1] - 1), remedy=remedy)


def check_bounds(owner: str, bounds: Any) -> None:
    """Require a tuple of two numbers, the smaller one first; they may be infinite."""
    remedy = "Images have (0.0, 1.0)"
    if not isinstance(bounds, tuple):
        raise TypeError(complaint(owner, "bounds to be a tuple (low, high)", type_name(bounds), remedy))
    for bound in bounds:
        check_real(owner, "each of bounds", bound, finite=False, remedy=remedy)
    if len(bounds) != 2 or not bounds[0] < bounds[1]:
        raise ValueError(complaint(owner, "bounds (low, high) with low < high", repr(bounds), remedy))


def check_generator(owner: str, generator: Any, device: torch.device) -> None:
    """Require ``None`` or a ``torch.Generator`` on ``device``."""
    if generator is None:
        return
    rule = f"generator to be a torch.Generator on {device.type} or None"
    remedy = f"Create it with torch.Generator({device.type!r})"
    if not isinstance(generator, torch.Generator):
        raise TypeError(complaint(owner, rule, type_name(generator), remedy))
    if generator.device.type != device.type:
        raise ValueError(complaint(owner, rule, f"one on {generator.device.type}", remedy))


def source_device(owner: str, generator: Any) -> torch.device:
    """Require ``None`` or a generator, and return its device, by default the CPU."""
    device = generator.device if isinstance(generator, torch.Generator) else torch.device("cpu")
    check_generator(owner, generator, device)
    return device


def readable(tensor: Tensor) -> bool:
    """Return whether values can be checked: reading one would synchronise an accelerator, or break a compiled graph."""
    return tensor.device.type == "cpu" and not torch.compiler.is_compiling()


def all_finite(value: Tensor) -> bool:
    """Return whether all values are finite: their sum, one pass, is finite only if they are, but may overflow."""
    return math.isfinite(value.detach().sum().item()) or bool(value.isfinite().all())


def check_finite(owner: str, name: str, value: Tensor, *, everywhere: bool = False, remedy: str) -> None:
    """Require finite values, where they are :func:`readable` or ``everywhere``."""
    if (everywhere or readable(value)) and not bool(value.isfinite().all()):
        got = f"{int((~torch.isfinite(value)).sum())} non-finite of {value.numel()} values"
        raise ValueError(complaint(owner, f"{name} to be finite", got, remedy))


def check_within(owner: str, name: str, value: Tensor, bounds: tuple[float, float], *, remedy: str) -> None:
    """Require finite values within ``bounds``, with a slack of 1e-6 of the range for floats, if :func:`readable`."""
    if not readable(value) or value.numel() == 0:
        return
    smallest, largest = (extreme.item() for extreme in value.detach().aminmax())
    if not math.isfinite(largest - smallest):  # one pass for the extremes, which are NaN if any value is
        check_finite(owner, name, value, remedy=remedy)
    low, high = bounds
    slack = 1e-6 * (high - low) if value.is_floating_point() and math.isfinite(high - low) else 0.0
    if smallest < low - slack or largest > high + slack:
        got = f"values in [{smallest:.3g}, {largest:.3g}]"
        raise ValueError(complaint(owner, f"{name} within bounds [{low}, {high}]", got, remedy))
