"""
Interpolation between two branches
==================================

A batch norm subtracts the mean of its inputs and divides by their standard deviation. These statistics differ between
clean and attacked images, so dual norms have a set for each. Here a classifier is trained on clean images through one
branch and on attacked images through the other. The page shows how far the branches have moved apart, and evaluates
networks that are interpolated between them.
"""

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from advcontrast import (
    DualBatchNorm2d,
    PGDAttack,
    bn_branch,
    convert_to_dual_bn,
    interpolate_branches,
)
from advcontrast.attacks import ClassificationObjective, under_attack
from advcontrast.evaluation import accuracy, robust_accuracy
from advcontrast.models import BasicBlock, ResNet

torch.manual_seed(0)
plt.rc("figure", figsize=(5.6, 3.4))
plt.rc("font", size=11)
BLUE, RED = "#1a66b0", "#c2331c"

DATA = Path("examples/data/fashion-mini.npz")  # in a clone of the repository
path = next((p / DATA for p in DATA.absolute().parents if (p / DATA).exists()), DATA)


def load(split: str, limit: int) -> TensorDataset:
    with np.load(path) as file:
        x = torch.from_numpy(file[f"{split}_images"][:limit, None]) / 255
        y = torch.from_numpy(file[f"{split}_labels"][:limit]).long()
    return TensorDataset(F.avg_pool2d(x, 2), y)


train = DataLoader(load("train", 2000), batch_size=125, shuffle=True)
test = [load("test", 300)[:]]

# %%
# A plain training loop
# ---------------------
#
# You can use branches without a trainer. :func:`~advcontrast.bn_branch` selects the norms of a forward pass, and
# :func:`~advcontrast.attacks.under_attack` prepares the network for the attack.

model = ResNet(
    BasicBlock,
    (1, 1, 1, 1),
    width=8,
    in_channels=1,
    normalize=((0.29,), (0.33,)),
)
convert_to_dual_bn(model)
attack = PGDAttack(eps=0.1, step_size=0.05, steps=3)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, 5 * len(train))

for _ in range(5):
    for x, y in train:
        with bn_branch(model, "adv"):
            with under_attack(model):
                x_adv = attack(ClassificationObjective(model, y), x)
            loss = F.cross_entropy(model(x_adv), y)
        with bn_branch(model, "clean"):
            loss = loss + F.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()

# %%
# Two statistics
# --------------
#
# Each dot is a channel of a norm; its coordinates are the running means of both branches, in units of the clean
# branch's deviation. At the start the branches were copies, and all dots were on the line. A branch is an ordinary
# batch norm, with the usual names for its statistics.

figure, ax = plt.subplots(layout="constrained")
for norm in model.modules():
    if isinstance(norm, DualBatchNorm2d):
        deviation = norm.clean.running_var.sqrt()
        clean = norm.clean.running_mean / deviation
        adv = norm.adv.running_mean / deviation
        ax.scatter(clean, adv, s=14, color=BLUE, alpha=0.6, linewidths=0)
ax.axline((0, 0), slope=1, color="black", linewidth=0.8)
ax.set(xlabel="mean in the clean branch (deviations)")
ax.set(ylabel="in the adversarial branch")
ax.grid(alpha=0.3)
plt.show()

# %%
# Between the branches
# --------------------
#
# :func:`~advcontrast.interpolate_branches` exports a plain network whose norms are a weighted mean of the branches.
# Robust accuracy is measured under PGD with the training radius, on held-out images.

places = [0, 0.25, 0.5, 0.75, 1]
pgd = PGDAttack(eps=0.1, step_size=0.025, steps=10)
weights = [{"clean": 1 - place, "adv": place} for place in places]
between = [interpolate_branches(model, each) for each in weights]
clean = [100 * accuracy(plain, test).accuracy for plain in between]
robust = [100 * robust_accuracy(plain, test, pgd).accuracy for plain in between]

figure, ax = plt.subplots(layout="constrained")
ax.plot(places, clean, color=BLUE, marker="s", label="clean images")
ax.plot(places, robust, color=RED, marker="o", label="under attack, eps 0.1")
ax.set(xticks=places, xlabel="weight of the adversarial branch")
ax.set(ylabel="test accuracy (%)", ylim=(30, 95))
ax.legend(frameon=False, ncols=2, loc="upper center")
ax.grid(alpha=0.3)
plt.show()

# sphinx_gallery_thumbnail_number = 2

# %%
# All these networks have the same weights and differ only in their norms. The best choice depends on the cost of an
# error with and without an attack. :doc:`/guides/backbones` has the same measurement over two seeds, and with
# recomputed statistics.
