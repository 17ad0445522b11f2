"""Tiny learners, their data, and runs that are interrupted."""

import random
import tempfile
import warnings
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from advcontrast import ACLTrainer, ContrastivePairAugment, PGDAttack, convert_to_dual_bn
from advcontrast._random import capture
from advcontrast.engine import Checkpoint, fit

CPU = torch.device("cpu")


class Interrupted(Exception):
    """A run was cut off."""


class Halving:
    """A schedule that cuts the run off before step ``stop``."""

    def __init__(self, stop=None):
        self.stop = stop

    def __repr__(self):
        return "Halving()"

    def __call__(self, step):
        if step == self.stop:
            raise Interrupted
        return 0.5 ** (step / 4)


def seeded(make, *, seed=0):
    """Return ``make()`` as it is with this seed, and leave the generators alone."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return make()


def network(norm, *, dropout=0.0, dtype=torch.float32):
    """Return a classifier of images ``[N, 3, 8, 8]``; ``norm`` makes a norm for four channels."""
    return seeded(
        lambda: nn.Sequential(
            nn.Conv2d(3, 4, 3, stride=2),
            norm(4),
            nn.Tanh(),
            nn.Flatten(),
            nn.Dropout(dropout),
            nn.Linear(36, 5),
        ).to(dtype)
    )


class Separable(nn.Module):
    """A classifier whose loss is a mean of the losses of its samples, and which draws no random numbers."""

    def __init__(self, dtype=torch.float64, norm=lambda channels: nn.GroupNorm(2, channels), dropout=0.0):
        super().__init__()
        self.model = network(norm, dropout=dropout, dtype=dtype)
        self.dtype = dtype
        self.seen = []

    def forward(self, images, labels):
        self.seen.append(labels.tolist())
        images = images.to(self.dtype) / (1 if images.is_floating_point() else 255)
        logits = self.model(images)
        loss = F.cross_entropy(logits, labels % 5)
        return loss, {"accuracy": (logits.argmax(1) == labels % 5).float().mean()}


class Noisy(Separable):
    """A classifier with running statistics and dropout that draws from every generator there is."""

    def __init__(self):
        super().__init__(torch.float32, nn.BatchNorm2d, dropout=0.3)

    def forward(self, images, labels):
        loss, terms = super().forward(images, labels)
        return loss * (random.uniform(0.5, 1.5) + np.random.rand()), terms


class Drawing(Separable):
    """A classifier that draws two numbers from each generator in every forward pass."""

    def forward(self, images, labels):
        draw()
        return super().forward(images, labels)


def draw():
    """Draw two numbers from each generator."""
    torch.rand(2)
    np.random.rand(2)
    return [random.random() for _ in range(2)]


def acl(mode="DS", *, norm=nn.BatchNorm2d, dtype=torch.float32, **settings):
    """Return a tiny trainer."""
    settings = {"attack": PGDAttack(steps=1), "augment": ContrastivePairAugment(8), **settings}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "ACLTrainer: expected dual batch norms")
        return ACLTrainer(convert_to_dual_bn(network(norm, dtype=dtype)), mode=mode, **settings)


def images(n=22, *, seed=0):
    """Return uint8 images ``[n, 3, 8, 8]``."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (n, 3, 8, 8), dtype=torch.uint8, generator=generator)


def labelled(n=22, *, seed=0):
    """Return images, and their numbers as labels."""
    return images(n, seed=seed), torch.arange(n)


def sgd(learner, lr=0.1, **settings):
    """Return SGD with momentum."""
    return torch.optim.SGD(learner.parameters(), lr=lr, momentum=0.9, **settings)


def adam(learner):
    """Return AdamW, which has a state of two tensors and a number."""
    return torch.optim.AdamW(learner.parameters(), lr=0.01)


def train(learner, data=None, **settings):
    """Fit for two epochs of three steps of 8 samples."""
    data = labelled() if data is None else data
    settings = {"epochs": 2, "batch_size": 8, "optimizer": sgd(learner), "schedule": Halving(), **settings}
    return fit(learner, data, **settings)


def scramble(seed):
    """Put every global generator into another state."""
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed)


def weights(learner):
    """Return a copy of the state of a learner."""
    return {name: value.detach().clone() for name, value in learner.state_dict().items()}


def outcome(learner, history, optimizer=None, ema=None):
    """Return all that a run leaves behind in this process, without the seconds it took."""
    return {
        "weights": weights(learner),
        "history": timeless(history),
        "optimizer": None if optimizer is None else optimizer.state_dict(),
        "ema": None if ema is None else ema.state_dict(),
        "random": capture(CPU),
    }


def timeless(history):
    """Return the rows without the seconds."""
    return [{name: value for name, value in row.items() if name != "seconds"} for row in history]


def last_checkpoint(folder):
    """Return the step and state of the last checkpoint of a run, without the seconds it took."""
    step, state = Checkpoint(folder / "checkpoints").load()
    state["history"] = timeless(state["history"])
    return step, state


def last_step(folder):
    """Return the step of the last checkpoint of a run, and 0 if there is none."""
    return max(Checkpoint(folder / "checkpoints").steps(), default=0)


def same(a, b):
    """Tell whether two nests of plain data are equal to the bit."""
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and a == b


def scratch():
    """Return a new folder; for processes that have no ``tmp_path``."""
    return Path(tempfile.mkdtemp())
