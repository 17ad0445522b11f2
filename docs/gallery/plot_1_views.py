"""
Two views of an image
=====================

Contrastive learning depends on its views: if they are too similar, nothing is learned from bringing them together; if
they are too different, they have nothing in common. :class:`~advcontrast.ContrastivePairAugment` makes both views of a
whole batch at once. :class:`~advcontrast.augment.SimCLRAugment` makes each of them; it draws parameters and applies
them separately, so that a view can be inspected and reproduced.
"""

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.patches import Rectangle

from advcontrast.augment import SimCLRAugment

plt.rc("figure", figsize=(5.6, 3.4))
plt.rc("font", size=11)
BLUE, RED = "#1a66b0", "#c2331c"

# %%
# Fashion-MNIST is grey. Six images get a colour, so that the changes of colour are visible.

DATA = Path("examples/data/fashion-mini.npz")  # in a clone of the repository
path = next((p / DATA for p in DATA.absolute().parents if (p / DATA).exists()), DATA)
with np.load(path) as file:
    gray = torch.from_numpy(file["test_images"])
    labels = torch.from_numpy(file["test_labels"])

kinds = 0, 2, 3, 7, 8, 9
chosen = torch.stack([(labels == kind).nonzero()[0, 0] for kind in kinds])
dyes = torch.tensor(
    [
        [90, 160, 220],
        [230, 120, 70],
        [110, 190, 120],
        [220, 200, 90],
        [190, 110, 180],
        [200, 160, 130],
    ]
)
images = (gray[chosen, None].float() * dyes[:, :, None, None] / 255).to(torch.uint8)

# %%
# :meth:`~advcontrast.augment.SimCLRAugment.draw` draws, for each image, a crop, a horizontal flip, colour operations
# in random order, and a conversion to grey. With a generator the draw is reproducible.
# :meth:`~advcontrast.augment.SimCLRAugment.apply` is deterministic.

augment = SimCLRAugment(28)
generator = torch.Generator().manual_seed(4)
first, second = (augment.draw(len(images), 28, 28, generator) for _ in range(2))
views = [augment.apply(images, drawn) for drawn in (first, second)]
assert torch.equal(views[0], augment.apply(images, first))  # replayed

# %%
# The parameters are a named tuple, so they can be changed before they are applied. Without jitter and grey, only the
# crop and the flip of the second view remain.

never = torch.zeros(6, dtype=torch.bool)
uncoloured = second._replace(jitter=never, gray=never)
crops = augment.apply(images, uncoloured)

# %%
# The frames in the first row are the two crops.

rows = {
    "image": images / 255,
    "view 1": views[0],
    "view 2": views[1],
    "view 2,\ncrop only": crops,
}
figure, axes = plt.subplots(4, 6, figsize=(5.6, 3.8), layout="constrained")
for row, (name, pictures) in zip(axes, rows.items(), strict=True):
    for ax, picture in zip(row, pictures, strict=True):
        ax.imshow(picture.permute(1, 2, 0).numpy())
        ax.set(xticks=[], yticks=[])
    row[0].set_ylabel(name, rotation=0, ha="right", va="center")
for drawn, row, colour in ((first, axes[1], BLUE), (second, axes[2], RED)):
    for index, ax in enumerate(row):
        ax.spines[:].set(color=colour, linewidth=2)
        corner = drawn.left[index] - 0.5, drawn.top[index] - 0.5
        size = drawn.width[index], drawn.height[index]
        frame = Rectangle(corner, *size, fill=False, edgecolor=colour, linewidth=2)
        axes[0, index].add_patch(frame)
plt.show()

# %%
# The best strength depends on the training. ``strength=0.5`` halves all changes, which suits adversarial training,
# since the attack also changes the views. Transforms of kornia and torchvision can replace this augmentation; see
# :class:`~advcontrast.ContrastivePairAugment`.
