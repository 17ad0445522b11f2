"""The epoch whose weights a run ends with."""

import pytest
import torch

from advcontrast.optim import EMA
from tests.engine.learners import Separable, same, train, weights


def test_finished_run_leaves_the_selected_weights(tmp_path):
    first, again = Separable(), Separable()
    kept = []

    def score(epoch):
        kept.append(weights(first))
        return {"score": -epoch}

    for learner in (first, again):
        train(learner, evaluate=score, select="score", folder=tmp_path)
    assert len(kept) == 2
    assert not same(kept[0], kept[1])
    assert same(weights(first), kept[0])
    assert same(weights(again), kept[0])


def test_selected_is_the_first_of_equal_epochs():
    learner, kept = Separable(), []

    def score(epoch):
        kept.append(weights(learner))
        return {"score": 1.0}

    train(learner, evaluate=score, select="score")
    assert same(weights(learner), kept[0])


def test_selected_by_a_term_of_the_learner():
    best, last = Separable(), Separable()
    history = train(best, select="lr")
    train(last)
    assert history[0]["lr"] > history[1]["lr"]
    assert not same(weights(best), weights(last))


def test_the_average_goes_back_to_the_selected_epoch_too(tmp_path):
    learner = Separable()
    ema, kept = EMA(learner.model, 0.5), {}

    def score(epoch):
        kept[epoch] = {name: value.clone() for name, value in ema.model.state_dict().items()}
        return {"score": -epoch}

    for run, average in ((learner, ema), (again := Separable(), EMA(again.model, 0.5))):
        train(run, evaluate=score, select="score", ema=average, folder=tmp_path)
        assert all(torch.equal(value, kept[1][name]) for name, value in average.model.state_dict().items())
    assert not all(torch.equal(kept[1][name], kept[2][name]) for name in kept[1])


@pytest.mark.parametrize("name", ["test", "test_ra", "ra/test", "Test accuracy"])
def test_selecting_on_the_test_split_is_refused_before_anything_runs(name):
    learner = Separable()
    before = weights(learner)
    with pytest.raises(ValueError, match="fit: expected a metric of validation images to select by"):
        train(learner, evaluate=lambda epoch: {name: 1.0}, select=name)
    assert same(weights(learner), before)


@pytest.mark.parametrize("name", ["contestants", "latest", "val_ra"])
def test_names_that_only_contain_the_letters_are_not_refused(name):
    train(Separable(), evaluate=lambda epoch: {name: 1.0}, select=name)
