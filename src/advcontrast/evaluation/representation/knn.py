"""Accuracy of the nearest neighbours in the space of an encoder, clean and attacked, without training a head."""

from collections.abc import Callable, Iterable
from contextlib import nullcontext

import torch
from torch import Tensor, nn

from ..._checks import check_int, check_temperature, complaint
from ...functional.nt_xent import unit_rows
from ...norm import bn_branch
from ..accuracy import accuracy, robust_accuracy
from ..inputs import checked_batches, prepared_for_evaluation
from .label_free import checked_features

_OWNER = "KNNClassifier"
_FLOOR = 1e-6  # probability of a class without neighbours, whose logit is finite then


class KNNClassifier(nn.Module):
    r"""Weighted k-nearest-neighbour classifier on the features of an encoder.

    With the cosine similarities :math:`s_j` of an image to its k nearest neighbours and their labels :math:`y_j`, the
    logit of class c is the logarithm of its share of the votes,

    .. math:: \log \frac{\sum_{j: y_j = c} e^{s_j / t}}{\sum_j e^{s_j / t}}

    :func:`~advcontrast.evaluation.accuracy` and :func:`~advcontrast.evaluation.robust_accuracy` evaluate it like any
    classifier; attacks differentiate it through the encoder. Reference: Wu et al., CVPR 2018.

    Args:
        encoder: network from images ``[N, ...]`` to features ``[N, D]``, normally without projection head. It is used
            in eval mode and not changed; features of a dual network are those of the branch that is active.
        batches: training images ``[N, ...]`` in [0, 1] with labels ``[N]`` int64, from which neighbours are chosen.
        k: number of neighbours that vote, at most the number of images; 200 is usual for whole data sets.
        temperature: the temperature t; 0.1 is usual.

    Raises:
        ValueError: a number is out of range, or features that are not finite or not ``[N, D]``.
        TypeError: an argument has the wrong type.

    Example:
        The image is at 45 degrees from the only neighbour of each class.

        >>> from advcontrast.evaluation.representation import KNNClassifier
        >>> bank = [(torch.eye(2), torch.tensor([0, 1]))]
        >>> knn = KNNClassifier(torch.nn.Flatten(), bank, k=2)
        >>> knn(torch.tensor([[0.5, 0.5]])).exp().tolist()
        [[0.5, 0.5]]
    """

    features: Tensor
    labels: Tensor

    def __init__(
        self, encoder: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], *, k: int = 200, temperature: float = 0.1
    ) -> None:
        check_int(_OWNER, "k", k, low=1, remedy="200 is usual for whole data sets")
        check_temperature(_OWNER, temperature, remedy="0.1 is usual")
        with prepared_for_evaluation(_OWNER, encoder) as device:
            given = checked_batches(_OWNER, batches, device)
            rows = [(unit_rows(checked_features(_OWNER, encoder, x)), y) for x, y, _ in given]
        features, labels = (torch.cat(parts) for parts in zip(*rows, strict=True))
        if k > len(features):
            expected = f"k of at most the {len(features)} images"
            raise ValueError(complaint(_OWNER, expected, repr(k), "Pass more images, or a smaller k"))
        super().__init__()
        self.encoder, self.k, self.temperature = encoder, k, temperature
        self.classes = int(labels.max()) + 1
        self.register_buffer("features", features)
        self.register_buffer("labels", labels)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits ``[N, C]`` of images ``[N, ...]`` for the C classes of the neighbours."""
        similarity = unit_rows(self.encoder(x)).to(self.features.dtype) @ self.features.T
        nearest, index = similarity.topk(self.k, dim=1)
        votes = (nearest / self.temperature).softmax(1)
        shares = votes.new_zeros(len(x), max(self.classes, 2)).scatter_add(1, self.labels[index], votes)
        return shares.clamp_min(_FLOOR).log()

    def extra_repr(self) -> str:
        """Show the settings."""
        return f"{len(self.features)} images of {self.classes} classes, k={self.k}, temperature={self.temperature}"


def knn_monitor(
    encoder: nn.Module,
    neighbours: Iterable[tuple[Tensor, Tensor]],
    batches: Iterable[tuple[Tensor, Tensor]],
    *,
    attack: Callable[..., Tensor] | None = None,
    branch: str | None = None,
    k: int = 200,
    temperature: float = 0.1,
    every: int = 1,
) -> Callable[[int], dict[str, float]]:
    """Return a function for ``fit(evaluate=)`` that measures the accuracy of nearest neighbours during training.

    It takes the epoch, from 1, and returns ``{"knn_ta": ..., "knn_ra": ...}`` in [0, 1], ``{}`` between evaluations.

    Args:
        encoder: as for :class:`KNNClassifier`, a part of the learner that is trained, such as ``acl.model.encoder``.
        neighbours: as ``batches`` of :class:`KNNClassifier`; read again at each evaluation.
        batches: images with labels to classify, such as a ``DataLoader`` of validation images.
        attack: for ``"knn_ra"``, as for :func:`~advcontrast.evaluation.robust_accuracy`; ``None`` leaves it out.
        branch: of the dual norms of the encoder, for example ``"adv"``; ``None`` keeps the active one.
        k: as for :class:`KNNClassifier`.
        temperature: as for :class:`KNNClassifier`.
        every: epochs between two evaluations, at least 1; the first epoch is evaluated.

    Raises:
        ValueError: every < 1; when called, as for :class:`KNNClassifier`.
        TypeError: an argument has the wrong type.

    Example:
        >>> from advcontrast.evaluation.representation import knn_monitor
        >>> bank = [(torch.eye(2), torch.tensor([0, 1]))]
        >>> knn_monitor(torch.nn.Flatten(), bank, bank, k=1)(1)
        {'knn_ta': 1.0}
    """
    check_int("knn_monitor", "every", every, low=1, remedy="1 evaluates each epoch")

    def evaluate(epoch: int) -> dict[str, float]:
        if (epoch - 1) % every:
            return {}
        with nullcontext() if branch is None else bn_branch(encoder, branch):
            classifier = KNNClassifier(encoder, neighbours, k=k, temperature=temperature)
            found = {"knn_ta": accuracy(classifier, batches).accuracy}
            if attack is not None:
                found["knn_ra"] = robust_accuracy(classifier, batches, attack).accuracy
        return found

    return evaluate
