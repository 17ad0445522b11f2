"""
Robust accuracy against the radius
==================================

Robustness is defined for a radius. A curve over radii shows where the accuracy of a classifier begins to fall, where it
is lost, and whether the attack is reliable: there are radii at which *no* classifier can be right.
"""

from copy import deepcopy
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from torch.nn import functional as F

from advcontrast import PGDAttack, fit
from advcontrast.evaluation import robust_curve
from advcontrast.models import BasicBlock, ResNet
from advcontrast.strategies import AdversarialTrainer, StandardTrainer

torch.manual_seed(0)
plt.rc("figure", figsize=(5.6, 3.4))
plt.rc("font", size=11)

DATA = Path("examples/data/fashion-mini.npz")  # in a clone of the repository
path = next((p / DATA for p in DATA.absolute().parents if (p / DATA).exists()), DATA)


def load(split: str, limit: int) -> tuple[torch.Tensor, torch.Tensor]:
    with np.load(path) as file:
        x = torch.from_numpy(file[f"{split}_images"][:limit, None]) / 255
        y = torch.from_numpy(file[f"{split}_labels"][:limit]).long()
    return F.avg_pool2d(x, 2), y


train, test = load("train", 2000), load("test", 250)

# %%
# Two classifiers from the same weights, one trained on clean images, one on attacked ones.

untrained = ResNet(
    BasicBlock,
    (1, 1, 1, 1),
    width=8,
    in_channels=1,
    normalize=((0.29,), (0.33,)),
)
attack = PGDAttack(eps=0.1, step_size=0.05, steps=3)
learners = {
    "standard training": StandardTrainer(deepcopy(untrained)),
    "adversarial training": AdversarialTrainer(deepcopy(untrained), attack=attack),
}
for learner in learners.values():
    optimizer = torch.optim.Adam(learner.parameters(), lr=3e-3)
    fit(learner, train, epochs=5, batch_size=100, optimizer=optimizer)

# %%
# :func:`~advcontrast.evaluation.robust_curve` attacks with one radius after the other. An image that was misclassified
# once counts as misclassified in every larger ball. So the curve never increases, and only images that are still
# classified correctly are attacked again.

radii = [0, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5]
strong = PGDAttack(eps=0.1, step_size=0.025, steps=20)
curves = {}
for name, learner in learners.items():
    curves[name] = robust_curve(learner.model, [test], strong, eps=radii).accuracies

# %%
# From radius 0.5 on, every image can be changed into the same uniform grey, so a classifier can be correct only for the
# images of one class. A curve above the dotted line there shows that the attack failed, not that the classifier is
# good.

most = 100 * test[1].bincount().max() / len(test[1])  # the share of the largest class

figure, ax = plt.subplots(layout="constrained")
styles = ("#1a66b0", "s"), ("#c2331c", "o")
for (name, curve), (colour, marker) in zip(curves.items(), styles, strict=True):
    percent = [100 * share for share in curve]
    ax.plot(radii, percent, color=colour, marker=marker, label=name)
ax.axvline(0.1, color="black", linewidth=0.8, alpha=0.5)
ax.text(0.105, 97, "trained here", va="top")
ax.hlines(most, 0.4, 0.52, color="black", linestyle=":")
ax.text(0.52, most + 2, "the most possible\nfrom 0.5 on", ha="right", va="bottom")
ax.set(xlabel="eps, largest change of a pixel (black to white is 1)")
ax.set(ylabel="test accuracy (%)", ylim=(0, 100))
ax.legend(frameon=False, loc="upper right")
ax.grid(alpha=0.3)
plt.show()

# %%
# :doc:`/guides/robustness` has further checks.
