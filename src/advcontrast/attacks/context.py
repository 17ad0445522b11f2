"""Context in which networks are attacked."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from .._checks import check_module
from .._memory_format import warn_of_channels_last
from .._modes import buffers_kept, eval_mode, frozen


@contextmanager
def under_attack(model: nn.Module, *others: nn.Module) -> Iterator[None]:
    """Put networks into eval mode and freeze their parameters for an attack, and restore them on exit.

    Eval mode keeps running statistics and turns dropout off; without ``requires_grad`` no weight gradients are
    computed. Every module, parameter and buffer gets back its own mode, flag and value, also after an exception, and so
    do buffers that change even in eval mode, such as those of quantisation observers. Plain attributes, such as a
    counter that is a Python int, are not restored.

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
