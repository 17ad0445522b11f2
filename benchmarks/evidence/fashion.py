"""The task of the small experiments: 14 x 14 pixels of Fashion-MNIST, and a network of four convolutions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from advcontrast import PGDAttack
from advcontrast.data import ImageSet
from advcontrast.evaluation import accuracy, robust_accuracy

DATA = Path(__file__).parents[2] / "examples" / "data" / "fashion-mini.npz"
CLASSES = ("T-shirt", "trousers", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")
EPS = 0.1


def images(split: str) -> ImageSet:
    """Return the 5,000 images of "train" or the 1,000 of "test", halved to 14 x 14 pixels."""
    with np.load(DATA) as file:
        x, y = (torch.from_numpy(file[f"{split}_{part}"]) for part in ("images", "labels"))
    return ImageSet(F.avg_pool2d(x[:, None].float(), 2).round().to(torch.uint8), y.long(), CLASSES)


def attack(steps: int) -> PGDAttack:
    """Return PGD with steps of a quarter of the radius, or longer steps if there are few."""
    return PGDAttack(eps=EPS, step_size=EPS * max(1 / 4, 1.5 / steps), steps=steps)


def accuracies(model: nn.Module, test: ImageSet) -> tuple[float, float]:
    """Return the accuracy on clean images (TA) and under PGD-20 (RA), in [0, 1]."""
    batches = list(test.batches(500))
    return accuracy(model, batches).accuracy, robust_accuracy(model, batches, attack(20)).accuracy


class Encoder(nn.Module):
    """Four convolutions for images ``[N, 1, H, W]`` in [0, 1]; returns features ``[N, 128]``."""

    features = 128

    def __init__(self) -> None:
        super().__init__()
        widths = (1, 16, 32, 64, self.features)
        layers: list[nn.Module] = []
        for before, after, stride in zip(widths[:-1], widths[1:], (1, 2, 2, 1), strict=True):
            layers += [nn.Conv2d(before, after, 3, stride, 1, bias=False), nn.BatchNorm2d(after), nn.ReLU()]
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """Return the features, averaged over positions."""
        x = self.layers((x - 0.5) / 0.25)
        return F.avg_pool2d(x, x.shape[2:]).flatten(1)
