"""Views of several augmentations."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from .._checks import check_callable, complaint

_OWNER = "MultiView"


class MultiView(nn.Module):
    """Return the views of several augmentations of the same images, one after the other.

    Args:
        *augments: each creates one view of every image, or a tuple of views; at least one. The same augmentation may
            occur several times.

    Raises:
        ValueError: there are no augmentations.
        TypeError: an argument is not callable.

    Example:
        >>> from advcontrast.augment import MultiView
        >>> augment = MultiView(CropFlip(), ContrastivePairAugment(32))
        >>> len(augment(torch.rand(2, 3, 32, 32)))
        3
        >>> crops = MultiView(*16 * [SimCLRAugment(32, min_area=0.08)])
    """

    def __init__(self, *augments: Callable[..., Any]) -> None:
        if not augments:
            raise ValueError(complaint(_OWNER, "at least one augmentation", "none", "Pass CropFlip() for example"))
        for augment in augments:
            check_callable(_OWNER, "each of augments", augment, remedy="Pass CropFlip() for example")
        super().__init__()
        self.augments = augments
        self._parts = nn.ModuleList(augment for augment in augments if isinstance(augment, nn.Module))

    def forward(self, x: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, ...]:
        """Return all views of the images ``x``; arguments and errors are those of the augmentations."""
        views: list[Tensor] = []
        for augment in self.augments:
            made = augment(x, **({} if generator is None else {"generator": generator}))
            views += made if isinstance(made, (tuple, list)) else [made]
        return tuple(views)

    def extra_repr(self) -> str:
        """Show the augmentations as they were passed."""
        return ", ".join(map(repr, self.augments))
