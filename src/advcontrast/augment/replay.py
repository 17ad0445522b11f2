"""Reuse of the same views in several steps."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from .._checks import check_callable, check_int, check_state

_OWNER = "Replay"


class Replay(nn.Module):
    """Return the views of one batch for several calls, and ignore the images of the other calls.

    Training on each batch ``times`` times in a row lets the perturbations of :class:`advcontrast.attacks.FreeAttack`
    grow. Every ``times``-th batch of a loop is used, so ``times`` epochs use each image about once. The views are in
    the state dict, so that a resumed run continues with them. In eval mode each call creates new views. Use it without
    labels only: they would not match. Reference: Shafahi et al., NeurIPS 2019.

    Args:
        augment: creates the views, for example ``ContrastivePairAugment(32)``.
        times: number of calls that return the same views, at least 1.

    Raises:
        ValueError: times < 1.
        TypeError: an argument has the wrong type.

    Example:
        >>> augment = Replay(lambda x: (x, x + 1), times=2)
        >>> [augment(x)[1].item() for x in torch.tensor([0.0, 10.0, 20.0])]
        [1.0, 1.0, 21.0]
    """

    def __init__(self, augment: Callable[..., Any], *, times: int) -> None:
        check_callable(_OWNER, "augment", augment, remedy="Pass ContrastivePairAugment(size)")
        check_int(_OWNER, "times", times, low=1, remedy="The authors' best for CIFAR-10 is 8")
        super().__init__()
        self.augment, self.times = augment, times
        self._left, self._views = 0, None

    def forward(self, x: Tensor, generator: torch.Generator | None = None) -> Any:
        """Return the stored views, or new ones of ``x``; arguments and errors are those of ``augment``."""
        source = {} if generator is None else {"generator": generator}
        if not self.training:
            return self.augment(x, **source)
        if not self._left:
            self._views, self._left = self.augment(x, **source), self.times
        self._left, views = self._left - 1, self._views
        if not self._left:
            self._views = None
        return views

    def get_extra_state(self) -> dict[str, Any]:
        """Return the stored views for the state dict."""
        return {"left": self._left, "views": self._views}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Load the views from a state dict."""
        check_state(_OWNER, state, "left", "views")
        check_int(_OWNER, "left of the state", state["left"], low=0, remedy="Pass what get_extra_state returned")
        self._left, self._views = state["left"], state["views"]

    def extra_repr(self) -> str:
        """Show the settings as they were passed."""
        return f"{self.augment!r}, times={self.times}"
