"""Adapters for losses of lightly, pytorch-metric-learning and others in ``ACLTrainer(loss=...)``; most need none.

A loss that takes the embeddings of two views and returns a scalar needs none: ``loss=lightly.loss.VICRegLoss()``. None
of these libraries is imported.
"""

from collections.abc import Callable
from copy import deepcopy

import torch
from torch import Tensor, nn

from .. import _deprecated
from .._checks import check_callable, check_copyable, check_module, check_type, complaint
from ..functional.nt_xent import check_embeddings
from ..norm import DualNorm


class PairsAsLabels(nn.Module):
    """Adapter for a loss of embeddings and labels: the two views of each image form a class of their own.

    Works for the losses of pytorch-metric-learning that need no proxies of classes. That library's own
    ``SelfSupervisedLoss`` does the same for some of them.
    """

    def __init__(self, loss: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        check_callable("PairsAsLabels", "loss", loss, remedy="Pass a loss of embeddings and labels")
        self.loss = loss

    def forward(self, z1: Tensor, z2: Tensor) -> Tensor:
        """Return the loss of two views, ``[N, D]`` each."""
        check_embeddings("PairsAsLabels", z1, z2, least=1)
        return self.loss(torch.cat([z1, z2]), torch.arange(len(z1), device=z1.device).repeat(2))


class TrainOnlyMemoryBank(nn.Module):
    """Adapter for a loss that stores batches, for example in a memory bank: each branch has its own memory.

    With a common memory, the clean stream of DS would take images of the adversarial stream as negatives.
    ``ACLTrainer`` switches the branches, which have their own buffers and share the parameters. In eval mode, as under
    attack, a copy of the loss is called, so that nothing is stored, not even in plain attributes. ``model`` is unused.
    """

    def __init__(self, loss: nn.Module, model: nn.Module | None = None) -> None:
        super().__init__()
        if model is not None:
            check_module("TrainOnlyMemoryBank", model)
        remedy = "Pass the module that holds the memory, not a function around it"
        check_type("TrainOnlyMemoryBank", "loss", loss, nn.Module, remedy=remedy)
        if any("forward" in vars(part) for part in loss.modules()):
            rule, got = "loss with the forward method of its class", "one set on the instance, which a copy would share"
            raise ValueError(complaint("TrainOnlyMemoryBank", rule, got, "Define it in a subclass"))
        check_copyable("TrainOnlyMemoryBank", loss)
        self.loss = DualNorm(loss, split="stats")

    def forward(self, z1: Tensor, z2: Tensor) -> Tensor:
        """Return the loss of two views, ``[N, D]`` each."""
        loss = self.loss if self.training else deepcopy(self.loss.active)
        value: Tensor = loss(z1, z2)
        return value


_deprecated.serve_old_names(__name__)
