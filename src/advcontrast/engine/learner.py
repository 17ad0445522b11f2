"""Protocol of the modules that the training loop trains."""

from collections.abc import Mapping
from typing import Protocol

from torch import Tensor, nn


class Learner(Protocol):
    """Protocol of a learner: an ``nn.Module`` whose forward pass is a training step.

    :func:`fit` needs no base class. It calls ``learner(*batch)`` with a batch of each tensor of its data, in train
    mode, differentiates the loss, and logs the terms. A learner holds as modules, buffers or extra state
    (``get_extra_state`` and ``set_extra_state`` of ``nn.Module``, plain data) whatever changes from step to step, such
    as a momentum network, a queue or a counter: these are saved, so that a resumed run ends with bit-identical weights.
    A ``torch.Generator`` that is an attribute is saved too. Settings belong in ``extra_repr``: a resumed run compares
    them.

    :class:`advcontrast.strategies.ContrastiveLearner` is a base for learners that attack their images.
    """

    #: The network: ``ema=``, ``compile=`` and :func:`forward_equivalents` need it.
    model: nn.Module

    #: Whether the loss compares the images of a batch with each other; ``fit`` then rejects ``accumulate``.
    couples_samples: bool

    def forward(self, *batch: Tensor) -> tuple[Tensor, Mapping[str, Tensor]]:
        """Return the loss, a scalar to differentiate, and detached scalars to log by name."""
        ...
