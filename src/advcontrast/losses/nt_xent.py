"""The contrastive loss as a module, over one or several processes."""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .. import distributed
from .._checks import check_bool, complaint, readable
from ..functional.nt_xent import check_embeddings, check_settings, contrast, nt_xent, scaled_views

_UNUSABLE = "unusable embeddings"


class _Form(NamedTuple):
    """Form of the embeddings of one view."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device

    def __str__(self) -> str:
        return f"{list(self.shape)} {self.dtype}"


class NTXentLoss(nn.Module):
    """The NT-Xent loss of SimCLR and of ACL: :func:`advcontrast.functional.nt_xent` as a module.

    With ``gather=True`` the images of all processes are negatives. Each process computes the loss of its own anchors;
    the mean of these losses, and the gradients that DDP averages, equal those of one process with the whole batch.
    Every process must pass the same number of pairs. The processes compare shapes and dtypes at the first call, and
    when these change in all processes at once. Without a process group ``gather`` has no effect.

    Args:
        temperature: divisor of the similarities; ranges and errors of ``temperature`` and ``tile`` are as for the
            function.
        tile: number of anchors whose similarities are in memory at a time, ``None`` for all.
        gather: whether to take negatives from all processes.

    Example:
        >>> loss = NTXentLoss(temperature=0.5)
        >>> z = torch.ones(2, 8)
        >>> round(loss(z, z).item(), 4) == round(math.log(3), 4)
        True
    """

    def __init__(self, temperature: float = 0.5, *, tile: int | None = None, gather: bool = False) -> None:
        check_settings("NTXentLoss", temperature, tile)
        check_bool("NTXentLoss", "gather", gather, remedy="True takes negatives from all processes")
        super().__init__()
        self.temperature, self.tile, self.gather = temperature, tile, gather
        self._agreed: _Form | None = None  # the embeddings of the last call, equal in all processes

    def forward(self, z1: Tensor, z2: Tensor) -> Tensor:
        """Return the mean loss over the 2N anchors of this process.

        Arguments and errors are those of the function. With ``gather=True`` two pairs over all processes are enough.
        If one process raises, all do; if they pass different numbers of pairs, all raise a ``ValueError``. On an
        accelerator this holds for the first call only: later, where reading a value would stall each step, the process
        at fault raises, and the loss of the others is NaN.
        """
        if not self.gather or distributed.world_size() == 1:
            return nt_xent(z1, z2, self.temperature, tile=self.tile)
        form, problem = _form(z1, z2)
        if form is None or form != self._agreed:
            self._agree(form, problem)
        rows = scaled_views(z1, z2, self.temperature)
        gathered = distributed.all_gather(rows.view(2, len(z1), -1))
        if readable(gathered) and (others := _marked(gathered)):
            self._agreed = None
            raise _unequal(f"a change since the last call on rank {others[0]}")
        everyone = gathered.transpose(0, 1).flatten(0, 2)
        first = distributed.rank() * len(z1)
        return contrast(rows, everyone, first=first, temperature=self.temperature, tile=self.tile)

    def _agree(self, form: _Form | None, problem: Exception | None) -> None:
        """Compare the forms of all processes, and raise in all of them if the embeddings of one are unusable."""
        before, self._agreed = self._agreed, None
        if before is not None:
            # Processes without a change gather as before. Infinities, which unit rows never hold, report the change.
            dtype = torch.float64 if before.dtype == torch.float64 else torch.float32
            mark = torch.full((2, *before.shape), math.inf, dtype=dtype, device=before.device)
            if len(_marked(distributed.all_gather(mark))) < distributed.world_size():
                raise problem or _unequal(f"{form} on rank {distributed.rank()} after {before}")
        with torch.accelerator.device_index(None if form is None else form.device.index):  # for NCCL
            forms = distributed.all_gather_object(_UNUSABLE if form is None else str(form))
        if problem is not None:
            raise problem
        got = ", ".join(f"{each} on rank {rank}" for rank, each in enumerate(forms))
        if _UNUSABLE in forms:
            remedy = "See the error of the rank with unusable embeddings"
            raise ValueError(complaint("NTXentLoss", "usable embeddings on every rank", got, remedy))
        if len(set(forms)) > 1:
            raise _unequal(got)
        self._agreed = form

    def extra_repr(self) -> str:
        """Show the settings as they were passed."""
        return f"temperature={self.temperature}, tile={self.tile}, gather={self.gather}"


def _form(z1: Any, z2: Any) -> tuple[_Form | None, Exception | None]:
    """Return the form of the embeddings, or what makes them unusable."""
    try:
        check_embeddings("NTXentLoss", z1, z2, least=1)
    except (TypeError, ValueError) as error:
        return None, error
    return _Form(tuple(z1.shape), z1.dtype, z1.device), None


def _marked(gathered: Tensor) -> list[int]:
    """Return the ranks whose rows are infinite."""
    ranks: list[int] = gathered[:, 0, 0, 0].isinf().nonzero()[:, 0].tolist()
    return ranks


def _unequal(got: str) -> ValueError:
    remedy = "Use a sampler that gives every process equally many images, and drop_last=True"
    return ValueError(complaint("NTXentLoss", "the same number of pairs on every rank", got, remedy))
