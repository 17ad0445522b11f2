"""The normalised temperature-scaled cross-entropy of SimCLR, dense and tiled."""

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .._checks import check_finite, check_int, check_one_device, check_temperature, check_tensor, complaint

LARGEST_EXPONENT = 40  # the exponentials of similarities up to this, and their sums, are normal numbers of float32


def nt_xent(z1: Tensor, z2: Tensor, temperature: float = 0.5, *, tile: int | None = None) -> Tensor:
    r"""Return the NT-Xent loss of N pairs of embeddings, a scalar.

    With the 2N rows of ``z1`` and ``z2`` scaled to length one, :math:`s_{ij}` their scalar products and :math:`p(i)`
    the row that shows the same image as row i,

    .. math:: L = \frac{1}{2N} \sum_{i=1}^{2N} \Big[ \log \sum_{j \ne i} e^{s_{ij} / t} - s_{i\,p(i)} / t \Big]

    so every anchor is compared with its partner and 2N - 2 negatives, and the mean is over all 2N anchors. If all rows
    are equal, as for a collapsed encoder, the loss is :math:`\log(2N - 1)`. A row of zeros has similarity zero to
    all others and gradient zero. Computation and result are float64 for float64 input and float32 otherwise, also under
    autocast: half precision is too coarse at low temperature. Reference: Chen et al., ICML 2020, equation 1.

    Args:
        z1: embeddings of the first views, ``[N, D]``, floating point, N at least 2. They need not be normalised.
        z2: embeddings of the second views, ``[N, D]``; row i is the partner of row i of ``z1``.
        temperature: the temperature t, at least 1e-30. SimCLR and ACL use 0.5 for CIFAR-10.
        tile: number of anchors whose similarities are in memory at a time. ``None`` holds all ``[2N, 2N]``, twice in
            the backward pass. A number gives the same loss and gradient with memory O(N * tile) and two thirds of the
            products, but no second derivatives. On a CPU, 256 or 512 is faster from a few hundred pairs on, and
            necessary from a few thousand. On an accelerator, where each tile costs launches, use the largest that fits.

    Raises:
        ValueError: shapes differ or are not ``[N, D]``, N < 2, D < 1, temperature < 1e-30, tile < 1, or, on the CPU,
            values are not finite (on an accelerator the loss becomes NaN instead).
        TypeError: an argument has the wrong type, or ``z1`` and ``z2`` of different dtypes.

    Example:
        Two pairs whose four views are all parallel: each anchor has a partner and two equal negatives.

        >>> z = torch.ones(2, 8)
        >>> round(nt_xent(z, z).item(), 4) == round(math.log(3), 4)
        True
    """
    check_settings("nt_xent", temperature, tile)
    check_embeddings("nt_xent", z1, z2)
    return contrast(scaled_views(z1, z2, temperature), temperature=temperature, tile=tile)


def alignment(z1: Tensor, z2: Tensor) -> Tensor:
    r"""Return the mean squared distance of the pairs on the unit sphere, :math:`E \lVert \hat z_1 - \hat z_2 \rVert^2`.

    The scalar is in [0, 4]: 0 if both views of every image coincide, about 2 for unrelated views. Embeddings and errors
    are as for :func:`nt_xent`, but one pair is enough. Reference: Wang and Isola, ICML 2020.

    Example:
        >>> alignment(torch.eye(4), 3 * torch.eye(4)).item()
        0.0
    """
    check_embeddings("alignment", z1, z2, least=1)
    first, second = scaled_views(z1, z2, 1).chunk(2)
    return F.mse_loss(first, second, reduction="none").sum(1).mean()


def cosine(z1: Tensor, z2: Tensor) -> Tensor:
    r"""Return the mean cosine similarity of N pairs of embeddings, a scalar in [-1, 1].

    .. math:: \frac{1}{N} \sum_i \frac{z_{1i} \cdot z_{2i}}{\lVert z_{1i} \rVert \lVert z_{2i} \rVert}

    Embeddings, errors, dtypes and rows of zeros are as for :func:`nt_xent`, but one pair is enough.

    Example:
        >>> cosine(torch.eye(4), 3 * torch.eye(4)).item()
        1.0
    """
    check_embeddings("cosine", z1, z2, least=1)
    return (unit_rows(z1) * unit_rows(z2)).sum(1).mean()


