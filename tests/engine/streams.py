"""Folders of images, data sets that misbehave, and what is left of their processes."""

import multiprocessing
import os
import random
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.utils.data import Dataset, get_worker_info

from tests.engine.learners import images, network, outcome, scramble, train


class Pictures(nn.Module):
    """A classifier of which half of an image is brighter; it draws nothing, and keeps what it sees."""

    def __init__(self, model=None):
        super().__init__()
        self.model = network(lambda channels: nn.GroupNorm(2, channels)) if model is None else model
        self.seen = []

    def forward(self, x):
        self.seen.append(x[:, 0, 0, 0].tolist())
        x = x.float() / 255
        labels = (x[..., :4].mean((1, 2, 3)) > x[..., 4:].mean((1, 2, 3))).long()
        return nn.functional.cross_entropy(self.model(x), labels), {}


def trained(data, learner=None, **settings):
    """Train on ``data``; return what came of it, and what the learner has seen."""
    scramble(3)
    learner = Pictures() if learner is None else learner
    return outcome(learner, train(learner, data, **settings)), getattr(learner, "seen", None)


class Drawn(Dataset):
    """Images that are augmented at random, by three generators, when they are read."""

    def __len__(self):
        return 22

    def __getitem__(self, index):
        shift = torch.randint(100, ()) + random.randrange(100) + np.random.randint(50)
        return (images()[index].int() + int(shift)).remainder(256).byte()


class Misbehaving(Dataset):
    """Images, of which reading number ``at`` does something else first; all reads are counted in shared memory."""

    def __init__(self, at, deed, n=22):
        self.at, self.deed, self.n = at, deed, n
        self.reads = torch.zeros(8, dtype=torch.int64).share_memory_()  # one for each worker

    def __len__(self):
        return self.n

    def __getitem__(self, index):
        worker = get_worker_info()
        self.reads[0 if worker is None else worker.id] += 1
        if index == self.at:
            self.deed()
        return images(self.n)[index]


def write(folder, pictures):
    """Write images as files of a folder, in their order."""
    folder.mkdir(parents=True, exist_ok=True)
    for i, picture in enumerate(pictures):
        content = bytes(picture.permute(1, 2, 0).flatten().tolist())
        Image.frombytes("RGB", (picture.shape[2], picture.shape[1]), content).save(folder / f"{i:03d}.png")
    return folder


@contextmanager
def nobody_left(seconds=10):
    """Require that no process that was started inside the block is left behind it, running or dead."""
    before = {*multiprocessing.active_children()}
    yield
    end = time.monotonic() + seconds
    while ({*multiprocessing.active_children()} - before or zombies()) and time.monotonic() < end:
        time.sleep(0.05)
    assert {*multiprocessing.active_children()} - before == set()
    assert zombies() == []


def zombies():
    """Return the numbers of dead processes that nobody has waited for."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            state, parent = (process / "stat").read_text().rpartition(")")[2].split()[:2]
        except OSError:  # it has just ended
            continue
        if int(parent) == os.getpid() and state == "Z":
            found.append(process.name)
    return found
