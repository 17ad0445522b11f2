"""
Tutorial: robust features without labels
========================================

An imperceptible change of an image can make a network classify a shoe as a bag. Networks can learn to withstand such
attacks, but that takes many labels. This page needs few: it trains an encoder *without* labels so that its features are
robust to attacks, and then trains a robust classifier with ten labelled images a class.

The page assumes that you know PyTorch. Everything below ran on a CPU when this page was built. Networks and runs are
tiny; :doc:`/guides/pipeline` has the full ones.
"""

from collections import OrderedDict
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
    NTXentLoss,
    PGDAttack,
    convert_to_dual_bn,
    export_branch,
    fit,
)
from advcontrast.attacks import under_attack
from advcontrast.data import ImageSet, labelled_subset
from advcontrast.evaluation import robust_curve
from advcontrast.functional import alignment
from advcontrast.models import BasicBlock, ResNet, simclr_head
from advcontrast.strategies import StandardTrainer

torch.manual_seed(0)
plt.rc("figure", figsize=(5.6, 3.4))
plt.rc("font", size=11)
BLUE, RED, GREY = "#1a66b0", "#c2331c", "#747c86"

# %%
# The images
# ----------
#
# The repository comes with a part of Fashion-MNIST: 5,000 training and 1,000 test images of ten kinds of clothes. We
# halve them to 14 x 14 pixels to be fast. Images are uint8, or floats in [0, 1]. They are not normalised here, since
# the limit of an attack is in units of the pixels; the network normalises.

DATA = Path("examples/data/fashion-mini.npz")  # in a clone of the repository
path = next((p / DATA for p in DATA.absolute().parents if (p / DATA).exists()), DATA)
names = "T-shirt trousers pullover dress coat sandal shirt sneaker bag boot"
classes = tuple(names.split())


def load(split: str) -> ImageSet:
    with np.load(path) as file:
        x = torch.from_numpy(file[f"{split}_images"][:, None]).float()
        y = torch.from_numpy(file[f"{split}_labels"]).long()
    return ImageSet(F.avg_pool2d(x, 2).round().to(torch.uint8), y, classes)


train, test = load("train"), load("test").subset(torch.arange(500))
one_of_each = torch.stack([(train.y == label).nonzero()[0, 0] for label in range(10)])

figure, axes = plt.subplots(2, 5, figsize=(5.6, 2.9), layout="constrained")
for ax, index in zip(axes.flat, one_of_each, strict=True):
    ax.imshow(train.x[index, 0].numpy(), cmap="gray")
    ax.set_title(classes[train.y[index]])
    ax.axis("off")
plt.show()

# %%
# Two views
# ---------
#
# Contrastive learning needs no labels. :class:`~advcontrast.ContrastivePairAugment` makes two random views of every
# image of a batch, and the network learns which two of all views show the same image. To recognise them it must learn
# features that do not change when an image is cropped, mirrored and recoloured.

augment = ContrastivePairAugment(14, strength=0.5)
x1, x2 = augment(train.x[one_of_each])

figure, axes = plt.subplots(3, 10, figsize=(5.6, 2), layout="constrained")
rows = {"image": train.x[one_of_each], "view 1": x1, "view 2": x2}
for row, (name, pictures) in zip(axes, rows.items(), strict=True):
    for ax, picture in zip(row, pictures, strict=True):
        ax.imshow(picture[0].numpy(), cmap="gray")
        ax.set(xticks=[], yticks=[])
    row[0].set_ylabel(name, rotation=0, ha="right", va="center")
plt.show()

# %%
# The network is a ResNet of ten layers, narrow enough for a CPU. It maps an image to 64 features, and the head maps
# these to the embedding that the contrastive loss compares. We keep the untrained weights: every encoder on this page
# starts from them.