def check_settings(owner: str, temperature: float, tile: int | None) -> None:
    """Check the settings of the loss."""
    check_temperature(owner, temperature, remedy="SimCLR uses 0.5 for CIFAR-10")
    if tile is not None:
        check_int(owner, "tile", tile, low=1, remedy="None computes all similarities at once")


def check_embeddings(owner: str, z1: Tensor, z2: Tensor, *, least: int = 2) -> None:
    """Check the embeddings of two views, at least ``least`` pairs."""
    remedy = "Pass what the projection head returns"
    check_tensor(owner, "z1", z1, remedy=remedy)
    check_tensor(owner, "z2", z2, remedy=remedy)
    if z1.dim() != 2 or z1.shape != z2.shape:
        expected, got = "z1 and z2 to have the same shape [N, D]", f"{list(z1.shape)} and {list(z2.shape)}"
        same = z1.shape == z2.shape
        remedy = "Flatten each embedding to one dimension" if same else "Both views of a batch must be passed together"
        raise ValueError(complaint(owner, expected, got, remedy))
    if z1.dtype != z2.dtype:
        remedy = "Cast them to one dtype, best to the wider one"
        raise TypeError(complaint(owner, "z1 and z2 of one dtype", f"{z1.dtype} and {z2.dtype}", remedy))
    check_one_device(owner, z1=z1, z2=z2)
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
        unit: Tensor = _ScaledRows.apply(z, None, 1.0)[0]
        return unit


def scaled_views(z1: Tensor, z2: Tensor, temperature: float) -> Tensor:
    """Return the rows of both views, the second below the first, so long that their products are the logits."""
    with torch.autocast(z1.device.type, enabled=False):  # it cannot concatenate every half precision dtype
        # At temperatures above 1e30 all logits are zero.
        rows: Tensor = _ScaledRows.apply(z1, z2, max(temperature**-0.5, 1e-15))[0]
        return rows


class _ScaledRows(torch.autograd.Function):
    """The rows of one or two views, scaled to length ``size``, and the divisor of each."""

    generate_vmap_rule = True

    @staticmethod
    def forward(z1: Tensor, z2: Tensor | None, size: float) -> tuple[Tensor, Tensor]:
        z = z1.clone() if z2 is None else torch.cat([z1, z2])
        dtype = torch.promote_types(z.dtype, torch.float32)
        # In a wider dtype squares neither overflow nor vanish; without a wider dtype, rows are scaled first. A row of
        # zeros gets an infinite divisor, so that it and its gradient are zero.
        wide = torch.float32 if z.dtype == torch.float16 or z.device.type == "mps" else torch.float64
        scale = F.threshold(z.abs().amax(1, keepdim=True), 0, math.inf) if z.dtype == wide else None
        if scale is not None:
            z.div_(scale)
        divisor = F.threshold(torch.linalg.vector_norm(z, dim=1, keepdim=True, dtype=wide), 0, math.inf)
        if size != 1:
            divisor.div_(size)
        rows = z.div_(divisor) if z.dtype == dtype else (z / divisor).to(dtype)
        return rows, divisor if scale is None else divisor.mul_(scale)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        z1, z2, ctx.size = inputs
        ctx.dtype, ctx.alone = z1.dtype, z2 is None
        ctx.save_for_backward(*output)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, for_rows: Tensor | None, for_divisor: Tensor | None) -> tuple[Tensor | None, ...]:
        # Autograd would take 15 operations to differentiate the forward pass; the projection onto the sphere takes 4.
        rows, divisor = ctx.saved_tensors
        share = ctx.size**-2
        slope: Tensor = torch.zeros_like(rows) if for_rows is None else for_rows
        slope = torch.addcmul(slope, rows, (slope * rows).sum(1, keepdim=True), value=-share).div_(divisor)
        if for_divisor is not None:  # the divisor receives a gradient in second derivatives only
            slope = torch.addcmul(slope, rows, for_divisor, value=share)
        slope = slope.to(ctx.dtype)
        first, second = (slope, None) if ctx.alone else slope.chunk(2)
        return first, second, None


