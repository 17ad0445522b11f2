"""Which samples each step sees."""

import pytest
import torch

from advcontrast.engine.sampling import Plan
from tests.engine.learners import scramble

CPU = torch.device("cpu")


def plan(samples=22, batch_size=8, seed=0, groups=None):
    return Plan(samples=samples, batch_size=batch_size, seed=seed, groups=groups)


@pytest.mark.parametrize(
    ("samples", "sizes"),
    [(16, [8, 8]), (17, [8, 8]), (18, [8, 8, 2]), (23, [8, 8, 7]), (8, [8]), (9, [8]), (7, [7]), (2, [2])],
)
def test_last_batch_is_shorter_and_a_rest_of_one_is_left_out(samples, sizes):
    ours = plan(samples)
    assert [len(batch) for batch in ours.batches(0, CPU)] == sizes
    assert ours.steps == len(sizes)


@pytest.mark.parametrize("groups", [None, torch.arange(22) % 3])
def test_every_sample_is_seen_once_an_epoch(groups):
    for epoch in range(3):
        seen = torch.cat([*plan(groups=groups).batches(epoch, CPU)])
        assert seen.sort().values.tolist() == list(range(22))


def test_what_is_left_out_differs_between_epochs():
    left_out = {(set(range(17)) - {*torch.cat([*plan(17).batches(epoch, CPU)]).tolist()}).pop() for epoch in range(20)}
    assert len(left_out) > 5


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
        torch.cat([*plan(batch_size=4).batches(2, CPU)]), torch.cat([*plan(batch_size=11).batches(2, CPU)])
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


@pytest.mark.parametrize("samples", [16, 17, 18, 19, 20, 22, 23])
def test_shares_of_several_processes_are_equal_disjoint_and_make_the_batch(monkeypatch, samples):
    whole = [set(batch.tolist()) for batch in plan(samples).batches(0, CPU)]
    monkeypatch.setattr("advcontrast.distributed.world_size", lambda: 2)
    shares = []
    for rank in range(2):
        monkeypatch.setattr("advcontrast.distributed.rank", lambda rank=rank: rank)
        shares.append([batch.tolist() for batch in plan(samples).batches(0, CPU)])
        assert len(shares[rank]) == plan(samples).steps
    rest = samples % 8
    assert len(shares[0]) == samples // 8 + (rest >= 4)
    for ours, theirs, all_of_it in zip(*shares, whole, strict=False):
        assert len(ours) == len(theirs) >= 2
        assert not set(ours) & set(theirs)
        assert {*ours, *theirs} <= all_of_it
        assert len(ours) == len(all_of_it) // 2
