"""States of checkpoints: tensors, numbers, strings, and containers of them."""

from collections import Counter, OrderedDict
from typing import Any

import torch
from torch import Tensor, nn

from ..._checks import complaint, type_name
from ..._digest import digest

_OWNER = "Checkpoint"
_PLAIN = (bool, int, float, str, bytes, type(None), torch.Size, torch.dtype, torch.device)


def check_state(value: Any, where: str = "state") -> None:
    """Require a state that ``torch.load(weights_only=True)`` restores; ``where`` is its name in messages.

    Raises:
        TypeError: a value of another type.
    """
    if isinstance(value, Tensor):
        if (got := _unsupported(value)) is not None:
            expected = f"{where} to be a dense Tensor or nn.Parameter with values"
            raise TypeError(complaint(_OWNER, expected, got, "Convert it, with .detach().to_dense() for example"))
    elif type(value) in (list, tuple):
        for i, item in enumerate(value):
            check_state(item, f"{where}[{i}]")
    elif type(value) in (dict, OrderedDict, Counter):
        for key, item in value.items():
            if not all(type(part) in _PLAIN for part in (key if type(key) is tuple else (key,))):
                expected = f"keys of {where} to be strings, numbers, None, or tuples of them"
                raise TypeError(complaint(_OWNER, expected, type(key).__name__, "Convert them, with str() for example"))
            check_state(item, f"{where}[{key!r}]")
    elif type(value) not in _PLAIN:
        expected = f"{where} to be a tensor, number, string, None, or a list, tuple or dict of them"
        raise TypeError(complaint(_OWNER, expected, type_name(value), "Convert it, with str() or .item() for example"))


def _unsupported(tensor: Tensor) -> str | None:
    if type(tensor) not in (Tensor, nn.Parameter):
        return type(tensor).__name__
    if tensor.is_meta or tensor.is_nested or tensor.is_quantized or tensor.layout != torch.strided:
        return f"one of {tensor.dtype} and {tensor.layout} on {tensor.device}"
    if tensor.numel() and not tensor.untyped_storage().nbytes():
        return "one whose memory was released"
    return None


def same_state(a: Any, b: Any) -> bool:
    """Return whether two states are bit-identical."""
    if type(a) is not type(b):
        return False
    if isinstance(a, Tensor):
        return digest(a) == digest(b)
    if isinstance(a, dict):
        a, b = [*a.items()], [*b.items()]
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same_state, a, b))
    return repr(a) == repr(b)  # tells 0.0 from -0.0
