"""Which images are for training and validation, which have labels, and in which order they come."""

from __future__ import annotations

import random

import torch
from torch import Tensor

from .._checks import check_generator, check_int, check_real, check_tensor, complaint, generator_by_name


def train_validation_split(n: int, *, seed: int = 10) -> tuple[Tensor, Tensor]:
    """Split n images into 90 % for training and 10 % for validation, as the code of ACL does.

    A permutation is drawn as ``numpy.random.RandomState(seed).permutation(n)`` draws it, without numpy; its first
    n // 10 entries are for validation, the others for training. With n = 50,000 and the seed 10 these are exactly the
    indices, and the order, that were used for the paper.

    Args:
        n: number of images, at least 10.
        seed: from 0 to 2**32 - 1.

    Returns:
        The indices for training and those for validation, int64.

    Raises:
        ValueError: n < 10, or the seed is out of range.
        TypeError: an argument is no int.

    Example:
        >>> from advcontrast.data import train_validation_split
        >>> train, validation = train_validation_split(50_000)
        >>> len(train), len(validation)
        (45000, 5000)

    References:
        Jiang et al., "Robust Pre-Training by Adversarial Contrastive Learning", NeurIPS 2020, and its code.
    """
    owner = "train_validation_split"
    check_int(owner, "n", n, low=10, remedy="A tenth of the images is for validation")
    check_int(owner, "seed", seed, low=0, remedy="10 is the seed of the paper")
    if seed >= 2**32:
        raise ValueError(complaint(owner, "seed to be an int < 2**32", repr(seed), "10 is the seed of the paper"))
    order = torch.tensor(_legacy_permutation(n, seed))
    return order[n // 10 :], order[: n // 10]


def labelled_subset(labels: Tensor, fraction: float, *, seed: int) -> Tensor:
    """Choose the images that keep their label: at random, the same number of each class.

    Args:
        labels: classes of the images, int64 ``[N]``, C different ones.
        fraction: of the N images, in (0, 1]; round(fraction * N / C) of each class are chosen, and 1 chooses all.
        seed: of the choice, at least 0. Subsets of different fractions are unrelated.

    Returns:
        The indices of the chosen images in increasing order, int64, on the device of ``labels``.

    Raises:
        ValueError: the fraction is out of range, asks for no image of a class or for more than the smallest class has,
            or ``labels`` is empty or not one-dimensional.
        TypeError: an argument of the wrong kind.

    Example:
        >>> from advcontrast.data import labelled_subset
        >>> labels = torch.arange(100) % 5
        >>> labels[labelled_subset(labels, 0.1, seed=0)].bincount()
        tensor([2, 2, 2, 2, 2])
    """
    owner = "labelled_subset"
    _check_row(owner, "labels", labels)
    check_real(owner, "fraction", fraction, low=0, high=1, above=True, remedy="0.01 and 0.1 are usual")
    check_int(owner, "seed", seed, low=0, remedy="Another seed chooses other images")
    if fraction == 1:
        return torch.arange(len(labels), device=labels.device)
    on_cpu = labels.cpu()
    classes, sizes = torch.unique(on_cpu, return_counts=True)
    each, smallest = round(fraction * len(labels) / len(classes)), int(sizes.min())
    if not 1 <= each <= smallest:
        expected = f"1 to {smallest} images of each class, as many as the smallest has"
        got = f"{each} ({fraction:g} of {len(labels)} images in {len(classes)} classes)"
        raise ValueError(complaint(owner, expected, got, f"Pass a {'larger' if each == 0 else 'smaller'} fraction"))
    generator = torch.Generator().manual_seed(seed)
    members = [(on_cpu == label).nonzero().squeeze(1) for label in classes]
    chosen = [own[torch.randperm(len(own), generator=generator)[:each]] for own in members]
    return torch.cat(chosen).sort().values.to(labels.device)


@generator_by_name
def interleave(groups: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
    """Draw a random order in which every stretch holds its share of each group.

    The elements of a group come in random order, and number r of n, counted from 0, lies at (r + 1/2) / n of the way.
    Of G groups one with the share s of all elements has L s of any L consecutive ones, give or take 1 + (G - 2) s: of
    two groups, at most one element too many or too few. Batches of B from the start on are exact where B s is a whole
    number for every group, so that of 4,500 labelled and 40,500 other images every 250 have 25 labelled ones.

    Args:
        groups: group of each element, int64 ``[N]``; any numbers.
        generator: source of randomness on the CPU; by default the global one.

    Returns:
        A permutation of 0 to N - 1, int64, on the device of ``groups``.

    Raises:
        ValueError: ``groups`` is empty or not one-dimensional, or ``generator`` is on another device.
        TypeError: an argument of the wrong kind.

    Example:
        >>> from advcontrast.data import interleave
        >>> groups = torch.tensor([1] * 3 + [0] * 27)
        >>> groups[interleave(groups)].view(3, 10).sum(1)
        tensor([1, 1, 1])
    """
    _check_row("interleave", "groups", groups)
    check_generator("interleave", generator, torch.device("cpu"))
    shuffled = torch.randperm(len(groups), generator=generator)
    _, which, sizes = torch.unique(groups.cpu()[shuffled], return_inverse=True, return_counts=True)
    by_group = which.argsort(stable=True)
    rank = torch.empty_like(which)
    rank[by_group] = torch.arange(len(which)) - (sizes.cumsum(0) - sizes).repeat_interleave(sizes)
    place = (rank.double() + 0.5) / sizes[which]
    # Equal fractions are equal in floating point, too. A second order decides on those: the first, which the ranks
    # follow, would leave one group ahead for long stretches.
    among_equals = torch.randperm(len(groups), generator=generator)
    return shuffled[among_equals][place[among_equals].argsort(stable=True)].to(groups.device)


def _check_row(owner: str, name: str, value: Tensor) -> None:
    """Require int64 ``[N]`` with N at least 1."""
    remedy = "Pass one number an image"
    check_tensor(owner, name, value, (torch.int64,), remedy=remedy)
    if value.dim() != 1 or len(value) == 0:
        raise ValueError(complaint(owner, f"{name} of shape [N] with N >= 1", f"{list(value.shape)}", remedy))


def _legacy_permutation(n: int, seed: int) -> list[int]:
    """Return ``numpy.random.RandomState(seed).permutation(n)``, for n up to 2**32."""
    state = [seed]
    for position in range(1, 624):
        state.append((1812433253 * (state[-1] ^ (state[-1] >> 30)) + position) % 2**32)
    twister = random.Random()
    # Both draw with the Mersenne twister; only what they make of a seed differs.
    twister.setstate((3, (*state, 624), None))
    order = list(range(n))
    for last in range(n - 1, 0, -1):
        mask = 2 ** last.bit_length() - 1
        other = twister.getrandbits(32) & mask
        while other > last:
            other = twister.getrandbits(32) & mask
        order[last], order[other] = order[other], order[last]
    return order
