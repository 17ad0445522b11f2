"""Verify that frozen weights did not change."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn

from ..._checks import check_module, check_tensor, complaint
from ..._digest import digest
from ..._random import kept
from ..inputs import prepared_for_evaluation

_OWNER = "unchanged"


@contextmanager
def unchanged(encoder: nn.Module, images: Tensor) -> Iterator[None]:
    """Raise at the end of the block unless an encoder is bit-identical to before.

    Parameters, buffers (also those that are not saved, such as running statistics) and the features of some images in
    eval mode are compared. The latter finds modules that change with each call. Memory format and device must not
    change inside the block, as sums are then rounded differently.

    Args:
        encoder: maps images to a tensor.
        images: a fixed batch of inputs, on the device of the encoder.

    Raises:
        RuntimeError: at the end of the block, if something differs; the message lists the differences.
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
    before = _digests(encoder) | {"features": _features(encoder, images)}
    yield
    after = _digests(encoder) | {"features": _features(encoder, images)}
    differing = [name for name in {**before, **after} if before.get(name) != after.get(name)]
    if differing:
        shown = ", ".join(differing[:5]) + (", ..." if len(differing) > 5 else "")
        got = f"{len(differing)} changed: {shown}"
        remedy = "Look for a module that changes in eval mode, or that leaves it"
        raise RuntimeError(complaint(_OWNER, "a frozen encoder to stay as it is", got, remedy))


def _digests(model: nn.Module) -> dict[str, str]:
    named = {"parameter": model.named_parameters(), "buffer": model.named_buffers()}
    return {f"{kind} {name}": digest(tensor) for kind, tensors in named.items() for name, tensor in tensors}


def fingerprint(model: nn.Module) -> str:
    """Return a digest of all parameters and buffers, 16 hexadecimal digits."""
    return digest(*(f"{name} {value}\n" for name, value in _digests(model).items()))[:16]


def _features(encoder: nn.Module, images: Tensor) -> str:
    # With a fixed seed, as an encoder that draws random numbers in eval mode has not changed.
    with prepared_for_evaluation(_OWNER, encoder), kept(0):
        features = encoder(images)
    check_tensor(_OWNER, "the output of the encoder", features, remedy="Return the features as one tensor")
    return digest(features)
