"""Two processes train like one."""

import signal

import pytest
import torch
import torch.distributed as dist

from advcontrast.engine import Checkpoint
from advcontrast.optim import EMA
from tests.engine.learners import (
    Halving,
    Interrupted,
    Noisy,
    Separable,
    acl,
    images,
    labelled,
    same,
    scramble,
    sgd,
    timeless,
    train,
    weights,
)
from tests.ranks import WORLD_SIZE

pytestmark = pytest.mark.distributed
TOLERANCE = 1e-12  # float64

LEARNERS = {
    "DS": acl,
    "S2S": lambda: acl("S2S"),
    "A2S": lambda: acl("A2S"),
    "noisy": Noisy,
}


def plain(tree):
    """Return tensors as lists, which cross a pipe without shared memory."""
    if isinstance(tree, torch.Tensor):
        return tree.tolist()
    if isinstance(tree, dict):
        return {key: plain(value) for key, value in tree.items()}
    return [plain(value) for value in tree] if isinstance(tree, (list, tuple)) else tree


def parameters(learner):
    """Return the weights alone; each process has running statistics of its own."""
    return {name: parameter.tolist() for name, parameter in learner.named_parameters()}


def data_of(learner, n=22):
    return labelled(n) if isinstance(learner, Separable) else images(n)


def separable_on_a_rank(n, settings):
    learner = Separable()
    history = train(learner, labelled(n), **settings)
    return parameters(learner), learner.seen, timeless(history)


@pytest.mark.parametrize(
    ("n", "settings"),
    [(22, {}), (20, {}), (17, {}), (6, {}), (22, {"accumulate": 2}), (21, {"accumulate": 3}), (24, {"batch_size": 4})],
)
def test_two_processes_equal_one(ranks, n, settings):
    learner = Separable()
    expected = timeless(train(learner, labelled(n), **settings))
    for ours, _, history in ranks.run(separable_on_a_rank, n, settings):
        for name, parameter in learner.named_parameters():
            actual = torch.tensor(ours[name], dtype=torch.float64)
            torch.testing.assert_close(actual, parameter.detach(), rtol=TOLERANCE, atol=TOLERANCE)
        for row, other in zip(history, expected, strict=True):
            assert row == pytest.approx(other, rel=1e-6)


def test_two_processes_see_the_samples_of_one_each_once(ranks):
    learner = Separable()
    train(learner)
    (_, ours, _), (_, theirs, _) = ranks.run(separable_on_a_rank, 22, {})
    assert [len(batch) for batch in ours] == [len(batch) for batch in theirs] == [4] * 6
    assert [sorted(mine + other) for mine, other in zip(ours, theirs, strict=True)] == [*map(sorted, learner.seen)]


def trained_on_a_rank(name, folder, stop, settings):
    """Train, cut off before step ``stop`` if there is one, then resumed with other random numbers."""
    scramble(dist.get_rank())
    learner = LEARNERS[name]()
    ema = EMA(learner.model, decay=0.9)
    if stop is not None:
        with pytest.raises(Interrupted):
            train(learner, data_of(learner), schedule=Halving(stop), ema=ema, folder=folder, save_every=1, **settings)
        scramble(10 + dist.get_rank())
        learner = LEARNERS[name]()
        ema = EMA(learner.model, decay=0.9)
    history = train(learner, data_of(learner), ema=ema, folder=folder, **settings)
    random = torch.rand(4).tolist()
    return {
        "weights": parameters(learner),
        "ema": parameters(ema.model),
        "history": timeless(history),
        "random": random,
    }


@pytest.mark.parametrize("name", LEARNERS)
def test_both_processes_have_the_same_weights_and_history(ranks, name):
    ours, theirs = ranks.run(trained_on_a_rank, name, None, None, {})
    assert ours["weights"] == theirs["weights"]
    assert ours["ema"] == theirs["ema"]
    assert ours["history"] == theirs["history"]
    assert ours["random"] != theirs["random"]


@pytest.mark.parametrize("stop", [1, 3, 5])
@pytest.mark.parametrize("name", ["DS", "noisy"])
@pytest.mark.sample(3)
def test_resumed_by_two_processes_equals_uninterrupted(ranks, tmp_path, name, stop):
    expected = ranks.run(trained_on_a_rank, name, None, None, {})
    resumed = ranks.run(trained_on_a_rank, name, str(tmp_path), stop, {})
    for ours, theirs in zip(resumed, expected, strict=True):
        assert {key for key in theirs if ours[key] != theirs[key]} == set()


