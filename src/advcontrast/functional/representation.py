"""Robustness and rank of representations, measured on features without labels or probes."""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from .._checks import check_finite, check_int, check_one_device, check_real, check_tensor, complaint
from .nt_xent import unit_rows

# Features of an image computed in different batches differ by a few 1e-7 of their length in float32. Distances that
# differ by less than this fraction of the length count as equal.
_TIE = 1e-5
_ROWS = 512  # of the N x N distances, in memory at a time


def breakaway_risk(clean: Tensor, adv: Tensor) -> Tensor:
    r"""Return the probability that an attack takes an image closer to another image than to itself.

    With :math:`c_i` the features of image i and :math:`a_i` those under an attack that drives them away,

    .. math:: \frac{1}{N (N - 1)} \sum_{i \ne j} [\lVert a_i - c_j \rVert < \lVert a_i - c_i \rVert]

    the mean over all ordered pairs of different images, a float64 scalar in [0, 1]. Distances are Euclidean; scale
    features to length one to measure angles. :math:`c_j` counts as closer only if the difference exceeds 1e-5
    :math:`\lVert c_i \rVert`, so that copies of an image do not count. An encoder that maps all images to one point
    therefore has risk 0; :func:`effective_rank` detects it. Distances are computed in float64, a block of rows at a
    time, with memory O(N). Reference: Petrov and Kwiatkowska, ICLR 2023.

    Args:
        clean: features of the images, ``[N, D]``, floating point, N at least 2.
        adv: features of the same images under attack, row by row, ``[N, D]``.

    Raises:
        ValueError: shapes or devices differ, shapes are not ``[N, D]``, N < 2, D < 1 or, on any device, a value is not
            finite: a comparison with NaN would count as robust.
        TypeError: an argument has the wrong type.

    Example:
        Three images at 0, 1 and 3. The first moves to 2, which is closer to both others: two of six pairs.

        >>> clean, adv = torch.tensor([[0.0], [1.0], [3.0]]), torch.tensor([[2.0], [1.0], [3.0]])
        >>> round(breakaway_risk(clean, adv).item(), 4)
        0.3333
    """
    closer = _closer("breakaway_risk", clean, adv)
    return closer.mean() / (len(closer) - 1)


def nearest_neighbour_accuracy(clean: Tensor, adv: Tensor, *, top: int = 1) -> Tensor:
    r"""Return the fraction of attacked images whose nearest clean features are their own.

    .. math::

        & \frac{1}{N} \sum_{i=1}^N \big[ r_i < \mathrm{top} \big] \\
        & r_i = \big| \{ j \ne i : \lVert a_i - c_j \rVert < \lVert a_i - c_i \rVert \} \big|

    in the notation of :func:`breakaway_risk`, a float64 scalar in [0, 1]. Distances that are equal by its rule count in
    favour of the image itself. Unlike the risk, the accuracy depends on N: compare encoders on the same images.

    Args:
        clean: features as for :func:`breakaway_risk`.
        adv: features as for :func:`breakaway_risk`.
        top: number of nearest images among which the image itself must be, from 1 to N - 1.

    Raises:
        ValueError: as for :func:`breakaway_risk`, or ``top`` out of range.
        TypeError: an argument has the wrong type.

    Example:
        >>> clean, adv = torch.tensor([[0.0], [1.0], [3.0]]), torch.tensor([[2.0], [1.0], [3.0]])
        >>> round(nearest_neighbour_accuracy(clean, adv).item(), 4)
        0.6667
    """
    owner = "nearest_neighbour_accuracy"
    check_int(owner, "top", top, low=1, remedy="1 asks for the nearest")
    closer = _closer(owner, clean, adv)
    if top >= len(closer):
        expected = f"top below the number of images, {len(closer)}"
        raise ValueError(complaint(owner, expected, repr(top), "All images are among the nearest N"))
    return (closer < top).double().mean()


