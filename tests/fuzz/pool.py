"""Values that an argument may be given by mistake."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor


class OwnTensor(Tensor):
    """A subclass as users write them."""


class Anything:
    """Takes whatever it is called with."""

    def __init__(self, *args: Any, **settings: Any) -> None:
        pass


PLAIN: dict[str, Callable[[], Any]] = {
    "None": lambda: None,
    "an empty string": lambda: "",
    "'DS'": lambda: "DS",
    "-1": lambda: -1,
    "0": lambda: 0,
    "1": lambda: 1,
    "2.5": lambda: 2.5,
    "True": lambda: True,
    "nan": lambda: math.nan,
    "inf": lambda: math.inf,
    "1e308": lambda: 1e308,
    "10**30": lambda: 10**30,
    "1j": lambda: 1j,
    "bytes": lambda: b"DS",
    "an empty list": list,
    "an empty dict": dict,
    "an empty tuple": tuple,
    "[None]": lambda: [None],
    "(0, 1, 2)": lambda: (0, 1, 2),
    "{'a': 1}": lambda: {"a": 1},
    "an object": object,
    "a class": lambda: Anything,
    "a function": lambda: lambda *args, **settings: None,
    "an array": lambda: np.ones((2, 3)),
    "a number of numpy": lambda: np.float64(0.5),
    "a path": lambda: Path("nowhere"),
    "an iterator": lambda: (i for i in range(3)),
    "no values": lambda: torch.empty(0),
    "a number in a tensor": lambda: torch.tensor(0.5),
    "a huge tensor": lambda: torch.zeros(()).expand(2**50),
}
TENSORS: dict[str, Callable[[Tensor], Tensor]] = {
    **{f"in {dtype}": lambda x, dtype=dtype: x.to(dtype) for dtype in (torch.int64, torch.bool, torch.half)},
    "in complex numbers": lambda x: torch.complex(x.float(), x.float()),
    "in float64": lambda x: x.double(),
    "with a dimension more": lambda x: x[None],
    "flat": lambda x: x.flatten(),
    "its first entry": lambda x: x[:1].squeeze(0),
    "none of its rows": lambda x: x[:0],
    "one row less": lambda x: x[:-1],
    "without values": lambda x: x[..., :0],
    "with a nan": lambda x: x.double().flatten().index_fill(0, torch.tensor(0), math.nan).view(x.shape).to(x.dtype),
    "with an infinity": lambda x: (
        x.double().flatten().index_fill(0, torch.tensor(0), math.inf).view(x.shape).to(x.dtype)
    ),
    "times a thousand": lambda x: x * 1000,
    "less a thousand": lambda x: (x.double() - 1000).to(x.dtype),
    "of a subclass": lambda x: x.as_subclass(OwnTensor),
    "not contiguous": lambda x: x.repeat_interleave(2, -1)[..., ::2],
    "with a gradient": lambda x: x.detach().clone().requires_grad_() if x.is_floating_point() else x,
    "sparse": lambda x: x.to_sparse(),
}
#: Values that are tried in place of every argument, also where the others are sampled.
BOUNDARY = {"None", "-1", "0", "nan", "inf", "'DS'", "an object", "no values"}
BOUNDARY |= {
    f"a tensor {name}" for name in ("in torch.int64", "none of its rows", "with a nan", "with a dimension more")
}


def values(valid: Any) -> dict[str, Callable[[], Any]]:
    """Return what to try in place of a valid argument, by its name; each is made anew when called."""
    if not isinstance(valid, Tensor):
        return PLAIN
    return PLAIN | {f"a tensor {name}": lambda change=change: change(valid.clone()) for name, change in TENSORS.items()}
