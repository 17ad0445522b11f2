"""Tiny classifiers of real images, honest ones and ones that hide their gradients."""

from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from advcontrast import PGDAttack
from advcontrast.attacks import ClassificationObjective, under_attack

EPS = 0.1
PGD = PGDAttack(eps=EPS, step_size=EPS / 4, steps=10)
DATA = Path(__file__).parents[2] / "examples" / "data" / "fashion-mini.npz"


def fashion(split, n):
    """The first images of Fashion-MNIST, halved to 14 x 14 pixels on the grid of 8-bit images."""
    with np.load(DATA) as file:
        x, y = (torch.from_numpy(file[f"{split}_{kind}"][:n]) for kind in ("images", "labels"))
    return F.avg_pool2d(x[:, None].float(), 2).round() / 255, y.long()


def convolutions(norm=nn.Identity):
    return nn.Sequential(
        nn.Conv2d(1, 12, 3, 2, 1), norm(12), nn.ReLU(), nn.Conv2d(12, 24, 3, 2, 1), norm(24), nn.ReLU(),
        nn.Flatten(), nn.Linear(24 * 16, 10),
    )  # fmt: skip


def linear():
    return nn.Sequential(nn.Flatten(), nn.Linear(196, 10))


def trained(model, *, attack=None, epochs=8):
    """Train a network, on adversarial images where there is an attack, and leave it in eval mode."""
    x, y = fashion("train", 1000)
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(epochs):
        for part in torch.randperm(len(x), generator=generator).split(50):
            images = x[part]
            if attack is not None:
                with under_attack(model):
                    images = attack(ClassificationObjective(model, y[part]), images, generator=generator)
            optimizer.zero_grad()
            F.cross_entropy(model.train()(images), y[part]).backward()
            optimizer.step()
    return model.eval()


def built(architecture, *args, **training):
    """A network whose weights do not depend on what ran before, trained."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = architecture(*args)
    return trained(model, **training)


def templates():
    """A linear classifier of noisy templates that needs no training, with logits of usual size, its images and labels.

    Of 200 images all are right, 46 % under the strongest attack with eps 0.08, and 54 % under PGD with ten steps.
    """
    generator = torch.Generator().manual_seed(0)
    y = torch.randint(10, (200,), generator=generator)
    centres = 0.5 + 0.4 * (torch.rand(10, 1, 8, 8, generator=generator) - 0.5)
    x = (centres[y] + 0.12 * torch.randn(200, 1, 8, 8, generator=generator)).clamp(0, 1)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).eval()
    weight, bias = 20 * centres.flatten(1), -10 * centres.flatten(1).square().sum(1)
    model[1].load_state_dict({"weight": weight - weight.mean(0), "bias": bias - bias.mean()})
    return model, x, y


class Before(nn.Module):
    """A network behind a function of its images."""

    def __init__(self, function, network):
        super().__init__()
        self.function, self.network = function, network
        self.eval()

    def forward(self, x):
        return self.network(self.function(x))


class After(Before):
    """A network with a function of its logits."""

    def forward(self, x):
        return self.function(self.network(x))


class Tempered(nn.Module):
    """A network with a temperature that depends on the image, and not on its class."""

    def __init__(self, network):
        super().__init__()
        self.network = network
        self.eval()

    def forward(self, x):
        return self.network(x) * (5 * (20 * x).flatten(1).sum(1, keepdim=True).sin()).exp()


def quantised(x):
    return (5 * x).round() / 5


def shattered(x):
    """Moves a pixel by at most 0.02, with a slope between -9 and 11."""
    return x + 0.02 * torch.sin(500 * x)


def noisy(x):
    return x + 0.1 * torch.randn_like(x)


class OnGrid(torch.autograd.Function):
    """The identity, whose gradient vanishes for pixels off the grid of 8-bit images."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        steps = 255 * ctx.saved_tensors[0]
        return gradient * ((steps - steps.round()).abs() < 1e-3)


class Smooth(torch.autograd.Function):
    """The identity, whose gradient vanishes for rough images, such as those a large perturbation makes."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward((x.diff(dim=3).abs().mean((1, 2, 3)) < 0.25).view(-1, 1, 1, 1))
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient * ctx.saved_tensors[0]


class BatchStatistics(nn.BatchNorm2d):
    """Normalises with the statistics of the batch in eval mode too, and moves the running ones."""

    def forward(self, x):
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, training=True)
