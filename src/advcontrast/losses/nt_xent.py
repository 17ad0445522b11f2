"""The contrastive loss as a module, over one or several processes."""

from torch import Tensor, nn

from .. import distributed
from .._checks import check_bool, complaint
from ..functional.nt_xent import check_embeddings, check_settings, contrast, nt_xent, unit_views

_UNUSABLE = "unusable embeddings"


class NTXentLoss(nn.Module):
    """The NT-Xent loss of SimCLR and of ACL: :func:`advcontrast.functional.nt_xent` as a module.

    With ``gather=True`` the images of all processes are negatives. Each process computes the loss of its own anchors;
    the mean of these losses, and the gradients that DDP averages, equal those of one process with the whole batch.
    Every process must pass the same number of pairs, which all processes check on each call, waiting for the slowest.
    Without a process group it has no effect.

    Args:
        temperature: divisor of the similarities; it and ``tile`` have the range and errors of the function.
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

    def forward(self, z1: Tensor, z2: Tensor) -> Tensor:
        """Return the mean loss over the 2N anchors of this process.

        Arguments and errors are those of the function. With ``gather=True`` two pairs over all processes are enough;
        every process raises if one does, and a ``ValueError`` if they pass different numbers of pairs.
        """
        if not self.gather or distributed.world_size() == 1:
            return nt_xent(z1, z2, self.temperature, tile=self.tile)
        _check_everywhere(z1, z2)
        rows = unit_views(z1, z2)
        everyone = distributed.all_gather(rows.view(2, len(z1), -1)).transpose(0, 1).flatten(0, 2)
        first = distributed.rank() * len(z1)
        return contrast(rows, everyone, first=first, temperature=self.temperature, tile=self.tile)

    def extra_repr(self) -> str:
        """Show the settings as they were passed."""
        return f"temperature={self.temperature}, tile={self.tile}, gather={self.gather}"


def _check_everywhere(z1: Tensor, z2: Tensor) -> None:
    """Raise on every process if the embeddings of one are unusable, or if their shapes or dtypes differ."""
    problem: Exception | None = None
    try:
        check_embeddings("NTXentLoss", z1, z2, least=1)
        mine = f"{list(z1.shape)} {z1.dtype}"
    except (TypeError, ValueError) as error:
        problem, mine = error, _UNUSABLE
    shapes = distributed.all_gather_object(mine)
    if problem is not None:
        raise problem
    if len(set(shapes)) > 1:
        got = ", ".join(f"{shape} on rank {rank}" for rank, shape in enumerate(shapes))
        expected = "the same number of pairs on every rank"
        remedy = "Use a sampler that gives every process as many images, and drop_last=True"
        if _UNUSABLE in shapes:
            expected = "usable embeddings on every rank"
            remedy = "See the error of the rank without them"
        raise ValueError(complaint("NTXentLoss", expected, got, remedy))
