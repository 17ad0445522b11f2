"""The WideResNet of TRADES."""

from collections import OrderedDict

from torch import Tensor, nn
from torch.nn import functional as F

from .normalize import IMAGENET, Statistics, input_layer
from .resnet import check_block, check_maps, check_network, conv, draw_convolutions

_STEM = 16
_DEPTH = 5


class PreActivationBlock(nn.Module):
    """Two 3x3 convolutions, each preceded by a norm and a ReLU, with a shortcut.

    If the shape changes, the shortcut is a 1x1 convolution of the rectified input, otherwise the input itself.

    Args:
        channels: channels of the input.
        width: channels of both convolutions and of the output.
        stride: stride of the first convolution and the shortcut.
    """

    def __init__(self, channels: int, width: int, stride: int) -> None:
        check_block("PreActivationBlock", channels, width, stride)
        super().__init__()
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv1 = conv(channels, width, 3, stride)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv2 = conv(width, width, 3)
        self.convShortcut = None if stride == 1 and channels == width else conv(channels, width, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Return the sum of both paths."""
        check_maps("PreActivationBlock", x, self.conv1)
        y = F.relu(self.bn1(x))
        shortcut = x if self.convShortcut is None else self.convShortcut(y)
        y = F.relu(self.bn2(self.conv1(y)))
        total: Tensor = shortcut + self.conv2(y)
        return total


class WideResNet(nn.Module):
    """A pre-activation WideResNet of depth 34 without dropout, as TRADES uses it.

    It takes images in [0, 1] and normalises them itself; TRADES did not normalise (``normalize=None``). Names in its
    state dict are those of the TRADES code, whose files also have an unused ``sub_block1``. Attributes and errors are
    those of :class:`ResNet`. References: Zagoruyko and Komodakis, BMVC 2016; Zhang et al., ICML 2019.

    Args:
        num_classes: as for :class:`ResNet`.
        width: channels of the first stage; the later ones have twice and four times as many. The stem has 16.
        in_channels: as for :class:`ResNet`.
        normalize: as for :class:`ResNet`.
    """

    def __init__(
        self, num_classes: int = 10, *, width: int = 160, in_channels: int = 3, normalize: Statistics | None = IMAGENET
    ) -> None:
        check_network("WideResNet", num_classes, width, in_channels)
        super().__init__()
        self.num_features = 4 * width
        self.normalize = input_layer("WideResNet", normalize, in_channels)
        self.conv1 = conv(in_channels, _STEM, 3)
        self.block1 = _stage(_STEM, width, stride=1)
        self.block2 = _stage(width, 2 * width, stride=2)
        self.block3 = _stage(2 * width, 4 * width, stride=2)
        self.bn1 = nn.BatchNorm2d(4 * width)
        self.fc: nn.Module = nn.Identity()
        if num_classes:
            self.fc = nn.Linear(self.num_features, num_classes)
            nn.init.zeros_(self.fc.bias)
        draw_convolutions(self)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits or features, as a :class:`ResNet` does."""
        x = self.normalize(x)
        check_maps("WideResNet", x, self.conv1)
        x = self.block3(self.block2(self.block1(self.conv1(x))))
        logits: Tensor = self.fc(F.relu(self.bn1(x)).mean((2, 3)))
        return logits


def _stage(channels: int, width: int, *, stride: int) -> nn.Sequential:
    blocks = (PreActivationBlock(width, width, 1) for _ in range(_DEPTH - 1))
    return nn.Sequential(OrderedDict(layer=nn.Sequential(PreActivationBlock(channels, width, stride), *blocks)))


def wide_resnet34_10(
    num_classes: int = 10, *, width: int = 160, in_channels: int = 3, normalize: Statistics | None = IMAGENET
) -> WideResNet:
    """Return an untrained WideResNet-34-10, the large network of TRADES and of the ACL paper.

    At width 160, which is 10 times the stem, it has 640 features and 46.2 M parameters. For comparisons with TRADES
    pass ``normalize=None``. Arguments and errors are those of :class:`WideResNet`.

    Example:
        >>> encoder = wide_resnet34_10(num_classes=0, width=4)
        >>> encoder(torch.rand(2, 3, 32, 32)).shape, encoder.num_features
        (torch.Size([2, 16]), 16)
    """
    return WideResNet(num_classes, width=width, in_channels=in_channels, normalize=normalize)
