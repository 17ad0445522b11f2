"""ResNets for images of about 32 pixels."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .._checks import check_int, check_tensor, complaint
from .normalize import IMAGENET, Statistics, input_layer


def conv(channels: int, out: int, size: int, stride: int = 1) -> nn.Conv2d:
    """Return a convolution without bias that divides the size of the image by its stride."""
    return nn.Conv2d(channels, out, size, stride=stride, padding=size // 2, bias=False)


def check_network(owner: str, num_classes: int, width: int, in_channels: int) -> None:
    """Check the settings of all networks."""
    check_int(owner, "num_classes", num_classes, low=0, remedy="0 leaves out the classifier")
    check_int(owner, "width", width, low=1, remedy="Pass the number of channels of the first stage")
    check_int(owner, "in_channels", in_channels, low=1, remedy="Colour images have 3")


def check_block(owner: str, channels: Any, width: Any, stride: Any) -> None:
    """Check the settings of all blocks."""
    check_int(owner, "channels", channels, low=1, remedy="Pass the number of channels of the input")
    check_int(owner, "width", width, low=1, remedy="Pass the number of channels of the convolutions")
    check_int(owner, "stride", stride, low=1, remedy="1 keeps the size, 2 halves it")


def check_maps(owner: str, x: Any, first: nn.Module) -> None:
    """Require feature maps that the first convolution of a block or network takes."""
    check_tensor(owner, "x", x, remedy="Convert images to floating point in [0, 1]")
    channels, weight = getattr(first, "in_channels", "C"), getattr(first, "weight", None)
    if x.dim() != 4 or channels not in ("C", x.shape[1]) or not x.shape[2] * x.shape[3]:
        expected = f"x of shape [N, {channels}, H, W] with at least one pixel"
        raise ValueError(complaint(owner, expected, f"{list(x.shape)}", "Pass a batch of images"))
    # Autocast, and tools that shard or quantise weights, convert dtypes on their own.
    kind = x.device.type
    autocast = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
    if type(weight) is nn.Parameter and not autocast and weight.dtype != x.dtype:
        expected = f"x in the dtype of the weights, {weight.dtype}"
        raise TypeError(complaint(owner, expected, f"{x.dtype}", "Convert the images or the network"))


def draw_convolutions(model: nn.Module) -> None:
    """Initialise all convolutions so that they keep the variance of gradients."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with a shortcut: the block of :func:`resnet18` and :func:`resnet34`.

    Args:
        channels: channels of the input.
        width: channels of the convolutions and of the output.
        stride: stride of the first convolution and the shortcut.
    """

    expansion = 1

    def __init__(self, channels: int, width: int, stride: int) -> None:
        check_block("BasicBlock", channels, width, stride)
        super().__init__()
        self.conv1, self.bn1 = conv(channels, width, 3, stride), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = conv(width, width, 3), nn.BatchNorm2d(width)
        self.downsample = _shortcut(channels, width, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Return the sum of both paths, rectified."""
        check_maps("BasicBlock", x, self.conv1)
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return F.relu(y + (x if self.downsample is None else self.downsample(x)))


