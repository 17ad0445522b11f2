"""``fit(select_data=)``: epochs on some of the samples."""

from itertools import chain

import pytest
import torch
from torch import nn

from advcontrast import fit
from advcontrast.engine import CheckpointError, DataReader
from tests.engine.learners import seeded

DATA = torch.arange(24.0)[:, None]


class Noting(nn.Module):
    """A learner that notes the samples of each step, and has noise of its own."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))
        self.seen = []

    def forward(self, x):
        self.seen.append(sorted(x.flatten().int().tolist()))
        return (self.weight * torch.rand_like(x) * x).mean(), {}


def thirds(epoch, learner):
    """Select a third of the samples, by chance and by the weights; all of them in epoch 3."""
    if epoch == 3:
        return None
    assert len(torch.rand(5)) == 5  # random numbers of its own
    start = epoch - 1 + (8 if learner.weight < 0 else 0)
    return torch.arange(start, start + 8)


class Stopped(Exception):
    """The run was interrupted."""


def run(folder=None, *, stop=None, data=DATA, select_data=thirds, batch_size=4, **settings):
    learner = Noting()

    def schedule(step):
        if step == stop:
            raise Stopped
        return 1.0

    history = fit(
        learner,
        data,
        epochs=4,
        batch_size=batch_size,
        optimizer=torch.optim.SGD(learner.parameters(), lr=0.1, momentum=0.9),
        schedule=schedule,
        select_data=select_data,
        folder=folder,
        save_every=None if folder is None else 1,
        **settings,
    )
    return learner, history


def test_an_epoch_takes_the_selected_samples():
    learner, history = seeded(run)
    assert [row["step"] for row in history] == [2, 4, 10, 12]
    epochs = learner.seen[:2], learner.seen[2:4], learner.seen[4:10], learner.seen[10:]
    assert [sorted(chain.from_iterable(steps)) for steps in epochs] == [
        [*range(8)],
        [*range(9, 17)],
        [*range(24)],
        [*range(11, 19)],
    ]


@pytest.mark.parametrize("stop", range(1, 12))
@pytest.mark.sample(5)
def test_a_run_that_is_interrupted_ends_with_the_same_bits(tmp_path, stop):
    whole, _ = seeded(run)
    with pytest.raises(Stopped):
        seeded(lambda: run(tmp_path, stop=stop))
    rest, history = seeded(lambda: run(tmp_path), seed=1)
    assert torch.equal(rest.weight, whole.weight)
    assert rest.seen == whole.seen[stop:]
    assert [row["step"] for row in history] == [2, 4, 10, 12]


def test_a_data_set_that_is_read_gives_the_same_batches():
    data = DataReader(torch.utils.data.TensorDataset(DATA), workers=1)
    assert seeded(lambda: run(data=data))[0].seen == seeded(run)[0].seen


def test_groups_are_those_of_the_selected_samples():
    groups = torch.arange(24) % 2
    learner, _ = seeded(lambda: run(groups=groups))
    assert all(sum(sample % 2 for sample in step) == 2 for step in learner.seen)


def test_a_selection_draws_no_numbers_of_the_training():
    def silent(epoch, learner):
        return torch.arange(8)

    def drawing(epoch, learner):
        torch.rand(3)
        return torch.arange(8)

    weights = [seeded(lambda: run(select_data=select))[0].weight for select in (silent, drawing)]  # noqa: B023
    assert torch.equal(*weights)


@pytest.mark.parametrize(
    ("chosen", "error", "match"),
    [
        (torch.arange(4.0), TypeError, "select_data to return int64 indices"),
        (torch.arange(1), ValueError, "select_data to return at least 2 indices"),
        (torch.zeros(2, 2, dtype=torch.int64), ValueError, "select_data to return at least 2 indices"),
        (torch.tensor([0, 24]), ValueError, "the indices of select_data within bounds"),
    ],
)
def test_wrong_selections(chosen, error, match):
    learner = Noting()
    with pytest.raises(error, match=f"^fit: expected {match}"):
        fit(learner, DATA, epochs=1, batch_size=4, schedule=1.0, select_data=lambda *_: chosen)
    assert learner.weight == 0
    assert not learner.seen


def test_the_number_of_steps_is_not_known_before():
    with pytest.raises(ValueError, match=r"^fit: expected a schedule with select_data"):
        fit(Noting(), DATA, epochs=1, select_data=thirds)


def test_another_selection_is_another_run(tmp_path):
    with pytest.raises(Stopped):
        seeded(lambda: run(tmp_path, stop=3))
    with pytest.raises(CheckpointError, match="select_data"):
        run(tmp_path, select_data=None)


def select_on_a_rank(folder):
    learner, history = run(folder, batch_size=8)
    return learner.weight.item(), [row["step"] for row in history], learner.seen


@pytest.mark.distributed
def test_processes_share_the_selection_of_the_first(ranks, tmp_path):
    (weight, steps, seen), (other, _, rest) = ranks.run(select_on_a_rank, tmp_path)
    assert weight == other
    assert steps == [1, 2, 5, 6]
    assert sorted(seen[0] + rest[0]) == [*range(8)]
