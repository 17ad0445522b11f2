"""Contexts that change modes of modules and of PyTorch, and restore modes and buffers exactly on exit."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.nn.parameter import is_lazy

_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")
# These do not change the statistics in eval mode themselves.
_NORM_FORWARDS = (_BatchNorm.forward, nn.SyncBatchNorm.forward, _InstanceNorm.forward)
_WITH_TF32: list[Any] = [torch.backends.cuda.matmul, *(getattr(torch.backends.cudnn, name) for name in ("conv", "rnn"))]


@contextmanager
def eval_mode(*models: nn.Module) -> Iterator[None]:
    """Put every module of ``models`` into eval mode, and restore each mode on exit.

    Modes are restored module by module: ``model.train()`` would unfreeze a norm that was frozen on purpose. Where a
    module overrides ``train()``, for example to fill a cache for evaluation, that method is called too.
    """
    before = [(module, module.training) for module in _modules(models)]
    with _undone(partial(_set_modes, before)):
        _set_modes([(module, False) for module, _ in before])
        yield


def _set_modes(modes: Sequence[tuple[nn.Module, bool]]) -> None:
    for module, training in modes:
        if type(module).train is not nn.Module.train:
            module.train(training)
    _set("training", modes)


@contextmanager
def frozen(*models: nn.Module) -> Iterator[None]:
    """Set ``requires_grad`` of all parameters of ``models`` to False, and restore each value on exit.

    A compiled backward pass computes the gradients of all parameters that require them, and an eager forward pass keeps
    the activations for these gradients. Freezing the parameters avoids both.
    """
    parameters = (parameter for model in models for parameter in model.parameters())
    before = [(parameter, parameter.requires_grad) for parameter in parameters if parameter.is_leaf]
    with _undone(partial(_set, "requires_grad", before)):
        _set("requires_grad", [(parameter, False) for parameter, _ in before])
        yield


@contextmanager
def buffers_kept(*models: nn.Module, statistics: bool = False) -> Iterator[None]:
    """Restore the buffers of ``models`` on exit, for modules that update buffers in eval mode.

    Each value is restored in the original tensor, even if it was resized or replaced. New buffers are removed unless
    they are absent from the state dict: then they are caches that the module may rely on. The statistics of PyTorch's
    own norms are copied only if ``statistics`` is set: in eval mode they change only if a model passes them to a
    function or calls ``train()`` in its forward pass. No step synchronises with the device.
    """
    before = [(module, dict(module._buffers)) for module in _modules(models)]
    with torch.inference_mode(False), torch.no_grad():
        copies = {
            buffer: buffer.clone()
            for module, buffers in before
            for name, buffer in buffers.items()
            if buffer is not None and buffer.layout == torch.strided and not is_lazy(buffer)
            if statistics or name not in _STATISTICS or getattr(module.forward, "__func__", None) not in _NORM_FORWARDS
        }
    with _undone(partial(_restore, before, copies)):
        yield


def _restore(before: Sequence[tuple[nn.Module, dict[str, Tensor | None]]], copies: dict[Tensor, Tensor]) -> None:
    for module, buffers in before:
        now = dict(module._buffers)
        for name in now.keys() - buffers.keys() - getattr(module, "_non_persistent_buffers_set", set()):
            delattr(module, name)
        for name, buffer in buffers.items():
            if name not in now or now[name] is not buffer:
                module._buffers[name] = buffer
    for buffer, value in copies.items():
        with torch.inference_mode(buffer.is_inference()), torch.no_grad():
            if buffer.shape != value.shape:
                buffer.resize_(value.shape)
            # ``data`` has its own version counter: a graph that holds the buffer, with this value, stays valid.
            target, source = buffer.data, value
            for dim, stride in enumerate(target.stride()):
                if stride == 0 and target.shape[dim] > 1:  # expanded: one element stands for all
                    target, source = target.narrow(dim, 0, 1), source.narrow(dim, 0, 1)
            target.copy_(source)


@contextmanager
def without_tf32() -> Iterator[None]:
    """Multiply float32 numbers on a GPU without rounding them to TF32, and restore the setting on exit."""
    before = [(part, part.fp32_precision) for part in _WITH_TF32]
    with _undone(partial(_set, "fp32_precision", before)):
        _set("fp32_precision", [(part, "ieee") for part, _ in before])
        yield


def _modules(models: Sequence[nn.Module]) -> list[nn.Module]:
    return list(dict.fromkeys(module for model in models for module in model.modules()))


def _set(name: str, values: Sequence[tuple[Any, Any]]) -> None:
    for each, value in values:
        setattr(each, name, value)


@contextmanager
def _undone(undo: Callable[[], None]) -> Iterator[None]:
    """Undo what the block changes, completely even if Ctrl-C interrupts."""
    try:
        yield
    finally:
        try:
            undo()
        except KeyboardInterrupt:
            undo()
            raise
