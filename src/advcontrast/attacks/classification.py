"""The objective of attacks on classifiers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .. import _deprecated
from .._checks import check_callable, check_shape, check_tensor, check_within, complaint

_OWNER = "ClassificationObjective"


@dataclass(frozen=True, eq=False)
class ClassificationObjective:
    """The cross-entropy of each of a batch of labelled images, as an objective for attacks.

    Any attack can maximise it like a function. An attack on accuracy can also use the logits, choose another loss, and
    skip images that are already misclassified.

    Args:
        model: maps images ``[N, ...]``, independently of each other, to logits ``[N, C]``. A module must be in eval
            mode when the objective is called, since batch statistics and dropout change what is maximised.
        y: classes of the images, int64 ``[N]`` in [0, C).

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: ``y`` is not one-dimensional.

    Example:
        >>> from advcontrast.attacks import ClassificationObjective, under_attack
        >>> objective = ClassificationObjective(torch.nn.Identity(), torch.tensor([0, 1]))
        >>> with under_attack(objective.model):
        ...     print(objective(torch.zeros(2, 4)).exp().tolist())
        [4.0, 4.0]
    """

    model: Callable[[Tensor], Tensor]
    y: Tensor

    def __post_init__(self) -> None:
        check_callable(_OWNER, "model", self.model, remedy="Pass the network itself")
        remedy = "Pass one class index per image"
        check_tensor(_OWNER, "y", self.y, (torch.int64,), remedy=remedy)
        check_shape(_OWNER, "y", self.y, "[N]", self.y.dim() == 1, remedy=remedy)

    def logits(self, x: Tensor) -> Tensor:
        """Return the logits ``[N, C]`` of images ``[N, ...]``, as many as labels.

        Raises:
            RuntimeError: a module of the model is in train mode.
            ValueError: the output has another shape or, on the CPU, a label is out of range.
            TypeError: ``x`` is not a floating point tensor.
        """
        if isinstance(self.model, nn.Module) and (training := sum(part.training for part in self.model.modules())):
            got = f"{training} of its modules in train mode"
            remedy = "Attack it inside under_attack(model), or call model.eval() before"
            raise RuntimeError(complaint(_OWNER, "a model in eval mode", got, remedy))
        check_tensor(_OWNER, "x", x, remedy="Pass the images as one tensor")
        logits = self.model(x.clone())  # a model may change its input in place
        remedy = "Pass a classifier whose output is its logits, and one label per image"
        check_tensor(_OWNER, "the output of the model", logits, remedy=remedy)
        fits = logits.dim() == 2 and len(logits) == len(self.y)
        check_shape(_OWNER, "the output of the model", logits, f"[{len(self.y)}, C]", fits, remedy=remedy)
        remedy = f"The model has {logits.shape[1]} classes"
        check_within(_OWNER, "labels", self.y, (0, logits.shape[1] - 1), remedy=remedy)
        return logits

    def __call__(self, x: Tensor) -> Tensor:
        """Return the cross-entropy of each image, ``[N]``."""
        return F.cross_entropy(self.logits(x), self.y, reduction="none")

    def __getitem__(self, which: Tensor) -> ClassificationObjective:
        """Return the objective of some of the images, given by a mask or by indices."""
        return ClassificationObjective(self.model, self.y[which])


_deprecated.serve_old_names(__name__)
