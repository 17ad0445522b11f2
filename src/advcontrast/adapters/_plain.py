"""Copies for other libraries: a network with single norms, in eval mode."""

from __future__ import annotations

import copy
from itertools import zip_longest
from typing import Any

from torch import nn

from .._checks import check_copyable, complaint
from ..norm import DualNorm
from ..surgery import export_branch
from ..surgery.modules import check_surgery, check_values


def plain_copy(owner: str, model: nn.Module, branch: str | None) -> Any:
    """Return a copy of ``model`` in eval mode, with one branch only where it has several.

    Raises:
        ValueError: it has branches and none is named, or the other way round, or it is on the meta device.
        TypeError: it is not a module, or is wrapped or scripted.
        RuntimeError: it cannot be copied.
    """
    check_surgery(owner, model)
    branches = next((module.branches for module in model.modules() if isinstance(module, DualNorm)), ())
    if bool(branches) != (branch is not None):
        expected = f"branch to be one of {', '.join(map(repr, branches))}" if branches else "branch to be None"
        remedy = 'Choose one, such as branch="adv"' if branches else "Leave it out, as the model has no dual norms"
        raise ValueError(complaint(owner, expected, repr(branch), remedy))
    check_values(owner, "model", model.state_dict(), remedy="Load its weights first")
    check_copyable(owner, model)
    return (copy.deepcopy(model) if branch is None else export_branch(model, branch)).eval()


def fill(owner: str, model: nn.Module, source: nn.Module, expected: str) -> None:
    """Load ``model`` with the state of a network that is made of the same layers with the same settings.

    Raises:
        ValueError: it is made of others; constants and paddings are not part of a state. Or
            its numbers are of another kind, and would be rounded.
    """
    for theirs, ours in zip_longest(repr(source).splitlines(), repr(model).splitlines()):
        if theirs != ours:
            got = " instead of ".join("nothing" if line is None else line.strip() for line in (theirs, ours))
            raise ValueError(
                complaint(owner, expected, got, "Pass what it was made with, such as small_images=False, and no head")
            )
    ours = model.state_dict()
    for name, tensor in source.state_dict().items():
        if tensor.dtype != ours[name].dtype:
            got, remedy = f"{name} in {tensor.dtype}", "Pass encoder.float(), and evaluate that"
            raise ValueError(complaint(owner, f"{name} in {ours[name].dtype}", got, remedy))
    model.load_state_dict(source.state_dict())