mean, std = train.x.float().mean() / 255, train.x.float().std() / 255
encoder = ResNet(
    BasicBlock,
    (1, 1, 1, 1),
    num_classes=0,
    width=8,
    in_channels=1,
    normalize=((mean.item(),), (std.item(),)),
)
head = simclr_head(encoder.num_features, hidden=128, out=64)
untrained = nn.Sequential(encoder, head)

# %%
# The baseline: SimCLR
# --------------------
#
# :class:`~advcontrast.ACLTrainer` is a module whose forward pass is a training step. Its mode S2S, "standard to
# standard", compares two clean views; that is SimCLR. :func:`~advcontrast.engine.fit` is the loop. It takes
# images and no labels.

pretraining = {"epochs": 10, "batch_size": 125}
unlabelled = train.x[:2000]

loss = NTXentLoss(temperature=0.3)
simclr = ACLTrainer(deepcopy(untrained), mode="S2S", loss=loss, augment=augment)
adam = torch.optim.Adam(simclr.parameters(), lr=3e-3)
simclr_history = fit(simclr, unlabelled, optimizer=adam, **pretraining)

# %%
# Attacks on a pair
# -----------------
#
# An attack moves every pixel by at most ``eps`` so that a function of the images grows. Here the function is the
# contrastive loss, so that the embeddings of a pair move apart. Alignment is the mean squared distance of the two
# embeddings of a pair, on a scale where unrelated images are about 2 apart. Noise of the same size is shown for
# comparison.

attack = PGDAttack(eps=0.1, step_size=0.05, steps=3)
x1, x2 = augment(test.x)

with torch.no_grad(), under_attack(simclr.model):
    z1, z2 = simclr.model(x1), simclr.model(x2)
    x1_adv = attack(lambda images: loss(simclr.model(images), z2), x1)
    noisy = (x1 + attack.eps * torch.randn_like(x1).sign()).clamp(0, 1)
    print(f"two views          {alignment(z1, z2):.2f}")
    print(f"one of them noisy  {alignment(simclr.model(noisy), z2):.2f}")
    print(f"one attacked       {alignment(simclr.model(x1_adv), z2):.2f}")

figure, axes = plt.subplots(3, 8, figsize=(5.6, 2.4), layout="constrained")
rows = {
    "view": x1,
    "attacked": x1_adv,
    "change": 0.5 + (x1_adv - x1) / (2 * attack.eps),
}
for row, (name, pictures) in zip(axes, rows.items(), strict=True):
    for ax, picture in zip(row, pictures, strict=False):
        ax.imshow(picture[0].numpy(), cmap="gray", vmin=0, vmax=1)
        ax.set(xticks=[], yticks=[])
    row[0].set_ylabel(name, rotation=0, ha="right", va="center")
plt.show()

# %%
# The attacked images are easy to recognise. To the network, the pair has lost most of its similarity.
#
# Training under attack
# ---------------------
#
# The remedy is to train on attacked views. A single set of batch norms for clean and attacked views costs much
# robustness, as :ref:`the paper measured <single-norm>`. So :func:`~advcontrast.convert_to_dual_bn` gives every batch
# norm two branches, ``"clean"`` and ``"adv"``, which start as copies. All other weights stay shared.

dual = convert_to_dual_bn(deepcopy(untrained))
print(dual[0].bn1)

# %%
# The mode DS, "dual stream", is the one that the ACL paper recommends. Each step compares two clean views through the
# clean branch, and the same views under attack through the adversarial branch; :doc:`/modes` draws it. The trainer runs
# the attack, switches the branches, and restores the state of the network. It costs four times as much as SimCLR, half
# of it for the attack.

acl = ACLTrainer(dual, mode="DS", loss=loss, attack=attack, augment=augment)
adam = torch.optim.Adam(acl.parameters(), lr=3e-3)
acl_history = fit(acl, unlabelled, optimizer=adam, **pretraining)

