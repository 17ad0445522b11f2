"""Frequencies of images."""

import torch
from torch import Tensor

from .._checks import check_real, check_shape, check_tensor


def high_frequency(x: Tensor, radius: float = 8) -> Tensor:
    r"""Return images without their low frequencies.

    In the discrete Fourier transform of each channel, the coefficients of all frequencies (u, v), in periods per side,
    with :math:`\sqrt{u^2 + v^2}` below the radius are set to zero, including the mean. The result is not clamped: its
    values may leave [0, 1]. It is differentiable. Reference: Fan et al., NeurIPS 2021; their radius is 8.

    Args:
        x: images ``[..., H, W]``, floating point.
        radius: at least 0; 0 returns the images.

    Returns:
        Images like ``x``, in float32 for half precision.

    Raises:
        ValueError: ``x`` has fewer than two dimensions or no values, or radius < 0.
        TypeError: an argument has the wrong type.

    Example:
        A checkerboard has one frequency, the highest, beside its mean.

        >>> from advcontrast.functional import high_frequency
        >>> board = torch.tensor([[0.0, 1.0], [1.0, 0.0]]).repeat(16, 16)
        >>> high_frequency(board)[0, :2].tolist()
        [-0.5, 0.5]
    """
    check_tensor("high_frequency", "x", x, remedy="Pass images")
    check_real("high_frequency", "radius", radius, low=0, remedy="8 is usual for 32 x 32 pixels")
    check_shape(
        "high_frequency", "x", x, "[..., H, W], with values", x.dim() > 1 and x.numel() > 0, remedy="Pass images"
    )
    x = x if x.dtype == torch.float64 else x.float()
    height, width = x.shape[-2:]
    rows, columns = (torch.fft.fftfreq(size, 1 / size, device=x.device) for size in (height, width))
    low = rows[:, None].square() + columns[: width // 2 + 1].square() < float(radius) * float(radius)  # may be inf
    high: Tensor = torch.fft.irfft2(torch.fft.rfft2(x).masked_fill(low, 0), s=(height, width))
    return high
