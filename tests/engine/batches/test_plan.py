"""Which samples each step sees."""

import re

import pytest
import torch

from advcontrast.engine import steps_per_epoch
from advcontrast.engine.batches import Plan
from tests.engine.learners import scramble

CPU = torch.device("cpu")


def plan(samples=22, batch_size=8, seed=0, groups=None):
    return Plan(samples=samples, batch_size=batch_size, seed=seed, groups=groups)


@pytest.mark.parametrize(
    ("samples", "sizes"),
    [(16, [8, 8]), (17, [8, 8, 8]), (23, [8, 8, 8]), (8, [8]), (9, [8, 8]), (7, [7]), (2, [2]), (1, [1])],
)
def test_all_batches_have_one_size(samples, sizes):
    ours = plan(samples)
    assert [len(batch) for batch in ours.batches(0, CPU)] == sizes
    assert ours.steps == len(sizes)


@pytest.mark.parametrize("groups", [None, torch.arange(22) % 3])
def test_every_sample_is_seen_in_every_epoch_and_the_first_ones_again_to_fill_the_last_batch(groups):
    for epoch in range(3):
        seen = torch.cat([*plan(groups=groups).batches(epoch, CPU)])
        assert seen[:22].sort().values.tolist() == list(range(22))
        assert torch.equal(seen[22:], seen[:2])


@pytest.mark.parametrize("samples", [8, 9, 15, 16, 17, 31])
def test_no_batch_holds_a_sample_twice(samples):
    for batch in plan(samples).batches(0, CPU):
        assert len(set(batch.tolist())) == len(batch)


def test_samples_that_fill_the_last_batch_differ_between_epochs():
    fillings = {tuple([*plan(17).batches(epoch, CPU)][-1][1:].tolist()) for epoch in range(20)}
    assert len(fillings) == 20


@pytest.mark.parametrize("groups", [None, torch.arange(22) % 3])
def test_every_epoch_and_every_seed_has_an_order_of_its_own(groups):
    orders = {tuple(plan(seed=seed, groups=groups).order(epoch).tolist()) for seed in range(10) for epoch in range(10)}
    assert len(orders) == 100


@pytest.mark.parametrize("groups", [None, torch.arange(22) % 3])
def test_order_depends_on_nothing_but_seed_and_epoch(groups):
    ours, other = plan(groups=groups), plan(groups=groups)
    expected = ours.order(5)
    scramble(1)
    before = torch.get_rng_state()
    for epoch in (7, 5):
        order = other.order(epoch)
    assert torch.equal(order, expected)
    assert torch.equal(torch.get_rng_state(), before)


def test_order_is_the_same_for_any_batch_size():
    assert torch.equal(
        torch.cat([*plan(batch_size=4).batches(2, CPU)])[:22], torch.cat([*plan(batch_size=11).batches(2, CPU)])
    )


@pytest.mark.parametrize("seed", [2**31 - 1, 2**31, 2**63, 10**30])
def test_large_seeds_work(seed):
    assert plan(seed=seed).order(10**6).sort().values.tolist() == list(range(22))


@pytest.mark.parametrize("skip", [0, 1, 2, 3])
def test_skipping_leaves_the_later_batches_as_they_are(skip):
    expected = [batch.tolist() for batch in plan().batches(1, CPU)][skip:]
    assert [batch.tolist() for batch in plan().batches(1, CPU, skip=skip)] == expected


def test_every_batch_has_its_share_of_every_group():
    groups = torch.tensor([0] * 5 + [1] * 15)
    for epoch in range(10):
        for batch in Plan(samples=20, batch_size=4, seed=0, groups=groups).batches(epoch, CPU):
            assert groups[batch].bincount().tolist() == [1, 3]


@pytest.fixture
def shared(monkeypatch):
    """Return a function that gives the batches of each of some processes."""

    def batches(world, ours, **settings):
        monkeypatch.setattr("advcontrast.distributed.world_size", lambda: world)
        shares = []
        for rank in range(world):
            monkeypatch.setattr("advcontrast.distributed.rank", lambda rank=rank: rank)
            shares.append([batch.tolist() for batch in ours.batches(1, CPU, **settings)])
        return shares

    return batches


@pytest.mark.parametrize("world", [2, 3, 4, 6, 12])
@pytest.mark.parametrize("samples", range(12, 40))
def test_any_number_of_processes_shares_the_batches_of_one(shared, samples, world):
    ours = plan(samples, batch_size=12)
    (whole,) = shared(1, ours)
    shares = shared(world, ours)
    assert {len(batch) for share in shares for batch in share} == {12 // world}
    # The first sample of a batch is the first of the first process, the second that of the second, and so on.
    assert [[rank[i] for i in range(12 // world) for rank in step] for step in zip(*shares, strict=True)] == whole


@pytest.mark.parametrize("world", [2, 4])
def test_steps_do_not_depend_on_the_number_of_processes(shared, world):
    for samples in range(8, 40):
        expected = steps_per_epoch(samples, 8)
        assert {len(share) for share in shared(world, plan(samples))} == {expected}
        assert steps_per_epoch(samples, 8) == expected  # the fixture left the number of processes as it is


def test_skipped_steps_are_the_same_for_any_number_of_processes(shared):
    assert [len(share) for share in shared(4, plan(), skip=2)] == [1] * 4
    rest = {sample for share in shared(4, plan(), skip=2) for sample in share[0]}
    assert rest == set(shared(1, plan(), skip=2)[0][0])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 4), "samples to be an int >= 1"),
        ((-3, 4), "samples to be an int >= 1"),
        ((4, 0), "batch_size to be an int >= 1"),
    ],
)
def test_numbers_below_one_are_refused(arguments, message):
    with pytest.raises(ValueError, match=re.escape(f"steps_per_epoch: expected {message}")):
        steps_per_epoch(*arguments)


@pytest.mark.parametrize("arguments", [(4.0, 4), (4, "4"), (None, 4), (4, True)])
def test_other_than_ints_are_refused(arguments):
    with pytest.raises(TypeError, match=r"^steps_per_epoch: expected (samples|batch_size) to be an int >= 1"):
        steps_per_epoch(*arguments)
