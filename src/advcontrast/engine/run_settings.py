"""Settings that must match when a run is resumed."""

import re
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from .._random import generators
from ..optim.ema import EMA
from .batches.source import fingerprint


def run_settings(
    learner: nn.Module,
    data: str,
    groups: Tensor | None,
    optimizer: Optimizer,
    schedule: Callable[[int], float] | float,
    ema: EMA | None,
) -> dict[str, str | None]:
    """Return the settings of a run that follow from its parts, as plain data."""
    return {
        "learner": f"{type(learner).__name__}({shown(learner.extra_repr())})",
        "modules": shown(learner),
        "frozen": str(
            {name: part.fingerprint() for name, part in learner.named_modules() if hasattr(part, "fingerprint")}
        ),
        "generators": str([f"{name} on {each.device.type}" for name, each in generators(learner).items()]),
        "data": data,
        "groups": None if groups is None else fingerprint([groups]),
        "optimizer": f"{type(optimizer).__name__} {_hyperparameters(optimizer)}",
        "schedule": shown(schedule if callable(schedule) else float(schedule)),
        "ema": shown(ema),
    }


def differences(state: Mapping[str, Any], settings: Mapping[str, Any], learner: nn.Module, optimizer: Optimizer) -> str:
    """Describe how the state of a run differs from settings, learner and optimizer; empty if it does not."""
    theirs, ours = dict(state["settings"]), dict(settings)
    for entries, groups in ((theirs, state["optimizer"]), (ours, optimizer.state_dict())):
        entries["optimized parameters"] = [len(group["params"]) for group in groups["param_groups"]]
    for entries, weights in ((theirs, state["learner"]), (ours, learner.state_dict())):
        entries |= {name: f"{weight.dtype} {list(weight.shape)}" for name, weight in weights_of(weights).items()}
    names = [name for name in {**ours, **theirs} if theirs.get(name) != ours.get(name)]
    changed = [change(name, ours.get(name, "absent"), theirs.get(name, "absent")) for name in names]
    return ", ".join(changed[:5]) + (f" and {len(changed) - 5} more" if len(changed) > 5 else "")


def weights_of(state: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the parameters and buffers of a state dict."""
    return {name: value for name, value in state.items() if isinstance(value, Tensor)}


def extra_of(state: Mapping[str, Any]) -> dict[str, Any]:
    """Return the extra state in a state dict, which differs between processes."""
    return {name: value for name, value in state.items() if not isinstance(value, Tensor)}


def change(name: str, ours: Any, theirs: Any) -> str:
    """Describe how an entry changed, by the first line that differs."""
    for our, their in zip(str(ours).splitlines(), str(theirs).splitlines(), strict=False):
        if our != their:
            return f"{name} {our.strip()} instead of {their.strip()}"
    return f"{name} {ours} instead of {theirs}"


def _hyperparameters(optimizer: Optimizer) -> str:
    """Return the settings of each group, without the ``initial_lr`` that PyTorch's schedulers add."""
    groups = [{k: v for k, v in group.items() if k not in ("params", "initial_lr")} for group in optimizer.param_groups]
    # The repr of a tensor would be rounded.
    return shown([{k: v.tolist() if isinstance(v, Tensor) else v for k, v in group.items()} for group in groups])


def shown(value: Any) -> str:
    """Return the ``repr`` of a value without memory addresses, which differ between processes."""
    return re.sub(r" at 0x[0-9a-f]+", "", value if isinstance(value, str) else repr(value))
