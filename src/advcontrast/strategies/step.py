"""The views of a batch, attacks on them, and their embeddings."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from .. import distributed
from .._checks import check_callable, check_shape, check_tensor, complaint
from ..attacks import under_attack
from ..attacks.context import folded
from ..norm.branch import norms_on
from ..norm.dual_norm import dual_norms_in

if TYPE_CHECKING:
    from .learner import ContrastiveLearner


class Step:
    """Views, attacks and embeddings of one batch, for a strategy and its terms.

    Attributes:
        images: the images as floats in [0, 1], ``[N, C, H, W]``, before ``augment``; ``None`` if the learner was
            called with views.
        views: the views, each ``[N, C, H, W]``.
        targets: labels or pseudo-labels of the images, or ``None``.
        z: embeddings by the name of their part, stored by the strategy for its terms.
    """

    def __init__(
        self,
        learner: ContrastiveLearner,
        views: tuple[Tensor, ...],
        *,
        images: Tensor | None = None,
        targets: Tensor | None = None,
        source: dict[str, Any],
    ) -> None:
        self.views, self.images, self.targets = views, images, targets
        self.z: dict[str, tuple[Tensor, ...]] = {}
        self._learner, self._source = learner, source
        self._owner = type(learner).__name__

    def embed(self, branch: str | None, *x: Tensor, by: nn.Module | None = None) -> tuple[Tensor, ...]:
        """Embed batches in one forward pass, so that they share its batch statistics.

        Args:
            branch: branch of the dual norms; ignored by a network without dual norms.
            *x: images, each ``[N, C, H, W]``.
            by: the network, by default the learner's model.

        Returns:
            The embeddings of each batch, ``[N, D]``.

        Raises:
            TypeError: the network returns something other than a floating-point tensor.
            ValueError: its result is not ``[N, D]``.
        """
        model = self._learner.model if by is None else by
        with switched([model], branch):
            return self._rows(model, self._joined(x), [len(batch) for batch in x])

    def still(self, branch: str | None, *x: Tensor, by: nn.Module | None = None) -> tuple[Tensor, ...]:
        """Embed batches in eval mode without a gradient, as a fixed target; arguments are those of :meth:`embed`."""
        with under_attack(self._learner.model if by is None else by), torch.inference_mode(False), torch.no_grad():
            return self.embed(branch, *x, by=by)

    def perturb(
        self,
        objective: Callable[..., Tensor],
        branch: str | None,
        *x: Tensor,
        through: Callable[..., Iterable[Tensor]] | None = None,
        modules: Iterable[nn.Module] = (),
    ) -> tuple[Tensor, ...]:
        """Attack batches jointly.

        During the attack all networks and layers of the learner are in eval mode and on ``branch``, their parameters
        get no gradients, and their buffers do not change.

        Args:
            objective: a function of the embeddings of each batch to a scalar, or to a value for each row of the
                concatenated batches, that the attack maximises.
            branch: branch of the dual norms.
            *x: images, each ``[N, C, H, W]``.
            through: a function of the batches to the arguments of ``objective``, by default :meth:`embed`.
            modules: further modules that the objective uses and that are not parts of the learner.

        Returns:
            The perturbed batches.

        Raises:
            TypeError, ValueError: the attack returns something other than images of the same shape and dtype.
        """
        check_callable(self._owner, "objective", objective, remedy="Pass a function of the embeddings")
        both, sizes = self._joined(x), [len(batch) for batch in x]

        def value(images: Tensor) -> Tensor:
            if through is not None:
                return objective(*through(*torch.split(images, sizes)))
            return objective(*self._rows(self._learner.model, images, sizes))

        parts = [*self._learner.parts_under_attack(), *modules]
        with under_attack(*parts), switched(parts, branch), folded(value, *parts) as faster:
            perturbed = self._learner.attack(faster, both, **self._source)
        remedy = "Return images of the shape and dtype of x"
        check_tensor(self._owner, "the result of attack", perturbed, (both.dtype,), remedy=remedy)
        if (perturbed.shape, perturbed.device) != (both.shape, both.device):
            expected = f"attack to return shape {list(both.shape)} on {both.device}"
            got = f"{list(perturbed.shape)} on {perturbed.device}"
            raise ValueError(complaint(self._owner, expected, got, remedy))
        return torch.split(perturbed, sizes)

    def gather(self, *z: Tensor) -> tuple[Tensor, ...]:
        """Return the rows of all processes, ``[world_size * N, ...]``, with gradients; the same rows for one process.

        If each process computes its loss of all rows, the gradients that DDP averages equal those of one process with
        the whole batch.
        """
        for each in z:
            check_tensor(self._owner, "each of z", each, remedy="Pass embeddings")
            check_shape(self._owner, "each of z", each, "[N, ...]", each.dim() > 0, remedy="Pass a row for each image")
        return tuple(distributed.all_gather(each).flatten(0, 1) for each in z)

    def _joined(self, x: tuple[Tensor, ...]) -> Tensor:
        """Return batches as one, after a check that they fit together."""
        remedy = "Pass images, or embeddings"
        for each in x:
            check_tensor(self._owner, "each of x", each, remedy=remedy)
            shape = ", ".join(["N", *map(str, x[0].shape[1:])])
            fits = each.dim() > 0 and each.shape[1:] == x[0].shape[1:]
            check_shape(self._owner, "each of x", each, f"[{shape}]", fits, remedy=remedy)
        return torch.cat(x)

    def _rows(self, model: nn.Module, x: Tensor, sizes: list[int]) -> tuple[Tensor, ...]:
        z: Tensor = model(x)
        check_tensor(self._owner, "the result of model", z, remedy="Return the embeddings [N, D] only")
        fits, remedy = z.dim() == 2 and len(z) == len(x), "Flatten all but the first dimension"
        check_shape(self._owner, "the result of model", z, f"[{len(x)}, D]", fits, remedy=remedy)
        return torch.split(z, sizes)


@contextmanager
def switched(modules: Iterable[nn.Module], branch: str | None) -> Iterator[None]:
    """Switch the dual norms of modules to a branch; modules without dual norms are left alone."""
    norms = [norm for module in modules for norm in dual_norms_in(module)]
    with nullcontext() if branch is None or not norms else norms_on(norms, branch):
        yield
