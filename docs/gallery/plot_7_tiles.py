"""
The contrastive loss in tiles
=============================

NT-Xent compares every view of a batch with every other one, which gives a matrix of (2N)² numbers. For thousands of
pairs this matrix takes more memory than the weights of a ResNet-18. ``tile=`` computes the same loss from a given
number of its rows at a time.
"""

import matplotlib.pyplot as plt
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from advcontrast import NTXentLoss

torch.manual_seed(0)
plt.rc("figure", figsize=(5.6, 3.4))
plt.rc("font", size=11)

# %%
# Same loss, same gradient, up to the rounding of sums in another order:

z1, z2 = torch.randn(2, 512, 128, requires_grad=True)
dense, tiled = NTXentLoss()(z1, z2), NTXentLoss(tile=128)(z1, z2)
(slope,), (tiled_slope,) = (
    torch.autograd.grad(dense, z1),
    torch.autograd.grad(tiled, z1),
)
difference = (slope - tiled_slope).abs().max() / slope.abs().max()
print(f"losses {dense:.6f} and {tiled:.6f}, gradients differ by {difference:.0e}")

# %%
# The memory can be measured without a profiler: a dispatch mode of PyTorch records the largest tensor that is made.


class Largest(TorchDispatchMode):
    size = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor):
            self.size = max(self.size, result.numel() * result.element_size())
        return result


def largest_tensor(loss: NTXentLoss, pairs: int) -> float:
    z1, z2 = (torch.randn(pairs, 128, requires_grad=True) for _ in range(2))
    with Largest() as largest:
        loss(z1, z2).backward()
    return largest.size / 2**20


pairs = [64, 128, 256, 512, 1024, 2048]
losses = {
    "all at once": NTXentLoss(),
    "tile=256": NTXentLoss(tile=256),
    "tile=64": NTXentLoss(tile=64),
}
sizes = {}
for name, loss in losses.items():
    sizes[name] = [largest_tensor(loss, count) for count in pairs]

# %%
# Twice the batch is four times the matrix, but only twice a tile. On a CPU tiles are also faster from some hundred
# pairs on; :func:`~advcontrast.functional.nt_xent` has recommendations.

figure, ax = plt.subplots(layout="constrained")
styles = ("#c2331c", "o"), ("#1a66b0", "s"), ("#747c86", "^")
for (name, megabytes), (colour, marker) in zip(sizes.items(), styles, strict=True):
    ax.plot(pairs, megabytes, color=colour, marker=marker, label=name)
ax.set(xlabel="pairs in a batch", ylabel="largest tensor (MiB)")
ax.set_xscale("log", base=2)
ax.set_yscale("log", base=2)
ax.set_xticks(pairs, pairs)
ax.set_yticks([1 / 16, 1 / 4, 1, 4, 16, 64], ["1/16", "1/4", "1", "4", "16", "64"])
ax.legend(frameon=False)
ax.grid(alpha=0.3)
plt.show()
