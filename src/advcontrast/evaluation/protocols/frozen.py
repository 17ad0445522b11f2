"""Frozen means frozen: an encoder is compared with itself, bit by bit."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain

from torch import Tensor, nn

from ..._checks import check_module, check_tensor, complaint
from ..._digest import digest
from ..._random import kept
from ..inputs import prepared_for_evaluation

_OWNER = "unchanged"


@contextmanager
def unchanged(encoder: nn.Module, images: Tensor) -> Iterator[None]:
    """Raise at the end of the block if anything about an encoder differs from before, by a single bit.

    Compared are its parameters, its buffers (running statistics among them, also such that are not saved) and its
    features of some images in eval mode. Whatever changes itself whenever it is called is found too. Memory format and
    device must not change inside the block, as sums are then rounded otherwise.

    Args:
        encoder: images in, a tensor out.
        images: a fixed batch of what it takes, on its device.

    Raises:
        RuntimeError: at the end of the block, something differs; the message lists what.
        TypeError: an argument of the wrong kind.

    Example:
        >>> from advcontrast.evaluation.protocols.frozen import unchanged
        >>> encoder = torch.nn.BatchNorm2d(3)
        >>> with unchanged(encoder, torch.rand(2, 3, 4, 4)):
        ...     _ = encoder.eval()(torch.rand(8, 3, 4, 4))
        >>> with unchanged(encoder, torch.rand(2, 3, 4, 4)):
        ...     _ = encoder.train()(torch.rand(8, 3, 4, 4))
        Traceback (most recent call last):
        RuntimeError: unchanged: expected a frozen encoder to stay as it is, got 4 changed: buffer running_mean, ...
    """
    check_module(_OWNER, encoder)
    check_tensor(_OWNER, "images", images, remedy="Pass a batch that the encoder takes")
    before = contents(encoder) | {"features": _features(encoder, images)}
    yield
    after = contents(encoder) | {"features": _features(encoder, images)}
    differing = [name for name in {**before, **after} if before.get(name) != after.get(name)]
    if differing:
        shown = ", ".join(differing[:5]) + (", ..." if len(differing) > 5 else "")
        got = f"{len(differing)} changed: {shown}"
        remedy = "Look for a module that changes in eval mode, or that leaves it"
        raise RuntimeError(complaint(_OWNER, "a frozen encoder to stay as it is", got, remedy))


def contents(model: nn.Module) -> dict[str, str]:
    """Return a digest of every parameter and every buffer, by its name."""
    named = chain(
        ((f"parameter {name}", tensor) for name, tensor in model.named_parameters()),
        ((f"buffer {name}", tensor) for name, tensor in model.named_buffers()),
    )
    return {name: digest(tensor) for name, tensor in named}


def fingerprint(model: nn.Module) -> str:
    """Return 16 hexadecimal digits that tell a model from others by its parameters and buffers."""
    parts = (f"{name} {value}\n" for name, value in contents(model).items())
    return digest(*parts)[:16]


def _features(encoder: nn.Module, images: Tensor) -> str:
    # What an encoder draws in eval mode is no change of it.
    with prepared_for_evaluation(_OWNER, encoder), kept(0):
        features = encoder(images)
    check_tensor(_OWNER, "the output of the encoder", features, remedy="Return the features as one tensor")
    return digest(features)
