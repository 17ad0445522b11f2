"""The coding rate of embeddings."""

import torch
from torch import Tensor

from .._checks import check_real, check_tensor, complaint
from .nt_xent import unit_rows


def coding_rate(z: Tensor, eps: float = 0.2) -> Tensor:
    r"""Return the coding rate of embeddings, which is large if they spread over many directions.

    With the N rows of ``z`` scaled to length one,

    .. math:: R = \frac12 \log \det \Big( I + \frac{D}{N \epsilon} \hat z^\top \hat z \Big)

    a scalar in nats. If all rows are parallel, as for a collapsed encoder, it is
    :math:`\frac12 \log (1 + D / \epsilon)`. The computation is in float64 for float64 input and in float32 otherwise.
    References: Yu et al., NeurIPS 2020; Tong et al., 2023, whose :math:`\epsilon` is the square of a distortion.

    Args:
        z: embeddings ``[N, D]``, floating point, N and D at least 1.
        eps: the constant :math:`\epsilon`, positive.

    Raises:
        ValueError: ``z`` is not ``[N, D]`` with N and D at least 1, or eps <= 0.
        TypeError: an argument has the wrong type.

    Example:
        >>> from advcontrast.functional import coding_rate
        >>> rate = coding_rate(torch.eye(4), eps=1.0)  # log det of 2 I
        >>> round(rate.item(), 4) == round(2 * math.log(2), 4)
        True
    """
    check_tensor("coding_rate", "z", z, remedy="Pass what the projection head returns")
    check_real("coding_rate", "eps", eps, low=0, above=True, remedy="0.2 is usual")
    if z.dim() != 2 or 0 in z.shape:
        expected, remedy = "z of shape [N, D] with N and D >= 1", "Flatten each embedding to one dimension"
        raise ValueError(complaint("coding_rate", expected, f"{list(z.shape)}", remedy))
    n, dim = z.shape
    with torch.autocast(z.device.type, enabled=False):
        unit = unit_rows(z)
        products = unit @ unit.T if n < dim else unit.T @ unit  # both have the same positive eigenvalues
        identity = torch.eye(len(products), dtype=products.dtype, device=products.device)
        rate: Tensor = torch.linalg.slogdet(identity + dim / (n * eps) * products)[1] / 2
        return rate
