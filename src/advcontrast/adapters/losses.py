"""Losses of lightly, pytorch-metric-learning and others as ``ACLTrainer(loss=...)``; most of them fit as they are.

What takes the embeddings of two views and returns a scalar needs nothing: ``loss=lightly.loss.VICRegLoss()``. Here is
what the others need. Nothing of these libraries is imported.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy

import torch
from torch import Tensor, nn

from .._checks import check_module, complaint, type_name
from ..functional.nt_xent import check_embeddings


class NumberedPairs(nn.Module):
    """A loss of embeddings and labels, told that the two views of an image are a class of their own.

    Works for the losses of pytorch-metric-learning that need no proxies of classes; their own ``SelfSupervisedLoss``
    does the same for some of them.
    """

    def __init__(self, loss: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.loss = _callable("NumberedPairs", loss)

    def forward(self, z1: Tensor, z2: Tensor) -> Tensor:
        """Return the loss of two views, ``[N, D]`` each."""
        check_embeddings("NumberedPairs", z1, z2, least=1)
        return self.loss(torch.cat([z1, z2]), torch.arange(len(z1), device=z1.device).repeat(2))


class Remembering(nn.Module):
    """A loss that remembers batches, as a memory bank does, but only those on which ``model`` is trained.

    Without it every step of the attack would be remembered too. Outside train mode, in which the attack never is, a
    copy of the loss is asked.
    """

    def __init__(self, loss: nn.Module, model: nn.Module) -> None:
        super().__init__()
        check_module("Remembering", model)
        self.loss = _callable("Remembering", loss)
        self._model = (model,)  # in a tuple: its parameters are not those of the loss

    def forward(self, z1: Tensor, z2: Tensor) -> Tensor:
        """Return the loss of two views, ``[N, D]`` each."""
        loss = self.loss if self._model[0].training else deepcopy(self.loss)
        return loss(z1, z2)


def _callable(owner: str, loss: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
    if not callable(loss):
        raise TypeError(complaint(owner, "loss to be callable", type_name(loss), "Pass a loss such as NTXentLoss()"))
    return loss
