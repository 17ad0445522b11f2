"""Splits, labelled subsets and the order of mixed batches."""

import re

import numpy as np
import pytest
import torch

from advcontrast.data import interleave, labelled_subset, train_validation_split


@pytest.mark.parametrize("seed", [0, 10, 2**32 - 1])
def test_split_is_a_permutation_of_numpy(seed):
    order = torch.from_numpy(np.random.RandomState(seed).permutation(200))
    train, validation = train_validation_split(200, seed=seed)
    assert torch.equal(torch.cat([validation, train]), order)


def test_split_of_cifar_is_that_of_the_paper():
    train, validation = train_validation_split(50_000)
    assert (train.dtype, len(train), len(validation)) == (torch.int64, 45_000, 5_000)
    assert validation[:4].tolist() == [27632, 36119, 4796, 3648]
    assert train[-4:].tolist() == [28017, 29199, 40061, 17673]


@pytest.mark.parametrize(("n", "validation"), [(10, 1), (19, 1), (20, 2), (101, 10)])
def test_a_tenth_rounded_down_is_for_validation(n, validation):
    train, held_out = train_validation_split(n)
    assert (len(train), len(held_out)) == (n - validation, validation)


def test_split_holds_every_index_once():
    assert torch.equal(torch.cat(train_validation_split(123)).sort().values, torch.arange(123))


def test_seed_decides_on_the_split():
    assert torch.equal(train_validation_split(100, seed=10)[0], train_validation_split(100)[0])
    assert not torch.equal(train_validation_split(100, seed=11)[0], train_validation_split(100)[0])


def test_split_leaves_the_global_generators_alone():
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()
    train_validation_split(100)
    labelled_subset(torch.arange(100) % 5, 0.1, seed=0)
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert (np.random.get_state()[1] == numpy_state).all()


@pytest.mark.parametrize(
    ("n", "seed", "error", "message"),
    [
        (9, 10, ValueError, "expected n to be"),
        (50.0, 10, TypeError, "expected n to be"),
        (50, -1, ValueError, "expected seed to be"),
        (50, 2**32, ValueError, "expected seed to be"),
        (50, None, TypeError, "expected seed to be"),
    ],
)
def test_wrong_split(n, seed, error, message):
    with pytest.raises(error, match=re.escape(f"train_validation_split: {message}")):
        train_validation_split(n, seed=seed)


UNEVEN = torch.tensor([2] * 40 + [0] * 30 + [7] * 50)[torch.randperm(120, generator=torch.Generator().manual_seed(3))]


@pytest.mark.parametrize(("fraction", "each"), [(0.01, 45), (0.1, 450)])
def test_fractions_of_the_paper_hold_as_many_of_each_class(fraction, each):
    labels = torch.arange(45_000) % 10
    assert labels[labelled_subset(labels, fraction, seed=0)].bincount().tolist() == [each] * 10


def test_classes_of_different_size_give_as_many_each():
    assert UNEVEN[labelled_subset(UNEVEN, 0.5, seed=0)].unique(return_counts=True)[1].tolist() == [20, 20, 20]


def test_number_of_each_class_is_rounded():
    labels = torch.arange(100) % 3
    assert len(labelled_subset(labels, 0.05, seed=0)) == 3 * 2


def test_smallest_class_can_be_taken_whole():
    assert len(labelled_subset(UNEVEN, 0.75, seed=0)) == 90


def test_labelled_indices_increase():
    chosen = labelled_subset(UNEVEN, 0.5, seed=0)
    assert (chosen.diff() > 0).all()


def test_all_labels_are_everything_whatever_the_classes():
    assert torch.equal(labelled_subset(UNEVEN, 1, seed=0), torch.arange(120))


def test_same_seed_chooses_the_same_images():
    first = labelled_subset(UNEVEN, 0.1, seed=5)
    torch.rand(3)
    assert torch.equal(labelled_subset(UNEVEN, 0.1, seed=5), first)
    assert not torch.equal(labelled_subset(UNEVEN, 0.1, seed=6), first)


def test_every_image_can_be_chosen():
    labels = torch.arange(20) % 2
    chosen = torch.cat([labelled_subset(labels, 0.2, seed=seed) for seed in range(100)])
    assert (chosen.bincount(minlength=20) >= 5).all()


