"""A quick look at what an encoder has learnt: a linear classifier on its features."""

from __future__ import annotations

import torch
from experiment import EVALUATION_BATCH
from images import Images
from networks import zero_classifier
from torch import nn
from torch.nn import functional as F

DECAY = 1e-4


def linear_probe(encoder: nn.Module, features: int, images: Images) -> nn.Sequential:
    """Return the encoder, as it is, with a linear classifier trained on the features of the clean training images.

    The features are computed once, in eval mode and without augmentation; the classifier is the minimum of the
    cross-entropy plus a little weight decay. linear.py is the paper's way to do this, and takes longer.
    """
    model = zero_classifier(encoder, features, images.classes).to(images.train.x.device).eval()
    with torch.no_grad():
        x = torch.cat([model.encoder(batch) for batch, _ in images.train.batches(EVALUATION_BATCH)])
    optimizer = torch.optim.LBFGS(model.head.parameters(), max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        value = F.cross_entropy(model.head(x), images.train.y) + DECAY * model.head.weight.square().sum()
        value.backward()
        return value

    optimizer.step(loss)
    return model