class Bottleneck(nn.Module):
    """A 3x3 convolution between two 1x1 ones, with a shortcut: the block of :func:`resnet50`.

    Args:
        channels: channels of the input.
        width: channels of the 3x3 convolution; the output has four times as many.
        stride: stride of the 3x3 convolution and the shortcut.
    """

    expansion = 4

    def __init__(self, channels: int, width: int, stride: int) -> None:
        check_block("Bottleneck", channels, width, stride)
        super().__init__()
        out = width * self.expansion
        self.conv1, self.bn1 = conv(channels, width, 1), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = conv(width, width, 3, stride), nn.BatchNorm2d(width)
        self.conv3, self.bn3 = conv(width, out, 1), nn.BatchNorm2d(out)
        self.downsample = _shortcut(channels, out, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Return the sum of both paths, rectified."""
        check_maps("Bottleneck", x, self.conv1)
        y = F.relu(self.bn1(self.conv1(x)))
        y = F.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        return F.relu(y + (x if self.downsample is None else self.downsample(x)))


def _shortcut(channels: int, out: int, stride: int) -> nn.Sequential | None:
    if stride == 1 and channels == out:
        return None
    return nn.Sequential(conv(channels, out, 1, stride), nn.BatchNorm2d(out))


class ResNet(nn.Module):
    """A ResNet whose stem keeps the resolution: a 3x3 convolution of stride 1 and no max-pooling.

    It takes images of any size in [0, 1] and normalises them itself. Convolutions of k x k pixels with c output
    channels are drawn from a normal distribution of variance :math:`2 / (k^2 c)`. The names in the state dict are those
    of torchvision; at width 64 the shapes are too, except that of ``conv1.weight``. Reference: He et al., CVPR 2016.

    Args:
        block: :class:`BasicBlock` or :class:`Bottleneck`.
        depths: number of blocks in each of the four stages.
        num_classes: number of logits; 0 returns the features.
        width: channels of the first stage; each later one has twice as many as the one before.
        in_channels: channels of the images.
        normalize: (mean, std) of :class:`Normalize`, by default those of ImageNet as in the ACL code; ``None`` leaves
            it out. Images with another number of channels than 3 need other values.

    Attributes:
        num_features: number of features before the classifier.

    Raises:
        ValueError: a number is out of range, or ``normalize`` does not fit ``in_channels``.
        TypeError: an argument has the wrong type.
    """

    def __init__(
        self,
        block: type[BasicBlock] | type[Bottleneck],
        depths: tuple[int, int, int, int],
        num_classes: int = 10,
        *,
        width: int = 64,
        in_channels: int = 3,
        normalize: Statistics | None = IMAGENET,
    ) -> None:
        check_network("ResNet", num_classes, width, in_channels)
        if not isinstance(block, type) or not issubclass(block, (BasicBlock, Bottleneck)):
            expected, remedy = "block to be BasicBlock or Bottleneck", "Pass the class itself"
            raise TypeError(complaint("ResNet", expected, repr(block), remedy))
        remedy = "Pass the number of blocks of the four stages"
        if not isinstance(depths, (tuple, list)) or len(depths) != 4:
            raise TypeError(complaint("ResNet", "depths to be a tuple of four numbers", repr(depths), remedy))
        for depth in depths:
            check_int("ResNet", "each of depths", depth, low=1, remedy=remedy)
        super().__init__()
        self.num_features = 8 * width * block.expansion
        self.normalize = input_layer("ResNet", normalize, in_channels)
        self.conv1 = conv(in_channels, width, 3)
        self.bn1 = nn.BatchNorm2d(width)
        self.layer1 = _stage(block, width, width, depths[0], stride=1)
        self.layer2 = _stage(block, width * block.expansion, 2 * width, depths[1], stride=2)
        self.layer3 = _stage(block, 2 * width * block.expansion, 4 * width, depths[2], stride=2)
        self.layer4 = _stage(block, 4 * width * block.expansion, 8 * width, depths[3], stride=2)
        self.fc = nn.Linear(self.num_features, num_classes) if num_classes else nn.Identity()
        draw_convolutions(self)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits ``[N, num_classes]``, or features ``[N, num_features]`` if ``num_classes`` is 0.

        Args:
            x: images ``[N, C, H, W]`` in [0, 1], of any size.
        """
        x = self.normalize(x)
        check_maps("ResNet", x, self.conv1)
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        logits: Tensor = self.fc(x.mean((2, 3)))
        return logits


def _stage(block: type[BasicBlock | Bottleneck], channels: int, width: int, depth: int, stride: int) -> nn.Sequential:
    out = width * block.expansion
    return nn.Sequential(block(channels, width, stride), *(block(out, width, 1) for _ in range(depth - 1)))


def resnet18(
    num_classes: int = 10, *, width: int = 64, in_channels: int = 3, normalize: Statistics | None = IMAGENET
) -> ResNet:
    """Return an untrained ResNet-18 for small images, the encoder of the ACL paper.

    At width 64 it has 512 features and 11.2 M parameters. Arguments and errors are those of :class:`ResNet`.

    Example:
        >>> encoder = resnet18(num_classes=0, width=4)
        >>> encoder(torch.rand(2, 3, 32, 32)).shape, encoder.num_features
        (torch.Size([2, 32]), 32)
    """
    return ResNet(BasicBlock, (2, 2, 2, 2), num_classes, width=width, in_channels=in_channels, normalize=normalize)


def resnet34(
    num_classes: int = 10, *, width: int = 64, in_channels: int = 3, normalize: Statistics | None = IMAGENET
) -> ResNet:
    """Return an untrained ResNet-34 for small images, with the arguments and errors of :class:`ResNet`.

    At width 64 it has 512 features and 21.3 M parameters.
    """
    return ResNet(BasicBlock, (3, 4, 6, 3), num_classes, width=width, in_channels=in_channels, normalize=normalize)


def resnet50(
    num_classes: int = 10, *, width: int = 64, in_channels: int = 3, normalize: Statistics | None = IMAGENET
) -> ResNet:
    """Return an untrained ResNet-50 for small images, with the arguments and errors of :class:`ResNet`.

    At width 64 it has 2048 features and 23.5 M parameters.
    """
    return ResNet(Bottleneck, (3, 4, 6, 3), num_classes, width=width, in_channels=in_channels, normalize=normalize)
