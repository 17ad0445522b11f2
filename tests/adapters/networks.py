"""A network with dual norms, images, and what a call may not change."""

import random

import numpy as np
import torch
from torch import nn

from advcontrast import convert_to_dual_bn


def classifier(seed=0):
    """Return a small network with dual batch norms, in train mode but for a norm that stays frozen."""
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Dropout(0.5), nn.Flatten(), nn.Linear(6 * 36, 5)
    )
    convert_to_dual_bn(model)
    for _ in range(3):
        model(torch.rand(16, 3, 8, 8))
    model[1].adv.running_mean.add_(0.3)
    model[1].clean.eval()
    model[0].bias.requires_grad_(False)
    model[5].weight.grad = torch.ones_like(model[5].weight)
    return model


def images(n=12, seed=1):
    return torch.rand(n, 3, 8, 8, generator=torch.Generator().manual_seed(seed))


def everything(model):
    """Return what an attack must leave alone, in a form that can be compared."""
    grads = [None if p.grad is None else p.grad.tolist() for p in model.parameters()]
    state = {name: value.tolist() for name, value in model.state_dict().items()}
    modes = [(m.training, getattr(m, "branch", None)) for m in model.modules()]
    flags = [p.requires_grad for p in model.parameters()]
    return grads, state, modes, flags


def random_states():
    return torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist()
