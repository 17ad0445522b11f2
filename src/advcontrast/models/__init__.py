"""Networks for small images in [0, 1], trained encoders, and functions that adapt the networks of other libraries."""

from .backbone import backbone
from .heads import acl_head, simclr_head
from .normalize import IMAGENET_MEAN, IMAGENET_STD, Normalize
from .pretrained import pretrained
from .resnet import BasicBlock, Bottleneck, ResNet, resnet18, resnet34, resnet50
from .stem import cifar_stem
from .wide_resnet import PreActivationBlock, WideResNet, wide_resnet34_10

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
    "pretrained",
    "resnet18",
    "resnet34",
    "resnet50",
    "simclr_head",
    "wide_resnet34_10",
]