curves = {
    "ACL, attacked views": ("loss_adv", acl_history, RED, "o"),
    "ACL, clean views": ("loss_clean", acl_history, BLUE, "o"),
    "SimCLR, clean views": ("loss", simclr_history, GREY, "s"),
}
figure, ax = plt.subplots(layout="constrained")
for name, (term, history, colour, marker) in curves.items():
    epochs = [row["epoch"] for row in history]
    losses = [row[term] for row in history]
    ax.plot(epochs, losses, color=colour, marker=marker, label=name)
ax.set(xlabel="epoch", ylabel="contrastive loss (nats)")
ax.legend(frameon=False)
ax.grid(alpha=0.3)
plt.show()

# %%
# Both losses fall; the one under attack is larger.
#
# Export
# ------
#
# :func:`~advcontrast.export_branch` makes a plain network again, with the norms of one branch and the keys from before
# the conversion. The adversarial branch is the robust one. The head is not needed any more.

encoders = {
    "random": deepcopy(encoder),
    "SimCLR": simclr.model[0],
    "ACL": export_branch(acl.model, "adv")[0],
}

# %%
# A classifier from ten labels a class
# ------------------------------------
#
# Each encoder is frozen and gets a linear classifier, trained on 100 clean labelled images. No attack is used here, so
# any robustness comes from the encoder. ``frozen=True`` requires parts with the names ``encoder`` and ``head``.
# :func:`~advcontrast.evaluation.robust_curve` then attacks the whole classifier with growing ``eps``.

labelled = train.subset(labelled_subset(train.y, 100 / len(train), seed=0))
pgd = PGDAttack(eps=0.1, step_size=0.025, steps=10)
radii = [0, 0.02, 0.04, 0.06, 0.08, 0.1, 0.15]

curves = {}
for name, frozen in encoders.items():
    head = nn.Linear(encoder.num_features, len(classes))
    classifier = nn.Sequential(OrderedDict(encoder=frozen, head=head))
    learner = StandardTrainer(classifier, frozen=True)
    sgd = torch.optim.SGD(head.parameters(), lr=0.3, momentum=0.9)
    few = labelled.x.float() / 255, labelled.y
    fit(learner, few, epochs=100, batch_size=100, optimizer=sgd)
    curves[name] = robust_curve(classifier, test.batches(250), pgd, eps=radii)
    print(name, curves[name])

# %%
# The point at ``eps`` 0 is accuracy on clean images, the rest is accuracy under attack. Without attack both
# pre-trained encoders are better than the random one. Under attack they differ: SimCLR soon loses its accuracy, and the
# encoder that was trained under attack keeps much of it.

figure, ax = plt.subplots(layout="constrained")
styles = {"random": (GREY, "^"), "SimCLR": (BLUE, "s"), "ACL": (RED, "o")}
for name, (colour, marker) in styles.items():
    accuracy = [100 * share for share in curves[name].accuracies]
    ax.plot(radii, accuracy, color=colour, marker=marker, label=name)
ax.axhline(10, color="black", linewidth=0.8, linestyle=":")
ax.text(0, 9, "chance", va="top")
ax.set(
    xlabel="eps, largest change of a pixel (black to white is 1)",
    ylabel="test accuracy (%)",
    ylim=(0, 80),
)
ax.legend(title="encoder, frozen", frameon=False, ncols=3, loc="upper right")
ax.grid(alpha=0.3)
plt.show()

# sphinx_gallery_thumbnail_number = -1

# %%
# These are upper bounds, found by one attack on one seed of a tiny experiment; :doc:`/guides/robustness` explains how
# to get reliable numbers, and :ref:`the quickstart <example-results>` has them over three seeds, with fine-tuning.
# Next:
#
# - your own network and images: :doc:`/quickstart` and :doc:`/guides/backbones`;
# - the modes: :doc:`/modes`;
# - fine-tuning, semi-supervised training and all tables of the paper: :doc:`/guides/pipeline`.