def margin_ratio(clean: Tensor, other: Tensor, adv: Tensor, adv_other: Tensor) -> Tensor:
    r"""Return, for N pairs of images, the relative distance left when an attack moves each image towards the other.

    Let c and c' be the features of images x and x', a those of x under an attack that makes it resemble x', and a'
    those of x' under an attack that makes it resemble x. Then

    .. math:: m = \frac{\lVert c - a' \rVert - \lVert c - a \rVert}{\lVert c - c' \rVert}

    The margin is 1 if the attacks have no effect, and negative if x' comes closer to x than x itself can move: the
    reachable sets overlap, and no distance to c separates the images. Exchange the images,
    ``margin_ratio(other, clean, adv_other, adv)``, for the margin seen from x'. Where c and c' are equal up to 1e-5 of
    their length, the margin is 1 by definition. The result is a float64 tensor ``[N]``. Errors are those of
    :func:`breakaway_risk`, but one pair is enough.

    Args:
        clean: the features c, ``[N, D]``, floating point, N at least 1.
        other: the features c', ``[N, D]``.
        adv: the features a, ``[N, D]``.
        adv_other: the features a', ``[N, D]``.

    Example:
        Images at 0 and 1, each moved by 1/4 towards the other: 3/4 - 1/4.

        >>> margin_ratio(*torch.tensor([[[0.0]], [[1.0]], [[0.25]], [[0.75]]])).tolist()
        [0.5]
    """
    features = {"clean": clean, "other": other, "adv": adv, "adv_other": adv_other}
    clean, other, adv, adv_other = _comparable("margin_ratio", features, least=1)
    apart = torch.linalg.vector_norm(clean - other, dim=1)
    left = torch.linalg.vector_norm(clean - adv_other, dim=1) - torch.linalg.vector_norm(clean - adv, dim=1)
    same = apart <= _TIE * torch.linalg.vector_norm(clean, dim=1)
    return torch.where(same, 1.0, left / apart)


def overlap_risk(margins: Tensor) -> Tensor:
    r"""Return the probability that the sets that two images can be moved to overlap, :math:`P(m < 0)`, in float64.

    Args:
        margins: a :func:`margin_ratio` for each of N pairs, ``[N]``, floating point, N at least 1.

    Raises:
        ValueError: ``margins`` is not ``[N]`` with N at least 1, or is not finite.
        TypeError: ``margins`` is not a floating-point tensor.

    Example:
        >>> overlap_risk(torch.tensor([1.0, 0.5, 0.0, -0.25])).item()
        0.25
    """
    owner, remedy = "overlap_risk", "Pass what margin_ratio returns"
    check_tensor(owner, "margins", margins, remedy=remedy)
    if margins.dim() != 1 or len(margins) < 1:
        raise ValueError(complaint(owner, "margins of shape [N] with N >= 1", f"{list(margins.shape)}", remedy))
    check_finite(owner, "margins", margins, everywhere=True, remedy=remedy)
    return (margins < 0).double().mean()


def uniformity(z: Tensor, *, t: float = 2.0) -> Tensor:
    r"""Return the logarithm of the mean Gaussian potential of features on the unit sphere.

    With :math:`\hat z_i` the rows scaled to length one,

    .. math:: \log \frac{1}{N (N - 1)} \sum_{i \ne j} e^{-t \lVert \hat z_i - \hat z_j \rVert^2}

    a differentiable float64 scalar in [-4 t, 0]; smaller is more uniform. It is 0 if all features are parallel, and for
    t = 2 close to -4 if many features are spread evenly over a sphere of many dimensions. A row of zeros stays zero.
    Memory is O(N) without a gradient. Reference: Wang and Isola, ICML 2020.

    Args:
        z: features, ``[N, D]``, floating point, N at least 2.
        t: sharpness of the potential, positive; the authors' 2.

    Raises:
        ValueError: ``z`` is not ``[N, D]``, N < 2, D < 1, values that are not finite, or t <= 0.
        TypeError: an argument has the wrong type.

    Example:
        Two features at a right angle are the square root of 2 apart.

        >>> round(uniformity(torch.eye(2)).item(), 4)
        -4.0
    """
    check_real("uniformity", "t", t, low=0, above=True, remedy="2 is usual")
    unit = unit_rows(_comparable("uniformity", {"z": z}, least=2)[0])
    potentials = []
    for start, distances in _blocks(unit, unit):
        itself = torch.arange(start, start + len(distances), device=unit.device)[:, None]
        potentials.append((-t * distances.square()).scatter(1, itself, -math.inf).logsumexp(1))
    return torch.cat(potentials).logsumexp(0) - math.log(len(z) * (len(z) - 1))