@pytest.mark.parametrize(
    ("labels", "fraction", "seed", "error", "message"),
    [
        (UNEVEN, 0.01, 0, ValueError, "expected 1 to 30 images of each class, as many as the smallest has"),
        (UNEVEN, 0.8, 0, ValueError, "expected 1 to 30 images of each class, as many as the smallest has"),
        (UNEVEN, 0, 0, ValueError, "expected fraction to be"),
        (UNEVEN, 10, 0, ValueError, "expected fraction to be"),
        (UNEVEN, "1", 0, TypeError, "expected fraction to be"),
        (UNEVEN, 0.1, -1, ValueError, "expected seed to be"),
        (UNEVEN, 0.1, 0.5, TypeError, "expected seed to be"),
        (UNEVEN.float(), 0.1, 0, TypeError, "expected labels to be"),
        (UNEVEN[:, None], 0.1, 0, ValueError, "expected labels of shape"),
        (UNEVEN[:0], 0.1, 0, ValueError, "expected labels of shape"),
    ],
)
def test_wrong_subset(labels, fraction, seed, error, message):
    with pytest.raises(error, match=re.escape(f"labelled_subset: {message}")):
        labelled_subset(labels, fraction, seed=seed)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(("labelled", "batch", "each"), [(4500, 250, 25), (450, 200, 2)])
def test_every_batch_of_the_paper_holds_its_share_of_labels_exactly(labelled, batch, each):
    groups = (torch.arange(45_000) < labelled).long()
    order = interleave(groups, generator())
    assert (groups[order].view(-1, batch).sum(1) == each).all()


@pytest.mark.parametrize("seed", range(12))
def test_every_beginning_and_every_stretch_hold_their_share_of_each_group(seed):
    sizes = torch.randint(1, 30, (1 + seed % 6,), generator=generator(seed))
    groups = torch.arange(len(sizes)).repeat_interleave(sizes)
    n = len(groups)
    mixed = groups[interleave(groups, generator(seed))]
    for group, size in enumerate(sizes.tolist()):
        # Up to any place a group is off by at most 1/2, and so are the others, which move the place.
        bound = 1 / 2 + (len(sizes) - 2) / 2 * size / n
        excess = torch.cat([torch.zeros(1), (mixed == group).cumsum(0)]).double() - torch.arange(n + 1) * size / n
        assert excess.abs().max() <= bound + 1e-5
        assert excess.max() - excess.min() <= 2 * bound + 1e-5


def test_order_holds_every_index_once():
    order = interleave(UNEVEN, generator())
    assert order.dtype == torch.int64
    assert torch.equal(order.sort().values, torch.arange(120))


def test_one_group_gives_any_permutation():
    orders = {tuple(interleave(torch.zeros(3, dtype=torch.int64), generator(seed)).tolist()) for seed in range(60)}
    assert len(orders) == 6


def test_elements_of_a_group_come_in_random_order():
    firsts = {interleave(UNEVEN, generator(seed))[0].item() for seed in range(40)}
    assert len(firsts) > 20


def test_groups_of_equal_size_take_turns_in_random_order():
    groups = torch.arange(2).repeat_interleave(500)
    mixed = groups[interleave(groups, generator())].view(500, 2)
    assert torch.equal(mixed.sum(1), torch.ones(500, dtype=torch.int64))
    assert 200 < mixed[:, 0].sum() < 300


def test_generator_decides_on_the_order():
    first = interleave(UNEVEN, generator(1))
    torch.rand(3)
    assert torch.equal(interleave(UNEVEN, generator(1)), first)
    assert not torch.equal(interleave(UNEVEN, generator(2)), first)


def test_given_generator_leaves_the_global_one_alone():
    state = torch.get_rng_state()
    interleave(UNEVEN, generator())
    assert torch.equal(torch.get_rng_state(), state)


def test_without_a_generator_the_global_one_draws():
    torch.manual_seed(4)
    order = interleave(UNEVEN)
    assert torch.equal(order, interleave(UNEVEN, generator(4)))


@pytest.mark.parametrize(
    ("groups", "source", "error", "message"),
    [
        (UNEVEN.bool(), None, TypeError, "expected groups to be"),
        (UNEVEN[:0], None, ValueError, "expected groups of shape"),
        (UNEVEN, 3, TypeError, "expected generator to be"),
    ],
)
def test_wrong_groups(groups, source, error, message):
    with pytest.raises(error, match=re.escape(f"interleave: {message}")):
        interleave(groups, source)
