"""Replace the stem of a ResNet for ImageNet by one for small images."""

from typing import Any

from torch import nn

from .._checks import check_module, complaint
from .resnet import ResNet, draw_convolutions


def cifar_stem(model: nn.Module) -> nn.Module:
    """Replace the stem of a ResNet so that it keeps the resolution: a 3x3 convolution of stride 1 and no pooling.

    The network is changed in place, unless it has such a stem, and returned. A ResNet for ImageNet reduces 32 pixels to
    8 before its first block. Any ResNet of torchvision or timm is supported: ResNeXt, Wide ResNet, SE and ECA variants,
    deep stems (``resnet50d``), and stems with average pooling, blur pooling or a strided convolution. Everything
    between the stem and the first block is removed.

    A first convolution of another size than 3x3 gets new weights (normal with variance 2 / fan_out), also in a
    pretrained network; a 3x3 convolution keeps its weights and gets stride 1. Channels, bias, device, dtype and
    ``requires_grad`` are kept. Build the optimizer afterwards.

    Raises:
        ValueError: ``model`` is not such a ResNet.
        TypeError: ``model`` is not an ``nn.Module``.

    Example:
        >>> from torchvision.models import resnet18
        >>> cifar_stem(resnet18()).conv1
        Conv2d(3, 64, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1), bias=False)
    """
    check_module("cifar_stem", model)
    if isinstance(model, ResNet):
        return model
    first = first_convolution(model)
    if first is None:
        expected, remedy = "a ResNet with conv1, maxpool and layer1", "Pass the bare ResNet of torchvision or timm"
        raise ValueError(complaint("cifar_stem", expected, type(model).__name__, remedy))
    if first.kernel_size == (3, 3):
        first.stride = (1, 1)
    else:
        path = next(path for path, part in model.named_modules() if part is first)
        model.set_submodule(path, _small(first))
    model.maxpool = nn.Identity()
    return model


def first_convolution(model: nn.Module) -> nn.Conv2d | None:
    """Return the first convolution of a ResNet as torchvision and timm build them, or ``None`` for other networks."""
    parts = model._modules
    stem = parts.get("conv1")
    first = stem[0] if isinstance(stem, nn.Sequential) and len(stem) else stem
    return first if isinstance(first, nn.Conv2d) and {"maxpool", "layer1"} <= parts.keys() else None


def _small(conv: nn.Conv2d) -> nn.Conv2d:
    """Return a 3x3 convolution with new weights that is otherwise like ``conv``."""
    like, bias = conv.weight, conv.bias is not None
    settings: dict[str, Any] = {"groups": conv.groups, "bias": bias, "device": like.device, "dtype": like.dtype}
    small = nn.Conv2d(conv.in_channels, conv.out_channels, 3, padding=1, **settings)
    small.bias = conv.bias
    draw_convolutions(small)
    small.weight.requires_grad_(like.requires_grad)
    return small.train(conv.training)
