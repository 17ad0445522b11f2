"""Exponential moving average of the weights, which is often more accurate than the weights themselves."""

import copy
from collections.abc import Mapping
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from .._checks import check_copyable, check_int, check_module, check_real, check_type, complaint

_OWNER = "EMA"


class EMA:
    r"""Exponential moving average of the parameters of a model.

    The average starts as a copy of the model. Each :meth:`update` replaces it by :math:`m\, \bar\theta + (1 - m)\,
    \theta` with the decay :math:`m`, also the first one, unlike in :class:`torch.optim.swa_utils.AveragedModel`.
    Buffers, such as the statistics of batch norms, are copied: they are averages already. Evaluate ``ema.model``; it is
    in eval mode, requires no gradients and shares no memory with the original.

    Args:
        model: the network to follow, on its final device.
        decay: the decay m, in [0, 1]: 0 always copies, 1 never changes.

    Attributes:
        model: the averaged network.
        updates: number of updates so far.

    Raises:
        ValueError: decay outside [0, 1].
        TypeError: an argument has the wrong type.
        RuntimeError: ``model`` cannot be copied, as in :func:`advcontrast.export_branch`.

    Example:
        >>> model = torch.nn.Linear(1, 1)
        >>> _ = torch.nn.init.constant_(model.weight, 1.0)
        >>> ema = EMA(model, decay=0.75)
        >>> _ = torch.nn.init.constant_(model.weight, 5.0)
        >>> ema.update(model)
        >>> ema.model.weight.item()
        2.0
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        check_module(_OWNER, model)
        check_real(_OWNER, "decay", decay, low=0, high=1, remedy="0.999 is usual")
        check_copyable(_OWNER, model)
        self.model = copy.deepcopy(model).requires_grad_(False).eval()
        self.decay, self.updates = decay, 0

    def __repr__(self) -> str:
        return f"EMA({type(self.model).__name__}, decay={self.decay})"

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Update the average with the weights of ``model``, unwrapped; call it after every step of the optimizer.

        Raises:
            ValueError: the parameters or buffers of the model differ from those of the original.
            TypeError: the model is not a module.
        """
        check_module(_OWNER, model)
        ours, theirs = _tensors(self.model), _tensors(model)
        for name in ours | theirs:
            expected, got = _form(ours.get(name)), _form(theirs.get(name))
            if expected != got:
                remedy = "Pass the model itself, unwrapped, and create the EMA on its final device"
                raise ValueError(complaint(_OWNER, f"{name} to be {expected}", got, remedy))
        # Not AveragedModel: its update copies a counter to the device, and so synchronises with it.
        average = get_ema_multi_avg_fn(self.decay)  # type: ignore[no-untyped-call]
        averaged = [n for n, p in self.model.named_parameters() if p.is_floating_point() or p.is_complex()]
        if averaged:
            average([ours[name] for name in averaged], [theirs[name] for name in averaged], self.updates)
        for name in ours.keys() - set(averaged):
            ours[name].copy_(theirs[name])
        self.updates += 1

    def state_dict(self) -> dict[str, Any]:
        """Return the weights and the number of updates, for ``torch.save``."""
        return {"model": self.model.state_dict(), "updates": self.updates}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load the weights and the number of updates that :meth:`state_dict` returned for the same network.

        Raises:
            ValueError: ``state_dict`` has other entries.
            TypeError: ``state_dict`` is not a dict, or its entries have the wrong type.
            RuntimeError: its weights do not fit the network.
        """
        remedy = "Pass what state_dict() returned"
        check_type(_OWNER, "state_dict", state_dict, Mapping, remedy=remedy)
        if set(state_dict) != {"model", "updates"}:
            raise ValueError(complaint(_OWNER, "entries model and updates", f"{list(state_dict)}", remedy))
        model, updates = state_dict["model"], state_dict["updates"]
        check_type(_OWNER, "the entry model", model, Mapping, remedy=remedy)
        check_int(_OWNER, "the entry updates", updates, low=0, remedy=remedy)
        self.model.load_state_dict(model)
        self.updates = int(updates)


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    return dict(chain(model.named_parameters(), model.named_buffers()))


def _form(tensor: Tensor | None) -> str:
    return "absent" if tensor is None else f"{tensor.dtype} {list(tensor.shape)} on {tensor.device}"
