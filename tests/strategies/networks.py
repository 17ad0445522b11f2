"""Small networks to train, and what a strategy must leave as it was."""

import torch
from torch import nn

from advcontrast import convert_to_dual_bn


def network(norm="dual", *, dtype=torch.float32, seed=0, branches=("clean", "adv")):
    """Return a network for images ``[N, 3, 6, 6]`` whose batch norms are ``"dual"``, ``"single"`` or absent (``None``).

    All norms start from the same random scales and statistics, so that a mistaken branch shows once they have moved.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = nn.Sequential(
            nn.Conv2d(3, 4, 3, stride=2, dtype=dtype),
            nn.BatchNorm2d(4, dtype=dtype) if norm else nn.Identity(),
            nn.Tanh(),
            nn.Flatten(),
            nn.Linear(16, 5, dtype=dtype),
            nn.BatchNorm1d(5, dtype=dtype) if norm else nn.Identity(),
        )
        if norm == "dual":
            convert_to_dual_bn(model, branches=branches)
        return model


def unlike_branches(model):
    """Give the branches of the dual norms in ``model`` different scales and statistics."""
    with torch.no_grad():
        for name, tensor in model.state_dict(keep_vars=True).items():
            if ".adv." in name and tensor.is_floating_point():
                tensor.mul_(1.3).add_(0.1)
    return model


def views(n=4, *, dtype=torch.float32, seed=0):
    """Return two batches of random views."""
    return torch.rand(2, n, 3, 6, 6, generator=torch.Generator().manual_seed(seed), dtype=dtype).unbind()


def flags(model):
    """Return the flags of ``model`` that a forward pass must not change."""
    training = {name: module.training for name, module in model.named_modules()}
    branches = {name: module.branch for name, module in model.named_modules() if hasattr(module, "branch")}
    frozen = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    return training, branches, frozen


def batches_seen(model):
    """Return how many batches each batch norm has counted."""
    return {name: int(count) for name, count in model.state_dict().items() if name.endswith("num_batches_tracked")}


def gradients(model):
    """Return the gradients of ``model`` by name."""
    return {name: parameter.grad for name, parameter in model.named_parameters()}