def saves_on_a_rank(folder):
    saved = []
    real = Checkpoint.save
    Checkpoint.save = lambda self, step, state: saved.append(step) or real(self, step, state)
    try:
        train(Noisy(), folder=folder, save_every=2)
    finally:
        Checkpoint.save = real
    return saved


def test_checkpoints_are_written_once_and_hold_the_generators_of_both(ranks, tmp_path):
    assert ranks.run(saves_on_a_rank, str(tmp_path)) == [[2, 3, 4, 6], []]
    _, state = Checkpoint(tmp_path / "checkpoints").load()
    assert len(state["random"]) == WORLD_SIZE
    assert not same(state["random"][0]["torch"], state["random"][1]["torch"])
    assert (tmp_path / "metrics.csv").read_text().count("\n") == 3


def test_run_of_two_processes_goes_on_in_one(ranks, tmp_path, monkeypatch):
    with pytest.raises(AssertionError, match="Interrupted"):
        ranks.run(interrupted_on_a_rank, str(tmp_path))
    learner, expected = Separable(), Separable()
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)  # as they had
    with pytest.warns(UserWarning, match=r"expected as many processes as before, got 1 instead of 2. "):
        train(learner, folder=tmp_path)
    train(expected)
    for name, value in weights(expected).items():
        torch.testing.assert_close(weights(learner)[name], value, rtol=TOLERANCE, atol=TOLERANCE)


def interrupted_on_a_rank(folder):
    train(Separable(), schedule=Halving(4), folder=folder, save_every=4)


def evaluated_on_a_rank():
    """Train with a metric that depends on the running statistics, of which each process has its own."""
    learner = Noisy()
    statistics = learner.model[1].running_mean
    history = train(learner, evaluate=lambda epoch: {"score": float(statistics.sum())}, select="score")
    return timeless(history), plain(weights(learner))


def test_both_processes_select_the_same_weights(ranks):
    (ours, mine), (theirs, other) = ranks.run(evaluated_on_a_rank)
    assert ours == theirs
    assert mine == other


def asked_on_a_rank(folder, asked, step):
    """Train for an epoch of 25 steps; SIGTERM comes to one process alone, in the middle of a step."""

    class Signalled(Separable):
        def forward(self, *batch):
            if len(self.seen) == step - 1 and dist.get_rank() == asked:
                signal.raise_signal(signal.SIGTERM)
            return super().forward(*batch)

    learner = Signalled()
    try:
        train(learner, labelled(100), epochs=1, batch_size=4, folder=folder)
    except SystemExit as end:
        return end.code, len(learner.seen)
    return "finished", len(learner.seen)


@pytest.mark.parametrize("asked", range(WORLD_SIZE))
@pytest.mark.parametrize(("step", "last"), [(5, 16), (16, 16), (17, 25), (25, 25)])
def test_all_processes_end_together_where_one_is_asked_to(ranks, tmp_path, asked, step, last):
    assert ranks.run(asked_on_a_rank, str(tmp_path), asked, step) == [(0, last)] * WORLD_SIZE
    assert Checkpoint(tmp_path / "checkpoints").steps() == [last]


def refused_on_a_rank(settings, n):
    train(Separable(), labelled(n), **settings)


@pytest.mark.parametrize(
    ("settings", "n", "message"),
    [
        (
            {"batch_size": 3},
            22,
            "fit: expected batch_size to be an int >= 4",
        ),
        (
            {"batch_size": 5},
            22,
            "fit: expected batch_size to be a multiple of 2 processes",
        ),
        (
            {},
            7,
            "fit: expected a batch that 2 processes can share equally",
        ),
        ({}, 3, "fit: expected data of one length, at least 4"),
    ],
)
def test_two_samples_a_process_are_the_least_and_all_have_as_many(ranks, settings, n, message):
    for text in ranks.errors(refused_on_a_rank, settings, n):
        assert message in text


def optimizer_on_a_rank(folder):
    learner = acl()
    optimizer = sgd(learner)
    train(learner, images(), optimizer=optimizer, folder=folder)
    return plain(optimizer.state_dict()["state"])


def test_both_processes_have_the_same_momentum(ranks, tmp_path):
    ours, theirs = ranks.run(optimizer_on_a_rank, str(tmp_path))
    assert ours
    assert ours == theirs
