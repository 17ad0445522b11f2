"""The normalised temperature-scaled cross-entropy of SimCLR, dense and tiled."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .._checks import check_finite, check_int, check_real, check_tensor, complaint


def nt_xent(z1: Tensor, z2: Tensor, temperature: float = 0.5, *, tile: int | None = None) -> Tensor:
    r"""Return the NT-Xent loss of N pairs of embeddings.

    With the 2N rows of ``z1`` and ``z2`` scaled to length one, :math:`s_{ij}` their scalar products and :math:`p(i)`
    the row that shows the same image as row i,

    .. math:: L = \frac{1}{2N} \sum_{i=1}^{2N} \Big[ \log \sum_{j \ne i} e^{s_{ij} / t} - s_{i\,p(i)} / t \Big]

    so every anchor is compared with its partner and 2N - 2 negatives, and the mean runs over all 2N anchors. A row of
    zeros has similarity zero to all others and receives the gradient zero.

    The computation runs in float64 for float64 input and in float32 for every other dtype, also under autocast:
    similarities in half precision are useless at low temperature.

    Args:
        z1: embeddings of the first views, ``[N, D]``, floating point, N at least 2. They need not be normalised.
        z2: embeddings of the second views, ``[N, D]``, row i the partner of row i of ``z1``.
        temperature: the t above, positive. 0.5 is what SimCLR and ACL use for CIFAR-10.
        tile: number of anchors whose similarities are held at a time. ``None`` holds all ``[2N, 2N]`` of them; a number
            gives the same loss and gradient with memory O(N * tile), but no second derivatives.

    Returns:
        The loss, a scalar of dtype float64 for float64 input and float32 otherwise.

    Raises:
        ValueError: shapes differ or are not ``[N, D]``, N < 2, D < 1, temperature <= 0, tile < 1, or, on the CPU,
            values are not finite (reading them on an accelerator would stall it; there the loss becomes NaN).
        TypeError: an argument of the wrong kind, or ``z1`` and ``z2`` of different dtypes.

    Example:
        Two pairs whose four views all point the same way: every anchor finds its partner among three equals.

        >>> z = torch.ones(2, 8)
        >>> round(nt_xent(z, z).item(), 4) == round(math.log(3), 4)
        True

    References:
        Chen et al., "A Simple Framework for Contrastive Learning of Visual Representations", ICML 2020, equation 1.
    """
    check_settings("nt_xent", temperature, tile)
    check_embeddings("nt_xent", z1, z2)
    z1, z2 = unit_rows(z1), unit_rows(z2)
    return contrast(z1, z2, z1, z2, temperature=temperature, tile=tile)


def alignment(z1: Tensor, z2: Tensor) -> Tensor:
    r"""Return the mean squared distance of the pairs on the unit sphere, :math:`E \lVert \hat z_1 - \hat z_2 \rVert^2`.

    Args:
        z1: embeddings of the first views, ``[N, D]``.
        z2: embeddings of the second views, ``[N, D]``.

    Returns:
        A scalar in [0, 4], which is 0 where both views of every image coincide, about 2 for unrelated ones.

    Raises:
        ValueError: shapes differ, are not ``[N, D]``, or N < 1; on the CPU also non-finite values.
        TypeError: an argument of the wrong kind, or ``z1`` and ``z2`` of different dtypes.

    Example:
        >>> alignment(torch.eye(4), 3 * torch.eye(4)).item()
        0.0

    References:
        Wang and Isola, "Understanding Contrastive Representation Learning through Alignment and Uniformity on the
        Hypersphere", ICML 2020.
    """
    check_embeddings("alignment", z1, z2, least=1)
    return (unit_rows(z1) - unit_rows(z2)).square().sum(1).mean()


def check_settings(owner: str, temperature: float, tile: int | None) -> None:
    """Check what every form of the loss is set up with."""
    check_real(owner, "temperature", temperature, low=0, above=True, remedy="SimCLR uses 0.5 for CIFAR-10")
    if tile is not None:
        check_int(owner, "tile", tile, low=1, remedy="None computes all similarities at once")


def check_embeddings(owner: str, z1: Tensor, z2: Tensor, *, least: int = 2) -> None:
    """Check the embeddings of two views, of which there must be ``least`` pairs."""
    remedy = "Pass what the projection head returns"
    check_tensor(owner, "z1", z1, remedy=remedy)
    check_tensor(owner, "z2", z2, remedy=remedy)
    if z1.dim() != 2 or z1.shape != z2.shape:
        expected = "z1 and z2 to have the same shape [N, D]"
        remedy = "Both views of a batch must be passed together"
        if z1.shape == z2.shape:
            remedy = "Flatten each embedding to one dimension"
        raise ValueError(complaint(owner, expected, f"{list(z1.shape)} and {list(z2.shape)}", remedy))
    if z1.dtype != z2.dtype:
        remedy = "Cast them to one dtype, best to the wider one"
        raise TypeError(complaint(owner, "z1 and z2 of one dtype", f"{z1.dtype} and {z2.dtype}", remedy))
    if z1.device != z2.device:
        expected = "z1 and z2 on one device"
        raise ValueError(complaint(owner, expected, f"{z1.device} and {z2.device}", "Move both to the model's device"))
    if len(z1) < least:
        expected = f"at least {least} pair{'s' if least > 1 else ''}"
        raise ValueError(complaint(owner, expected, str(len(z1)), "Skip a short last batch with drop_last=True"))
    if z1.shape[1] == 0:
        raise ValueError(complaint(owner, "at least 1 feature", "0", "Check the output size of the projection head"))
    for name, z in (("z1", z1), ("z2", z2)):
        check_finite(owner, name, z, remedy="The network has diverged, or its input was not finite")


def unit_rows(z: Tensor) -> Tensor:
    """Scale each row of ``z`` to length one, in float32 at least; a row of zeros stays one and passes no gradient."""
    with torch.autocast(z.device.type, enabled=False):
        z = z if z.dtype == torch.float64 else z.float()
        # Squares of very small or large entries leave the range of float32; relative to the largest entry they cannot.
        largest = z.detach().abs().amax(1, keepdim=True)
        zero = largest == 0
        z = z / largest.masked_fill(zero, 1)
        unit: Tensor = z / torch.linalg.vector_norm(z, dim=1, keepdim=True).masked_fill(zero, 1)
        return unit.masked_fill(zero, 0)


def contrast(
    z1: Tensor, z2: Tensor, all1: Tensor, all2: Tensor, *, first: int = 0, temperature: float, tile: int | None
) -> Tensor:
    """Return the mean NT-Xent loss of the anchors ``z1`` and ``z2`` among all candidates ``all1`` and ``all2``.

    Args:
        z1: unit rows ``[n, D]``.
        z2: unit rows ``[n, D]``.
        all1: unit rows ``[N, D]`` of which ``z1`` is the block that starts at row ``first``.
        all2: unit rows ``[N, D]``, likewise for ``z2``.
        first: where this process's pairs begin.
        temperature: positive.
        tile: anchors at a time, or ``None`` for all.

    Returns:
        A scalar.
    """
    with torch.autocast(z1.device.type, enabled=False):
        anchors, candidates = torch.cat([z1, z2]), torch.cat([all1, all2])
        own = torch.arange(first, first + len(z1), device=z1.device)
        itself, partner = torch.cat([own, own + len(all1)]), torch.cat([own + len(all1), own])
        if tile is not None:
            loss: Tensor = _TiledContrast.apply(anchors, candidates, itself, partner, 1 / temperature, tile)
            return loss
        logits = _logits(anchors, candidates, itself, 1 / temperature)
        return F.cross_entropy(logits, partner)


def _logits(anchors: Tensor, candidates: Tensor, itself: Tensor, inverse_temperature: float) -> Tensor:
    logits = (anchors * inverse_temperature) @ candidates.T
    return logits.scatter_(1, itself[:, None], -math.inf)


class _TiledContrast(torch.autograd.Function):
    """The loss a few anchors at a time.

    The gradient with respect to a tile's similarities needs nothing but that tile, so it is taken on the way: the
    backward pass has only to scale what the forward pass has kept, and no similarity is computed twice.
    """

    @staticmethod
    def forward(
        ctx: Any,
        anchors: Tensor,
        candidates: Tensor,
        itself: Tensor,
        partner: Tensor,
        inverse_temperature: float,
        tile: int,
    ) -> Tensor:
        for_anchors, for_candidates = (
            torch.zeros_like(z) if needed else None
            for z, needed in zip((anchors, candidates), ctx.needs_input_grad[:2], strict=True)
        )
        loss = anchors.new_zeros(())
        for start in range(0, len(anchors), tile):
            part = slice(start, start + tile)
            logits = _logits(anchors[part], candidates, itself[part], inverse_temperature)
            log_normaliser = logits.logsumexp(1, keepdim=True)
            loss += (log_normaliser - logits.gather(1, partner[part, None])).sum()
            if for_anchors is None and for_candidates is None:
                continue
            slope = logits.sub_(log_normaliser).exp_()
            slope.scatter_add_(1, partner[part, None], -torch.ones_like(log_normaliser))
            if for_anchors is not None:
                torch.mm(slope, candidates, out=for_anchors[part])
            if for_candidates is not None:
                for_candidates.addmm_(slope.T, anchors[part])
        scale = inverse_temperature / len(anchors)
        ctx.save_for_backward(*(z if z is None else z.mul_(scale) for z in (for_anchors, for_candidates)))
        return loss / len(anchors)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        # To autograd the gradient below is a constant: differentiated again it would give a part of the truth.
        if torch.is_grad_enabled():
            remedy = "Pass tile=None to differentiate twice"
            raise RuntimeError(complaint("nt_xent", "first derivatives only where tile is set", "create_graph", remedy))
        for_anchors, for_candidates = (z if z is None else z * gradient for z in ctx.saved_tensors)
        return for_anchors, for_candidates, None, None, None, None
