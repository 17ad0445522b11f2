"""Cosine similarity of pairs of embeddings."""

from torch import Tensor

from .nt_xent import check_embeddings, unit_rows


def cosine(z1: Tensor, z2: Tensor) -> Tensor:
    r"""Return the mean cosine similarity of N pairs of embeddings.

    .. math:: \frac{1}{N} \sum_i \frac{z_{1i} \cdot z_{2i}}{\lVert z_{1i} \rVert \lVert z_{2i} \rVert}

    A row of zeros has similarity zero to all others and gradient zero. The computation is in float64 for float64 input
    and in float32 otherwise.

    Args:
        z1: embeddings ``[N, D]``, floating point, N at least 1.
        z2: embeddings ``[N, D]``, row i the partner of row i of ``z1``.

    Returns:
        A scalar in [-1, 1].

    Raises:
        ValueError: shapes differ, are not ``[N, D]``, or N < 1; on the CPU also non-finite values.
        TypeError: an argument of the wrong kind, or ``z1`` and ``z2`` of different dtypes.

    Example:
        >>> from advcontrast.functional import cosine
        >>> cosine(torch.eye(4), 3 * torch.eye(4)).item()
        1.0
    """
    check_embeddings("cosine", z1, z2, least=1)
    return (unit_rows(z1) * unit_rows(z2)).sum(1).mean()
