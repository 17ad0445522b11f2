"""
Attacks on a pair of views
==========================

A contrastive attack needs no label. Within its limit of some grey levels it changes a view so that its embedding moves
away from that of the other view of the same image. This page compares it with noise, shows the effect of the number of
steps, and the effect of training against it.
"""

from copy import deepcopy
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from advcontrast import (
    ACLTrainer,
    ContrastivePairAugment,
    PGDAttack,
    convert_to_dual_bn,
    export_branch,
    fit,
)
from advcontrast.attacks import under_attack
from advcontrast.functional import alignment
from advcontrast.models import BasicBlock, ResNet, simclr_head

torch.manual_seed(0)
plt.rc("figure", figsize=(5.6, 3.4))
plt.rc("font", size=11)

DATA = Path("examples/data/fashion-mini.npz")  # in a clone of the repository
path = next((p / DATA for p in DATA.absolute().parents if (p / DATA).exists()), DATA)
with np.load(path) as file:
    gray = torch.from_numpy(file["train_images"][:1150, None])
images = F.avg_pool2d(gray.float(), 2).round().to(torch.uint8)
train, test = images[:1000], images[1000:]  # pairs to train on, and new ones

# %%
# Two networks from the same weights
# ----------------------------------
#
# One is trained on clean pairs (S2S, SimCLR), the other on clean and attacked pairs (DS). Both runs are short. Of the
# second network, we keep the adversarial branch.

encoder = ResNet(
    BasicBlock,
    (1, 1, 1, 1),
    num_classes=0,
    width=8,
    in_channels=1,
    normalize=((0.29,), (0.33,)),
)
head = simclr_head(64, hidden=128, out=64)
untrained = convert_to_dual_bn(nn.Sequential(encoder, head))
augment = ContrastivePairAugment(14, strength=0.5)
attack = PGDAttack(eps=0.1, step_size=0.05, steps=3)

models = {}
for mode, branch in (("S2S", "clean"), ("DS", "adv")):
    acl = ACLTrainer(deepcopy(untrained), mode=mode, attack=attack, augment=augment)
    adam = torch.optim.Adam(acl.parameters(), lr=3e-3)
    fit(acl, train, epochs=5, batch_size=125, optimizer=adam)
    models[mode] = export_branch(acl.model, branch)

# %%
# The attack, step by step
# ------------------------
#
# :class:`~advcontrast.PGDAttack` maximises any function of images, here the distance of both views of each image on the
# unit sphere, whose mean is the :func:`~advcontrast.functional.alignment`. :func:`~advcontrast.attacks.under_attack`
# prepares a network for an attack, and restores its state afterwards.

x1, x2 = augment(test)
noisy = (x1 + attack.eps * torch.randn_like(x1).sign()).clamp(0, 1)
counts = [0, 1, 2, 3, 5, 10, 15]
distances, under_noise = {}, {}
for mode, model in models.items():
    with under_attack(model), torch.no_grad():
        z2 = model(x2)
        under_noise[mode] = alignment(model(noisy), z2)
        distances[mode] = []
        for steps in counts:
            pgd = PGDAttack(eps=0.1, step_size=0.025, steps=steps, random_start=False)
            x1_adv = pgd(lambda x, model=model, z2=z2: alignment(model(x), z2), x1)
            distances[mode].append(alignment(model(x1_adv), z2))

# %%
# Noise of the same size hardly moves a view. The attack moves it far, most of the way in the first steps. Training
# under attack helps: in the second network, the pairs move less far apart.

figure = plt.figure(layout="constrained")
left, right = figure.subfigures(1, 2, width_ratios=(1, 2.2))
rows = {"view": x1, "attacked": x1_adv, "change,\nx 5": 0.5 + 5 * (x1_adv - x1)}
for row, (name, pictures) in zip(left.subplots(3, 2), rows.items(), strict=True):
    for ax, picture in zip(row, pictures[[0, 3], 0].numpy(), strict=True):
        ax.imshow(picture, cmap="gray", vmin=0, vmax=1)
        ax.set(xticks=[], yticks=[])
    row[0].set_ylabel(name)

ax = right.subplots()
names = {"S2S": ("SimCLR", "#1a66b0", "s"), "DS": ("ACL", "#c2331c", "o")}
for mode, (name, colour, marker) in names.items():
    ax.plot(counts, distances[mode], color=colour, marker=marker, label=name)
    ax.axhline(under_noise[mode], color=colour, linestyle=":", label=f"{name}, noise")
ax.set(xticks=range(0, 16, 5), xlabel="steps of the attack")
ax.set(ylabel="squared distance of a pair", ylim=(0, None))
right.legend(loc="outside upper center", ncols=2, frameon=False)
ax.grid(alpha=0.3)
plt.show()
