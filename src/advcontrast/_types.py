"""Type aliases, and the values of those that are literals."""

from collections.abc import Callable
from typing import Literal, TypeAlias, get_args

from torch import Tensor

Branch: TypeAlias = Literal["clean", "adv"]
Split: TypeAlias = Literal["both", "affine", "stats"]
Mode: TypeAlias = Literal["S2S", "A2A", "A2S", "DS"]
Norm: TypeAlias = Literal["linf", "l2"]
Objective: TypeAlias = Callable[[Tensor], Tensor]

BRANCHES: tuple[Branch, ...] = get_args(Branch)
SPLITS: tuple[Split, ...] = get_args(Split)
NORMS: tuple[Norm, ...] = get_args(Norm)
