"""Moving the pixels of images along a flow field."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from ..._checks import check_tensor, complaint
from ...functional.devices import check_one_device

_DTYPES = (torch.float32, torch.float64)


def warp(x: Tensor, flow: Tensor) -> Tensor:
    r"""Return images whose pixels are taken from places that a flow field points to.

    .. math:: x'_{i, j} = x\big(i + \mathrm{flow}_{1, i, j},\; j + \mathrm{flow}_{0, i, j}\big)

    interpolated linearly between the four pixels around; outside the image everything is zero. Places are kept as whole
    and fraction of a pixel, so a flow of whole pixels copies pixels exactly, and a flow of zero changes nothing. The
    gradient with respect to the flow is deterministic on every device.

    Args:
        x: images ``[N, C, H, W]``, float32 or float64.
        flow: displacements ``[N, 2, H, W]`` in pixels, to the right and downwards, of the same dtype.

    Returns:
        Images like ``x``.

    Raises:
        ValueError: shapes that do not fit, or devices that differ.
        TypeError: an argument of the wrong kind.

    Example:
        A flow of half a pixel to the right takes means of neighbours; the last pixel has black beside it.

        >>> flow = torch.tensor([0.5, 0.0]).view(1, 2, 1, 1).expand(1, 2, 1, 4)
        >>> warp(torch.tensor([[[[0.0, 0.5, 1.0, 1.0]]]]), flow).tolist()
        [[[[0.25, 0.75, 1.0, 0.5]]]]
    """
    check_tensor("warp", "x", x, _DTYPES, remedy="Pass float images")
    check_tensor("warp", "flow", flow, _DTYPES, remedy="Pass displacements in pixels")
    if x.dim() != 4 or flow.shape != (len(x), 2, *x.shape[2:]):
        got = f"{list(x.shape)} and {list(flow.shape)}"
        remedy = "Pass two displacements a pixel"
        raise ValueError(complaint("warp", "x of shape [N, C, H, W] and flow of shape [N, 2, H, W]", got, remedy))
    if x.dtype != flow.dtype:
        raise TypeError(
            complaint("warp", "x and flow of one dtype", f"{x.dtype} and {flow.dtype}", "Convert one of them")
        )
    check_one_device("warp", x=x, flow=flow)
    height, width = x.shape[2:]
    right, down = flow[:, :1], flow[:, 1:]
    column = torch.arange(width, device=x.device) + right.detach().floor()
    row = torch.arange(height, device=x.device)[:, None] + down.detach().floor()
    right, down = right - right.detach().floor(), down - down.detach().floor()
    above = torch.lerp(_pixels(x, row, column), _pixels(x, row, column + 1), right)
    below = torch.lerp(_pixels(x, row + 1, column), _pixels(x, row + 1, column + 1), right)
    return torch.lerp(above, below, down)


def smooth(flow: Tensor, *, kernel_size: int, std: float) -> Tensor:
    r"""Return a flow field smoothed by a Gaussian kernel, reflected at its edges.

    Computed in the dtype of ``flow``, also under autocast. No value grows beyond the largest of its neighbours.

    Args:
        flow: any field ``[N, C, H, W]``, H and W larger than half the kernel.
        kernel_size: side of the kernel in pixels, odd.
        std: standard deviation of the Gaussian in pixels, positive.

    Returns:
        A field like ``flow``.

    Example:
        With a standard deviation of :math:`1/\sqrt{2 \ln 2}` the neighbours weigh half as much as the centre.

        >>> line = torch.tensor([0.0, 0.0, 4.0, 0.0, 0.0]).expand(1, 1, 5, 5)
        >>> smooth(line, kernel_size=3, std=0.8493218).round(decimals=3)[0, 0, 0].tolist()
        [0.0, 1.0, 2.0, 1.0, 0.0]
    """
    offsets = torch.arange(kernel_size, dtype=flow.dtype, device=flow.device) - kernel_size // 2
    kernel = torch.softmax(-(offsets**2) / (2 * std**2), 0)
    height, width = flow.shape[2:]
    with torch.autocast(flow.device.type, enabled=False):
        return _smoothing(height, kernel) @ flow @ _smoothing(width, kernel).T


def _smoothing(length: int, kernel: Tensor) -> Tensor:
    """Return the matrix that smooths a signal: what the kernel makes of each unit vector, in a column of its own."""
    units = torch.eye(length, dtype=kernel.dtype, device=kernel.device)[:, None]
    edge = len(kernel) // 2
    return F.conv1d(F.pad(units, (edge, edge), mode="reflect"), kernel[None, None])[:, 0].T


def _pixels(x: Tensor, row: Tensor, column: Tensor) -> Tensor:
    """Return the pixels of ``x`` at whole places ``[N, 1, H, W]``, zero outside the image."""
    height, width = x.shape[2:]
    inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
    # A flow that is not a number must not become an index; it spreads to the result through the interpolation.
    nearest_row, nearest_column = row.nan_to_num().clamp(0, height - 1), column.nan_to_num().clamp(0, width - 1)
    place = (nearest_row * width + nearest_column).long()
    return (x.flatten(2).gather(2, place.flatten(2).expand(-1, x.shape[1], -1)).view_as(x)).where(inside, 0)
