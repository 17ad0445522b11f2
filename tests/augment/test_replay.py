"""The same views several times in a row."""

import re

import pytest
import torch

from advcontrast import ContrastivePairAugment
from advcontrast.augment import Replay
from tests.engine.learners import acl, images, same, train


def pair(x):
    return x, x + 1


def test_views_come_so_many_times_and_then_new_ones():
    replay = Replay(pair, times=3)
    assert [replay(torch.tensor([i]))[1].item() for i in range(7)] == [1, 1, 1, 4, 4, 4, 7]


def test_an_evaluation_has_views_of_its_own():
    replay = Replay(pair, times=3)
    found = []
    for i, training in enumerate((True, False, True, False, True, True)):
        found.append(replay.train(training)(torch.tensor([i]))[1].item())
    assert found == [1, 2, 1, 4, 1, 6]


def test_once_changes_nothing():
    x = torch.rand(4, 3, 8, 8)
    ours, plain = (
        augment(x, torch.Generator().manual_seed(0))
        for augment in (Replay(ContrastivePairAugment(8), times=1), ContrastivePairAugment(8))
    )
    assert same(ours, plain)


def test_randomness_is_drawn_for_new_views_only():
    replay, x, generator = Replay(ContrastivePairAugment(8), times=2), torch.rand(4, 3, 8, 8), torch.Generator()
    replay(x, generator)
    before = generator.get_state()
    replay(x, generator)
    assert torch.equal(generator.get_state(), before)


def test_views_that_will_not_be_replayed_are_not_kept():
    replay = Replay(pair, times=2)
    states = []
    for _ in range(4):
        replay(torch.rand(4))
        states.append(replay.get_extra_state()["views"] is not None)
    assert states == [True, False, True, False]


def test_a_state_without_views_makes_new_ones():
    replay, fresh = Replay(pair, times=1), Replay(pair, times=1)
    replay(torch.tensor([1.0]))
    fresh.load_state_dict(replay.state_dict())
    assert fresh(torch.tensor([9.0]))[0].item() == 9.0


def test_views_to_replay_travel_in_the_state_dict():
    replay, fresh = Replay(pair, times=2), Replay(pair, times=2)
    replay(torch.tensor([1.0]))
    fresh.load_state_dict(replay.state_dict())
    assert [fresh(torch.tensor([9.0]))[0].item() for _ in range(2)] == [1.0, 9.0]


def test_training_uses_every_second_batch(tmp_path):
    def batches(times):
        seen = []

        def augment(x):
            seen.append(x.clone())
            return ContrastivePairAugment(8)(x)

        train(acl(augment=Replay(augment, times=times)), images(), folder=tmp_path / str(times))
        return seen

    every, second = batches(1), batches(2)
    assert [len(batch) for batch in every] == [8] * 6
    assert same(second, every[::2])


def test_resumed_training_goes_on_with_the_views_at_hand(tmp_path):
    def run(epochs, folder, seed):
        learner = acl(augment=Replay(ContrastivePairAugment(8), times=2))
        torch.manual_seed(seed)
        train(learner, images(), epochs=epochs, folder=folder, schedule=Flat(), save_every=1)
        return learner.state_dict()

    whole = run(2, tmp_path / "whole", 0)
    learner = acl(augment=Replay(ContrastivePairAugment(8), times=2))
    torch.manual_seed(0)
    with pytest.raises(KeyboardInterrupt):
        train(learner, images(), folder=tmp_path / "cut", schedule=Flat(3), save_every=1)
    assert same(run(2, tmp_path / "cut", 9), whole)


class Flat:
    def __init__(self, stop=None):
        self.stop = stop

    def __repr__(self):
        return "Flat()"

    def __call__(self, step):
        if step == self.stop:
            raise KeyboardInterrupt
        return 1.0


def test_other_types_than_callables_are_refused():
    text = "Replay: expected augment to be"
    with pytest.raises(TypeError, match=re.escape(text)):
        Replay(5, times=2)


@pytest.mark.parametrize(("times", "kind"), [(0, ValueError), (1.5, TypeError), (True, TypeError)])
def test_times_must_be_a_number_of_times(times, kind):
    with pytest.raises(kind, match=re.escape("Replay: expected times to be an int >= 1, got")):
        Replay(pair, times=times)
