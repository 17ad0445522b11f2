"""Splits into training and validation images, labelled subsets, and the order of mixed batches."""

import torch
from torch import Tensor

from .._checks import check_generator, check_int, check_real, complaint
from .images import check_row

_REMEDY = "Pass one number per image"


def train_validation_split(n: int, *, seed: int = 10) -> tuple[Tensor, Tensor]:
    """Return the int64 indices of 90 % of n images for training, and of 10 % for validation, as in the code of ACL.

    The first n // 10 entries of ``numpy.random.RandomState(seed).permutation(n)`` are for validation, the others for
    training. With n = 50,000 and seed 10 these are the indices of the paper, in the same order.
    Reference: Jiang et al., "Robust Pre-Training by Adversarial Contrastive Learning", NeurIPS 2020.

    Raises:
        ValueError: n < 10, or a seed outside [0, 2**32).
        TypeError: an argument is not an int.

    Example:
        >>> train, validation = train_validation_split(50_000)
        >>> len(train), len(validation)
        (45000, 5000)
    """
    import numpy as np

    owner = "train_validation_split"
    check_int(owner, "n", n, low=10, remedy="A tenth of the images is for validation")
    check_int(owner, "seed", seed, low=0, remedy="10 is the seed of the paper")
    if seed >= 2**32:
        raise ValueError(complaint(owner, "seed to be an int < 2**32", repr(seed), "10 is the seed of the paper"))

    order = torch.from_numpy(np.random.RandomState(int(seed)).permutation(n)).long()
    return order[n // 10 :], order[: n // 10]


def labelled_subset(labels: Tensor, fraction: float, *, seed: int) -> Tensor:
    """Return the sorted indices of a random subset of images to keep labels for, with equally many of each class.

    Args:
        labels: classes of the images, int64 ``[N]`` on any device, with C different values, N at least 1.
        fraction: of the N images, in (0, 1]; round(fraction * N / C) of each class are chosen, and 1 chooses all.
        seed: of the choice, at least 0. Subsets of different fractions are unrelated.

    Raises:
        ValueError: a number or a shape out of range, or no image of a class, or more than the smallest class has.
        TypeError: an argument has the wrong type.

    Example:
        >>> labels = torch.arange(100) % 5
        >>> labels[labelled_subset(labels, 0.1, seed=0)].bincount()
        tensor([2, 2, 2, 2, 2])
    """
    owner = "labelled_subset"
    check_row(owner, "labels", labels, remedy=_REMEDY)
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


def interleave(groups: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Return a random permutation of 0 to N - 1 in which any consecutive elements hold each group in proportion.

    The elements of a group have random order; element r of n, counted from 0, is placed at (r + 1/2) / n of the length.
    If s is the share of a group among all elements, and there are G groups, any L consecutive elements hold L s of it,
    up to a difference of 1 + (G - 2) s: with two groups, at most one. Consecutive batches of B are exact if B s is a
    whole number for every group: of 4,500 labelled and 40,500 others, every 250 have 25 labelled.

    Args:
        groups: group of each element, any int64 numbers ``[N]`` on any device; the result is on the same device.
        generator: source of randomness on the CPU; by default the global one.

    Raises:
        ValueError: ``groups`` is empty or not one-dimensional, or ``generator`` is on another device.
        TypeError: an argument has the wrong type.

    Example:
        >>> groups = torch.tensor([1] * 3 + [0] * 27)
        >>> groups[interleave(groups)].view(3, 10).sum(1)
        tensor([1, 1, 1])
    """
    check_row("interleave", "groups", groups, remedy=_REMEDY)
    check_generator("interleave", generator, torch.device("cpu"))
    shuffled = torch.randperm(len(groups), generator=generator)
    _, which, sizes = torch.unique(groups.cpu()[shuffled], return_inverse=True, return_counts=True)
    by_group = which.argsort(stable=True)
    rank = torch.empty_like(which)
    rank[by_group] = torch.arange(len(which)) - (sizes.cumsum(0) - sizes).repeat_interleave(sizes)
    place = (rank.double() + 0.5) / sizes[which]
    # Equal fractions are equal in floating point too. A second random order breaks these ties: the first one, which
    # the ranks follow, would favour one group for long stretches.
    among_equals = torch.randperm(len(groups), generator=generator)
    return shuffled[among_equals][place[among_equals].argsort(stable=True)].to(groups.device)