def effective_rank(z: Tensor) -> Tensor:
    r"""Return the effective number of dimensions of features.

    With :math:`\sigma_k` the singular values of the matrix of features, not centred,

    .. math::

        & \exp \Big( -\sum_k p_k \log p_k \Big) \\
        & p_k = \sigma_k / \sum_l \sigma_l

    a float64 scalar in [1, min(N, D)]. It is 1 if all features are multiples of one vector, or zero, as for a collapsed
    encoder, and D if they extend equally in D orthogonal directions. Computed in float64, since rounding noise in many
    dimensions counts as rank. References: Roy and Vetterli, EUSIPCO 2007; Garrido et al., ICML 2023.

    Args:
        z: features, ``[N, D]``, floating point, N at least 2.

    Raises:
        ValueError: ``z`` is not ``[N, D]``, N < 2, D < 1, or values that are not finite.
        TypeError: ``z`` is not a floating-point tensor.

    Example:
        >>> round(effective_rank(torch.eye(4)).item(), 4)
        4.0
    """
    (z,) = _comparable("effective_rank", {"z": z}, least=2)
    values = torch.linalg.svdvals(z)
    total = values.sum()
    entropy: Tensor = torch.special.entr(values / total.masked_fill(total == 0, 1)).sum()
    return entropy.exp()


def _closer(owner: str, clean: Tensor, adv: Tensor) -> Tensor:
    """Count, for each attacked image, the other images whose clean features are closer than its own."""
    clean, adv = _comparable(owner, {"clean": clean, "adv": adv}, least=2)
    tie = _TIE * torch.linalg.vector_norm(clean, dim=1)
    counts = []
    for start, distances in _blocks(adv, clean):
        limit = distances.diagonal(start) - tie[start : start + len(distances)]
        counts.append((distances < limit[:, None]).sum(1))
    return torch.cat(counts).double()


def _blocks(points: Tensor, others: Tensor) -> Iterator[tuple[int, Tensor]]:
    """Yield the first row of each block, and the distances of its points to all others."""
    for start in range(0, len(points), _ROWS):
        # Scalar products are ten times as fast as differences. Their error is 1e-8 of the length of the features in
        # float64; in float32 it would be 1e-4, more than many attacks change the features of a robust encoder.
        yield start, torch.cdist(points[start : start + _ROWS], others, compute_mode="use_mm_for_euclid_dist")


def _comparable(owner: str, features: dict[str, Tensor], *, least: int) -> list[Tensor]:
    """Check features, and return them in float64, scaled together so that squares do not overflow."""
    remedy = "Pass what the encoder returns for a batch"
    for name, z in features.items():
        check_tensor(owner, name, z, remedy=remedy)
    shapes = [z.shape for z in features.values()]
    if len(set(shapes)) > 1 or len(shapes[0]) != 2 or shapes[0][0] < least or shapes[0][1] < 1:
        rule = f"{' and '.join(features)} of shape [N, D] with N >= {least} and D >= 1"
        got = " and ".join(str(list(shape)) for shape in shapes)
        raise ValueError(complaint(owner, rule, got, "Pass a flat row of features for each image"))
    check_one_device(owner, **features)
    for name, z in features.items():
        # On every device: a comparison with NaN is false, and would count as robust.
        check_finite(owner, name, z, everywhere=True, remedy="The network has diverged, or its input was not finite")
    wide = [(z.cpu() if z.device.type == "mps" else z).double() for z in features.values()]
    largest = torch.stack([z.detach().abs().amax() for z in wide]).amax()
    return [z / largest.masked_fill(largest == 0, 1) for z in wide]
