"""
An ineffective defence
======================

Round the pixels to a few grey levels, and an attack that follows the gradient finds nothing: the derivative of rounding
is zero. The robust accuracy rises, but the classifier is as easy to fool as before. Published defences have made this
mistake. :func:`~advcontrast.evaluation.gradient_masking` checks for its signs.
"""

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from advcontrast import PGDAttack, fit
from advcontrast.evaluation import gradient_masking
from advcontrast.models import BasicBlock, ResNet
from advcontrast.strategies import StandardTrainer

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


train, test = load("train", 2000), load("test", 200)

# %%
# An ordinary classifier, and the "defence" in front of it.


class Rounded(nn.Module):
    def __init__(self, model: nn.Module, levels: int = 16) -> None:
        super().__init__()
        self.model, self.levels = model, levels

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.model((x * self.levels).round() / self.levels)


plain = ResNet(
    BasicBlock,
    (1, 1, 1, 1),
    width=8,
    in_channels=1,
    normalize=((0.29,), (0.33,)),
)
learner = StandardTrainer(plain)
adam = torch.optim.Adam(learner.parameters(), lr=3e-3)
fit(learner, train, epochs=6, batch_size=100, optimizer=adam)
defended = Rounded(plain).eval()

# %%
# The report compares several attacks. A weaker attack must not break more images: if noise, a gradient-free search,
# images made for another network, or another loss break more, the gradient has misled the attack.

attack = PGDAttack(eps=0.1, step_size=0.025, steps=10)
report = gradient_masking(defended, [test], attack, surrogate=plain)
print(report)

# %%
# The same without the defence:

print(gradient_masking(plain, [test], attack))

# %%
# The figure shows the accuracy of the defence under PGD and under the other attacks, on the images that are classified
# correctly without an attack. Report the smallest number. Since the gradient is zero everywhere, one step stays at the
# image and breaks the fewest images, and PGD stays at its random start.

weaker = ["one step", "random noise", "gradient-free search", "transfer"]
left = {name: report[name].figures["accuracy"] for name in weaker}
bars = {"PGD, 10 steps": report["transfer"].figures["white box"], **left}

figure, ax = plt.subplots(layout="constrained")
drawn = ax.barh(
    list(bars),
    [100 * share for share in bars.values()],
    color=["#c2331c"] + 4 * ["#1a66b0"],
)
ax.bar_label(drawn, fmt="%.0f %%", padding=3)
ax.invert_yaxis()
ax.set(xlabel="accuracy under attack (%)", xlim=(0, 120))
plt.show()
