"""
The cost of a training step
===========================

Seconds depend on the machine; passes through the network do not. :func:`~advcontrast.engine.forward_equivalents` counts
them before a run starts, in forward passes for each image, by running one step of a copy.
"""

import matplotlib.pyplot as plt
import torch
from torch import nn

from advcontrast import ACLTrainer, PGDAttack, convert_to_dual_bn
from advcontrast.engine import forward_equivalents
from advcontrast.models import resnet18, simclr_head

plt.rc("figure", figsize=(5.6, 3.4))
plt.rc("font", size=11)

# %%
# A forward pass counts one, and its backward pass two: one for the gradient of the input, one for that of the
# weights. SimCLR embeds two views, so it costs 2 x 3 = 6. A step of the attack needs the gradient of the images only,
# and costs 2 per view.

encoder = resnet18(num_classes=0, width=16)
model = convert_to_dual_bn(nn.Sequential(encoder, simclr_head(encoder.num_features)))
x1, x2 = torch.rand(2, 4, 3, 32, 32)

steps = [1, 2, 3, 5, 7, 10]
passes = {}
for mode in ("DS", "A2A", "A2S", "S2S"):
    attacks = [PGDAttack(steps=count) for count in steps]
    learners = [ACLTrainer(model, mode=mode, attack=attack) for attack in attacks]
    passes[mode] = [forward_equivalents(learner, x1, x2) for learner in learners]

# %%
# With the default of five attack steps, dual stream costs five times as much as SimCLR: 6 for each of the two streams
# and 20 for the attack. A2S attacks one view instead of two, which halves the slope. Fewer attack steps save the most;
# :doc:`/guides/speed` has their effect on robustness, and cheaper attacks.

figure, ax = plt.subplots(layout="constrained")
for (mode, counts), colour, marker in zip(
    passes.items(), ("#c2331c", "#d98b00", "#1a66b0", "#747c86"), "oD^s", strict=True
):
    ax.plot(steps, counts, color=colour, marker=marker)
    ax.text(10.25, counts[-1], mode, color=colour, va="center")
ax.set(
    xticks=steps,
    xlabel="steps of the attack",
    ylabel="forward passes per image",
    xlim=(0.5, 11),
    ylim=(0, 60),
)
ax.grid(alpha=0.3)
plt.show()
