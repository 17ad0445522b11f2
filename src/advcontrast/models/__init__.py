"""Networks for small images that take them in [0, 1], and what adapts the networks of others."""

from .backbone import backbone as backbone
from .heads import acl_head as acl_head
from .heads import simclr_head as simclr_head
from .normalize import IMAGENET_MEAN as IMAGENET_MEAN
from .normalize import IMAGENET_STD as IMAGENET_STD
from .normalize import Normalize as Normalize
from .resnet import BasicBlock as BasicBlock
from .resnet import Bottleneck as Bottleneck
from .resnet import ResNet as ResNet
from .resnet import resnet18 as resnet18
from .resnet import resnet34 as resnet34
from .resnet import resnet50 as resnet50
from .stem import cifar_stem as cifar_stem
from .wide_resnet import PreActivationBlock as PreActivationBlock
from .wide_resnet import WideResNet as WideResNet
from .wide_resnet import wide_resnet34_10 as wide_resnet34_10

__all__ = [
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "BasicBlock",
    "Bottleneck",
    "Normalize",
    "PreActivationBlock",
    "ResNet",
    "WideResNet",
    "acl_head",
    "backbone",
    "cifar_stem",
    "resnet18",
    "resnet34",
    "resnet50",
    "simclr_head",
    "wide_resnet34_10",
]
