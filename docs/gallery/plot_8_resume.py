"""
Killed and resumed
==================

Preemption, a full disk or a power cut can interrupt a long run. With a folder, :func:`~advcontrast.engine.fit`
continues from the last checkpoint, and on a CPU its final weights are bit-identical to those of an undisturbed run.
Otherwise the effect of an interruption could not be distinguished from that of a code change.
"""

from pathlib import Path
from tempfile import TemporaryDirectory

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
    fit,
)
from advcontrast.models import BasicBlock, ResNet, simclr_head

BLUE, RED = "#1a66b0", "#c2331c"
plt.rc("figure", figsize=(5.6, 3.4))
plt.rc("font", size=11)
DATA = Path("examples/data/fashion-mini.npz")  # in a clone of the repository
path = next((p / DATA for p in DATA.absolute().parents if (p / DATA).exists()), DATA)
with np.load(path) as file:
    gray = torch.from_numpy(file["train_images"][:375])
images = F.avg_pool2d(gray[:, None].float(), 2).round().to(torch.uint8)

# %%
# A run from seeded weights. ``evaluate`` normally returns metrics of the epoch; here it interrupts the run.


def run(folder=None, evaluate=None, seed=0) -> tuple[nn.Module, list[dict]]:
    torch.manual_seed(seed)
    encoder = ResNet(
        BasicBlock,
        (1, 1, 1, 1),
        num_classes=0,
        width=8,
        in_channels=1,
        normalize=((0.29,), (0.33,)),
    )
    model = convert_to_dual_bn(nn.Sequential(encoder, simclr_head(64)))
    augment = ContrastivePairAugment(14, strength=0.5)
    attack = PGDAttack(eps=0.1, step_size=0.1, steps=1)
    acl = ACLTrainer(model, mode="DS", attack=attack, augment=augment)
    adam = torch.optim.Adam(acl.parameters(), lr=3e-3)
    where = {"folder": folder, "evaluate": evaluate}
    history = fit(acl, images, epochs=9, batch_size=125, optimizer=adam, **where)
    return acl, history


undisturbed, whole = run()

# %%
# The second run is interrupted after its fifth epoch, before that epoch is saved. When it is started again, here even
# with other initial weights and another seed, it loads the weights, the optimizer and the state of all generators from
# the checkpoint, and continues.


def power_cut(epoch: int) -> dict[str, float]:
    if epoch == 5:
        raise SystemError("the power is gone")
    return {}


with TemporaryDirectory() as folder:
    try:
        run(folder, power_cut)
    except SystemError as error:
        print(error)
    saved = len(Path(folder, "metrics.csv").read_text().splitlines()) - 1
    print(f"{saved} epochs are on disk")
    resumed, history = run(folder, seed=1)

both = undisturbed.state_dict().values(), resumed.state_dict().values()
same = all(map(torch.equal, *both))
print("weights and statistics bit-identical:", same)

# %%
# The history of the resumed run includes the epochs before the interruption. The two curves coincide.

figure, ax = plt.subplots(layout="constrained")
epochs = [row["epoch"] for row in history]
losses = [row["loss"] for row in history]
undisturbed_losses = [row["loss"] for row in whole]
ax.plot(epochs, undisturbed_losses, color="#9fc3e6", linewidth=9, label="undisturbed")
ax.plot(epochs[:saved], losses[:saved], color=BLUE, marker="o", label="until the cut")
ax.plot(epochs[saved:], losses[saved:], color=RED, marker="s", label="resumed")
ax.axvline(saved + 0.5, color="black", linestyle=":")
ax.set(xticks=epochs, xlabel="epoch", ylabel="contrastive loss (nats)")
ax.legend(frameon=False)
ax.grid(alpha=0.3)
plt.show()
