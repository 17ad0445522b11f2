"""Two independent views of every image."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from .._checks import check_callable, check_real, complaint, source_device
from .._random import on_host, preserve_rng_state
from ..functional.image import check_images, height_width, unit_range
from .simclr import SimCLRAugment, ViewParameters

_OWNER = "ContrastivePairAugment"
_BICUBIC_OVERSHOOT = 9 / 32


class ContrastivePairAugment:
    """Create two random views of every image for contrastive learning.

    By default a view is one of :class:`advcontrast.augment.SimCLRAugment`, SimCLR's recipe for CIFAR, batched, on the
    device of the images, with separate randomness for every image. Views are not normalised: the attack needs images in
    [0, 1], and normalisation belongs in the model.

    Args:
        size: side of the views in pixels, or (height, width); only for the default recipe, like the next two.
        strength: strength in [0, 1]: 1 as in the ACL code, 0 for the horizontal flip only.
        min_area: smallest area of a crop at full strength, in (0, 1]: 0.1 in the code of ACL, 0.08 in SimCLR.
        transform: replaces the default recipe: any callable of an image batch ``[N, C, H, W]`` in [0, 1], such as a
            kornia module. Transforms of torchvision draw once per call, so they are called image by image. They are not
            detected inside a function of your own. The overshoot of bicubic interpolation is clamped.

    Raises:
        ValueError: a number is out of range, or ``strength`` or ``min_area`` with a transform.
        TypeError: an argument has the wrong type.

    Example:
        >>> augment = ContrastivePairAugment(32)
        >>> x1, x2 = augment(torch.rand(8, 3, 32, 32), generator=torch.Generator().manual_seed(0))
        >>> x1.shape == x2.shape, torch.equal(x1, x2)
        (True, False)
    """

    def __init__(
        self,
        size: int | tuple[int, int] = 32,
        *,
        strength: float = 1.0,
        min_area: float = 0.1,
        transform: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        height_width(_OWNER, size)
        check_real(_OWNER, "strength", strength, low=0, high=1, remedy="1 is the full recipe")
        check_real(_OWNER, "min_area", min_area, low=0, high=1, above=True, remedy="0.1 is that of the ACL code")
        if transform is not None:
            remedy = "Pass a function of an image batch, or None for SimCLR's recipe"
            check_callable(_OWNER, "transform", transform, remedy=remedy)
            for name, value, default in (("strength", strength, 1.0), ("min_area", min_area, 0.1)):
                if value != default:
                    remedy = f"Set the {name} inside the transform"
                    raise ValueError(complaint(_OWNER, f"no {name} with a transform", repr(value), remedy))
        self.size, self.strength, self.min_area, self.transform = size, strength, min_area, transform
        self._recipe = SimCLRAugment(size, strength=strength, min_area=min_area)

    def __repr__(self) -> str:
        settings = f"strength={self.strength}, min_area={self.min_area}, transform={self.transform!r}"
        return f"{_OWNER}({self.size}, {settings})"

    def __call__(self, x: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """Return two random views of every image.

        Args:
            x: images as for :class:`advcontrast.augment.SimCLRAugment`.
            generator: source of all randomness, by default the global one of the CPU. A ``transform`` draws from the
                global random states; with a generator these are seeded from it for the call, and restored.

        Returns:
            Two batches of views in [0, 1], on the device of ``x``.

        Raises:
            ValueError: ``x``, or a result of ``transform``, has another shape or, on the CPU, is outside [0, 1].
            TypeError: an argument has the wrong type.
        """
        if self.transform is None:
            check_images(_OWNER, x)
            draws = [self._recipe.draw(len(x), x.shape[2], x.shape[3], generator=generator) for _ in range(2)]
            views = self._recipe._apply(x, ViewParameters(*map(torch.cat, zip(*draws, strict=True))))
            return views[: len(x)], views[len(x) :]
        x = unit_range(_OWNER, x)
        if generator is None:
            return _view(self.transform, x), _view(self.transform, x)
        source_device(_OWNER, generator)
        seed = torch.randint(2**62, (), generator=on_host(generator))
        with preserve_rng_state(int(seed)):
            return _view(self.transform, x), _view(self.transform, x)


def _view(transform: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    if len(x) == 0:
        return x
    x = x.clone()  # a transform may work in place
    view = torch.stack([transform(image) for image in x]) if _from_torchvision(transform) else transform(x)
    view = unit_range(f"{_OWNER}: transform", view, overshoot=_BICUBIC_OVERSHOOT)
    if len(view) != len(x):
        remedy = "Return one view of each image"
        raise ValueError(complaint(_OWNER, f"{len(x)} views from transform", str(len(view)), remedy))
    return view


def _from_torchvision(transform: object) -> bool:
    while isinstance(transform, partial):
        transform = transform.func
    transform = getattr(transform, "__self__", transform)
    parts = transform.modules() if isinstance(transform, nn.Module) else [transform]
    return any(kind.__module__.startswith("torchvision.") for part in parts for kind in type(part).__mro__)