def contrast(
    anchors: Tensor, candidates: Tensor | None = None, *, first: int = 0, temperature: float, tile: int | None
) -> Tensor:
    """Return the mean NT-Xent loss of :func:`scaled_views`, ``[2n, D]``, among candidates, by default themselves."""
    # Candidates are the views of N images, ``[2N, D]``; ``first`` is the index of the first anchor's image among them.
    with torch.autocast(anchors.device.type, enabled=False):
        z1, z2 = anchors.chunk(2)
        everyone = anchors if candidates is None else candidates
        itself = None  # the diagonal
        if candidates is not None or tile is not None:
            own = slice(first, first + len(z1))
            itself = torch.arange(len(everyone), device=anchors.device).view(2, -1)[:, own].reshape(-1, 1)
        shifted = 1 / temperature > LARGEST_EXPONENT
        partners = (z1 * z2).sum(1)
        if tile is None:
            exponentials, peak = _exponentials(anchors, everyone, itself, shifted)
            return torch.sub(_log_sums(exponentials.sum(1), peak).view(2, -1), partners).mean()
        log_sum: Tensor = _TiledLogSum.apply(anchors, candidates, itself, shifted, tile)
        return log_sum - partners.mean()


def _exponentials(
    anchors: Tensor, candidates: Tensor, itself: Tensor | None, shifted: bool, out: Tensor | None = None
) -> tuple[Tensor, Tensor | None]:
    """Return the exponentials of the similarities, zero for an anchor itself, and the shift of each row, if any."""
    logits = torch.mm(anchors, candidates.T, out=out)
    # Without autograd, which would copy the matrix: the derivative of a zero exponential is zero, and the result does
    # not depend on the shift.
    with torch.no_grad():
        logits.diagonal().fill_(-math.inf) if itself is None else logits.scatter_(1, itself, -math.inf)
        peak = None
        if shifted:
            peak = logits.amax(1)
            logits.sub_(peak[:, None])
    return logits.exp_(), peak


def _log_sums(sums: Tensor, peak: Tensor | None) -> Tensor:
    return sums.log() if peak is None else sums.log() + peak


class _TiledLogSum(torch.autograd.Function):
    """The mean logarithm of the anchors' sums of exponentials; the forward pass computes the gradient, by tiles."""

    @staticmethod
    def forward(
        ctx: Any, anchors: Tensor, candidates: Tensor | None, itself: Tensor, shifted: bool, tile: int
    ) -> Tensor:
        count, everyone = len(anchors), anchors if candidates is None else candidates
        for_anchors = torch.zeros_like(anchors)
        for_everyone = for_anchors if candidates is None else torch.zeros_like(candidates)
        memory = anchors.new_empty(min(tile, count), len(everyone))
        log_sums, inverses = anchors.new_empty(count), anchors.new_empty(count)
        for start in range(0, count, tile):
            stop = min(start + tile, count)
            part = slice(start, stop)
            tiled, peak = _exponentials(anchors[part], everyone, itself[part], shifted, out=memory[: stop - start])
            sums = tiled.sum(1)
            log_sums[part] = _log_sums(sums, peak)
            if not any(ctx.needs_input_grad):
                continue
            inverses[part] = 1 / sums
            # The similarity of two anchors appears in both their sums. It is used once, when the second sum is known:
            # two matrix products instead of three. With different shifts of the rows the matrix is not symmetric.
            if candidates is None and not shifted:
                slope = tiled[:, :stop].mul_(inverses[part, None] + inverses[:stop])
                for_anchors[part].addmm_(slope, anchors[:stop])
                for_anchors[:start].addmm_(slope[:, :start].T, anchors[part])
            else:
                slope = tiled.mul_(inverses[part, None])
                for_anchors[part].addmm_(slope, everyone)
                for_everyone.addmm_(slope.T, anchors[part])
        ctx.save_for_backward(for_anchors.div_(count), None if candidates is None else for_everyone.div_(count))
        return log_sums.mean()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        # The gradient below is a constant to autograd: its derivative would be incomplete.
        if torch.is_grad_enabled():
            remedy = "Pass tile=None to differentiate twice"
            raise RuntimeError(complaint("nt_xent", "first derivatives only where tile is set", "create_graph", remedy))
        for_anchors, for_candidates = (z if z is None else z * gradient for z in ctx.saved_tensors)
        return for_anchors, for_candidates, None, None, None
