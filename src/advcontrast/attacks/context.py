"""Contexts for attacks on networks: frozen weights, and batch norms folded into the layers before them."""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from .._checks import check_module
from .._memory_format import warn_of_channels_last
from .._modes import buffers_kept, eval_mode, frozen

_LAYERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_Pair: TypeAlias = tuple[Any, Any, torch.dtype]  # a layer, the batch norm that follows it, and their dtype


@contextmanager
def under_attack(model: nn.Module, *others: nn.Module) -> Iterator[None]:
    """Put networks into eval mode and freeze their parameters for an attack, and restore them on exit.

    Eval mode keeps running statistics and turns dropout off; without ``requires_grad`` no weight gradients are
    computed. Each mode, each ``requires_grad`` and each buffer is restored, also after an exception, including buffers
    that change even in eval mode, such as those of quantisation observers. Running statistics of PyTorch's own norms,
    which change only if a model updates them by other means, and plain attributes are not restored.

    Args:
        model: the network, an ``nn.Module``; anything else is a ``TypeError``.
        *others: every other module that takes part, such as a loss with layers.

    Warns:
        UserWarning: the weights are channels last, and a convolution of the model crashes PyTorch in that format.

    Example:
        >>> model = torch.nn.Linear(2, 2)
        >>> with under_attack(model):
        ...     print(model.training, model.weight.requires_grad)
        False False
        >>> model.training, model.weight.requires_grad
        (True, True)
    """
    models = (model, *others)
    for each in models:
        check_module("under_attack", each)
        warn_of_channels_last(each)
    with buffers_kept(*models), eval_mode(*models), frozen(*models):
        yield


@contextmanager
def folded(objective: Callable[[Tensor], Tensor], *modules: nn.Module) -> Iterator[Callable[[Tensor], Tensor]]:
    """Yield an objective that computes the same as ``objective``, faster from its second call on.

    In eval mode a batch norm is a scale and a shift of each channel. In a frozen network, batch norms that directly
    follow a convolution or linear layer become part of its weights for the length of the context. The graph of the
    first call identifies them: the output of the layer has no other use. Layers with hooks, parametrizations or weights
    other than plain parameters, and compiled networks, are not changed.
    """
    parts = [part for module in modules for part in module.modules()]
    pairs: list[_Pair] | None = None
    changed: list[nn.Module] = []

    def called(images: Tensor) -> Tensor:
        nonlocal pairs
        if pairs is None:
            value, pairs = _trace(objective, images, parts)
            return value
        # Not before the second call: a checkpointed function runs again in the backward pass of the first.
        if pairs:
            for (layer, norm, _), forward in zip(pairs, _combined(pairs), strict=True):
                changed.extend((layer, norm))
                layer.__dict__["forward"], norm.__dict__["forward"] = forward, lambda x: x
            pairs.clear()
        return objective(images)

    compiled = any(part._compiled_call_impl is not None or hasattr(part, "_orig_mod") for part in parts)
    try:
        yield objective if compiled else called
    finally:
        for module in changed:
            module.__dict__.pop("forward", None)


def _trace(objective: Callable[[Tensor], Tensor], images: Tensor, parts: list[nn.Module]) -> tuple[Tensor, list[_Pair]]:
    """Return the value of the objective, and each layer whose output only a batch norm uses, with that norm."""
    calls: dict[int, tuple[nn.Module, Tensor, Any]] = {}  # layer, output and the node of the graph that created it
    times: Counter[nn.Module] = Counter()
    found: list[tuple[_Pair, Any]] = []

    def after_layer(layer: nn.Module, _: Any, output: Tensor) -> None:
        times[layer] += 1
        calls[id(output)] = layer, output, output.grad_fn

    def after_norm(norm: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        times[norm] += 1
        if args and id(args[0]) in calls:
            layer, before, node = calls[id(args[0])]
            if node is before.grad_fn is not None and before.dtype == output.dtype:
                found.append(((layer, norm, output.dtype), node))

    hooks = []
    for part in parts:
        if "forward" in vars(part) or any(getattr(part, kind) for kind in _HOOKS):
            continue
        if _foldable_layer(part):
            hooks.append(part.register_forward_hook(after_layer))
        elif _foldable_norm(part):
            hooks.append(part.register_forward_hook(after_norm))
    try:
        value = objective(images)
    finally:
        for hook in hooks:
            hook.remove()
    uses: Counter[Any] = Counter()  # of the nodes of the graph
    waiting = [getattr(value, "grad_fn", None)]  # the caller checks the type
    while waiting:
        for node, _ in getattr(waiting.pop(), "next_functions", ()):
            uses[node] += 1
            if uses[node] == 1:
                waiting.append(node)
    return value, [pair for pair, node in found if uses[node] == times[pair[0]] == times[pair[1]] == 1]


def _foldable_layer(part: nn.Module) -> bool:
    return type(part) in _LAYERS and type(part.weight) is nn.Parameter


def _foldable_norm(part: nn.Module) -> bool:
    stock = isinstance(part, _BatchNorm) and type(part).forward in (_BatchNorm.forward, nn.SyncBatchNorm.forward)
    return stock and not part.training and part.running_mean is not None


@torch.no_grad()
def _combined(pairs: list[_Pair]) -> list[Callable[[Tensor], Tensor]]:
    """Return the forward methods of layers followed by a batch norm, with weights in the dtype they compute in."""
    layers, norms, dtypes = zip(*pairs, strict=True)
    gains = [torch.ones_like(norm.running_var) if norm.weight is None else norm.weight for norm in norms]
    biases = [torch.zeros_like(norm.running_mean) if norm.bias is None else norm.bias for norm in norms]
    means = [
        norm.running_mean if layer.bias is None else norm.running_mean - layer.bias
        for layer, norm in zip(layers, norms, strict=True)
    ]
    # All norms at once: on an accelerator, launches of such small tensors take longer than the arithmetic.
    scales = torch._foreach_add([norm.running_var for norm in norms], [norm.eps for norm in norms])
    torch._foreach_rsqrt_(scales)
    torch._foreach_mul_(scales, gains)
    shifts = torch._foreach_addcmul(biases, means, scales, value=-1)
    made = [torch.empty_like(shift, dtype=dtype) for shift, dtype in zip(shifts, dtypes, strict=True)]
    torch._foreach_copy_(made, shifts)
    forwards: list[Callable[[Tensor], Tensor]] = []
    for layer, dtype, scale, bias in zip(layers, dtypes, scales, made, strict=True):
        weight = torch.empty_like(layer.weight, dtype=dtype)
        torch.mul(layer.weight, scale.view(-1, *[1] * (weight.dim() - 1)), out=weight)
        call = F.linear if isinstance(layer, nn.Linear) else layer._conv_forward
        forwards.append(partial(call, weight=weight, bias=bias))
    return forwards
