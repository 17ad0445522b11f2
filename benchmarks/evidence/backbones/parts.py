"""Parts of the checks of a backbone: outputs of seeded forward passes, state, flags."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

EVAL_TRAIN_EVAL = (False, True, False)


class MismatchError(Exception):
    """Two values that should be equal differ."""


class FirstOutput(nn.Module):
    """A network that returns only its first output, as one vector per input."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        """Return the first output, ``[N, D]``."""
        return next(tensors(self.model(x))).flatten(1)


def built(build: Callable[[], nn.Module], seed: int) -> nn.Module:
    """Build a network with random norms: new ones are the identity, which would hide mistakes."""
    torch.manual_seed(seed)
    random.seed(seed)
    model = build()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if name.endswith("running_mean") or (name.endswith("bias") and tensor.dim() == 1):
                tensor.copy_(0.1 * torch.randn(tensor.shape, generator=generator))
            elif name.endswith("running_var") or (name.endswith("weight") and tensor.dim() == 1):
                tensor.copy_(0.5 + torch.rand(tensor.shape, generator=generator))
            elif tensor.dim() > 1 and tensor.is_floating_point() and not tensor.any():
                # A last layer of zeros, as some networks begin with, would hide everything before it.
                tensor.copy_(0.1 * torch.randn(tensor.shape, generator=generator))
    return model


def input_for(model: nn.Module, shapes: Iterable[tuple[int, ...]]) -> Tensor:
    """Return two inputs of the first shape for which the outputs are finite, in both modes."""
    reason = ""
    for shape in shapes:
        x = torch.rand(2, *shape, generator=torch.Generator().manual_seed(2))
        try:
            found = outputs(model, x)
        except Exception as error:
            if out_of_memory(error):
                raise
            reason = f"{type(error).__name__}: {error}"
            continue
        if all(bool(y.isfinite().all()) for y in found):
            return x
        reason = f"not finite for {list(shape)}"
    raise MismatchError(f"takes none of the shapes: {one_line(reason)}")


@torch.no_grad()
def outputs(model: nn.Module, x: Tensor, modes: Sequence[bool] = EVAL_TRAIN_EVAL) -> list[Tensor]:
    """Return the outputs of seeded forward passes, one in each mode; train mode updates running statistics."""
    found: list[Tensor] = []
    for training in modes:
        model.train(training)
        torch.manual_seed(3)
        random.seed(3)
        found += [y.clone() for y in tensors(model(x))]
    return found


def tensors(value: Any) -> Iterator[Tensor]:
    """Yield the tensors in what a network returns."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        yield from tensors(list(value.values()))
    elif isinstance(value, (list, tuple)):
        for part in value:
            yield from tensors(part)


def expect(expected: dict[str, Tensor] | list[Tensor], found: dict[str, Tensor] | list[Tensor], what: str) -> None:
    """Raise unless all tensors are bit-identical, in order and by name."""
    if isinstance(expected, dict) and isinstance(found, dict):
        if list(expected) != list(found):
            changed = sorted(expected.keys() ^ found.keys())[:3] or "only their order"
            raise MismatchError(f"{what}: other keys, {changed}")
        expected, found = list(expected.values()), list(found.values())
    if len(expected) != len(found):
        raise MismatchError(f"{what}: {len(found)} tensors in the place of {len(expected)}")
    wrong = [(a, b) for a, b in zip(expected, found, strict=True) if not equal(a, b)]
    if wrong:
        by = max(float((a - b).abs().max()) if a.shape == b.shape else float("inf") for a, b in wrong)
        raise MismatchError(f"{what}: {len(wrong)} of {len(expected)} tensors differ, by up to {by:.1e}")


def equal(a: Tensor, b: Tensor) -> bool:
    """Return whether tensors are bit-identical; NaN equals NaN."""
    return a.shape == b.shape and a.dtype == b.dtype and torch.equal(a.nan_to_num(), b.nan_to_num())


def state(model: nn.Module) -> dict[str, Tensor]:
    """Return a copy of the tensors of the state dict."""
    return {name: value.clone() for name, value in model.state_dict().items() if isinstance(value, Tensor)}


def flags(model: nn.Module) -> list[object]:
    """Return the mode of every module, and for every parameter whether it is trained and has a gradient."""
    learning = [(parameter.requires_grad, parameter.grad is None) for parameter in model.parameters()]
    return [[module.training for module in model.modules()], learning]


def anatomy(model: nn.Module) -> list[tuple[str, str]]:
    """Return name and class of every module, once per reference."""
    return [(name, type(module).__name__) for name, module in model.named_modules(remove_duplicate=False)]


def out_of_memory(error: BaseException) -> bool:
    """Return whether memory was exhausted, which PyTorch reports as a RuntimeError."""
    return isinstance(error, MemoryError) or "allocate memory" in str(error)


def one_line(text: object) -> str:
    """Return the start of a message on one line."""
    return " ".join(str(text).split())[:300]
