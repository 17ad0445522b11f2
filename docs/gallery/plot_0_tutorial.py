"""
Tutorial: robust features without labels
========================================

A change too small to see can make a network classify a shoe as a bag. Networks can be trained to resist such attacks,
but this usually takes many labels. Here we need few: we train an encoder *without* labels so that its features are
robust to attacks, and then a robust classifier with ten labelled images per class.

You should know PyTorch; adversarial attacks and contrastive learning are explained as we go. Everything below ran on a
CPU when this page was built, with tiny networks and short runs; :doc:`/guides/pipeline` has the full-size scripts.
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
# The repository contains a part of Fashion-MNIST: 5,000 training and 1,000 test images of ten kinds of clothes. We
# downsample them to 14 x 14 pixels to save time. Images are uint8, or floats in [0, 1]. We do not normalise them: the
# size of an attack is in units of the pixels, so normalisation belongs in the network.

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
# Contrastive learning needs no labels. :class:`~advcontrast.ContrastivePairAugment` creates two random views of every
# image in a batch, and the network learns which views show the same image. To match them it must learn features that do
# not change when an image is cropped, flipped and recoloured.

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
# The encoder is a ResNet-10, narrow enough for a CPU. It maps an image to 64 features; a projection head maps the
# features to the embedding that the contrastive loss compares. We keep the untrained weights, since every encoder on
# this page starts from them.

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
# :class:`~advcontrast.ACLTrainer` is a module whose forward pass returns the loss of a training step. Its mode S2S
# ("standard to standard") compares two clean views, as SimCLR does. :func:`~advcontrast.engine.fit` is the training
# loop. It gets images, but no labels.

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
# An attack changes every pixel by at most ``eps`` so that some function of the images grows. With the contrastive loss
# as the function, it moves the embeddings of a pair apart. We measure this by the alignment, the mean squared distance
# between the two normalised embeddings of a pair: 0 for identical embeddings and about 2 for unrelated images. For
# comparison, one view is changed by random noise of the same size.

attack = PGDAttack(eps=0.1, step_size=0.05, steps=3)
x1, x2 = augment(test.x)

with torch.no_grad(), under_attack(simclr.model):
    z1, z2 = simclr.model(x1), simclr.model(x2)
    x1_adv = attack(lambda images: loss(simclr.model(images), z2), x1)
    noisy = (x1 + attack.eps * torch.randn_like(x1).sign()).clamp(0, 1)
    print(f"two clean views    {alignment(z1, z2):.2f}")
    print(f"one with noise     {alignment(simclr.model(noisy), z2):.2f}")
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
# You still recognise the attacked images easily, but for the network the pair has lost most of its similarity.
#
# Training under attack
# ---------------------
#
# The remedy is to train on attacked views. Their statistics differ from those of clean views, and in the
# :ref:`ACL paper <single-norm>` sharing batch norms between the two costs much robustness. Therefore
# :func:`~advcontrast.convert_to_dual_bn` gives every batch norm two branches, ``"clean"`` and ``"adv"``, which start as
# copies of the original. All other weights stay shared.

dual = convert_to_dual_bn(deepcopy(untrained))
print(dual[0].bn1)

# %%
# The mode DS ("dual stream") is the one that the ACL paper recommends. Each step compares two clean views through the
# clean branch, and the same two views under attack through the adversarial branch (see the diagram in :doc:`/modes`).
# The trainer runs the attack, switches the branches, and restores the state of the network. With three attack steps
# this costs four times as much as SimCLR; half of the cost is the attack.

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
# Both losses of ACL fall; the loss under attack stays larger.
#
# Export
# ------
#
# :func:`~advcontrast.export_branch` returns a plain network with the norms of one branch and the original parameter
# names. The adversarial branch is the robust one. The projection head (``[1]``) is no longer needed.

encoders = {
    "random": deepcopy(encoder),
    "SimCLR": simclr.model[0],
    "ACL": export_branch(acl.model, "adv")[0],
}

# %%
# A classifier from ten labels per class
# --------------------------------------
#
# We train a linear classifier on each frozen encoder, with 100 clean labelled images. No attack is used here, so any
# robustness comes from the encoder. ``frozen=True`` expects submodules with the names ``encoder`` and ``head``.
# :func:`~advcontrast.evaluation.robust_curve` then attacks the whole classifier with increasing ``eps``. Accuracies at
# the radii ``eps``, in percent:

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
    print(f"{name:6}", *(f"{100 * share:5.1f}" for share in curves[name].accuracies))

# %%
# The first value, at ``eps`` 0, is the accuracy on clean images. There both pre-trained encoders are better than the
# random one. Under attack the accuracy of SimCLR soon drops, while the encoder that was trained under attack retains
# much of it.

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
# This is one seed of a tiny experiment, and a single attack gives only an upper bound on robust accuracy.
# :doc:`/guides/robustness` explains how to get reliable numbers, and :ref:`the quickstart <example-results>` has
# results over three seeds, with fine-tuning. Next steps:
#
# - your own network and images: :doc:`/quickstart` and :doc:`/guides/backbones`;
# - the four modes: :doc:`/modes`;
# - fine-tuning, semi-supervised training and the tables of the paper: :doc:`/guides/pipeline`.
