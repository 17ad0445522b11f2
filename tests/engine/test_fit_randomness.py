"""Random numbers that a run draws, and random states that it preserves."""

import random
from functools import partial

import numpy as np
import pytest
import torch

from advcontrast._random import capture
from tests.engine.learners import (
    CPU,
    Drawing,
    Halving,
    Interrupted,
    Noisy,
    Separable,
    draw,
    outcome,
    same,
    scramble,
    train,
    weights,
)


def test_nothing_is_drawn_that_the_learner_does_not_draw(tmp_path):
    scramble(0)
    before = capture(CPU)
    train(Separable(), folder=tmp_path, save_every=1)
    assert same(capture(CPU), before)


def test_generators_end_where_the_draws_of_the_learner_lead(tmp_path):
    scramble(0)
    for _ in range(6):
        draw()
    expected = capture(CPU)
    scramble(0)
    train(Drawing(), folder=tmp_path, save_every=1, evaluate=lambda epoch: {"score": float(torch.rand(()))})
    assert same(capture(CPU), expected)


def test_nothing_is_seeded(tmp_path, monkeypatch):
    learner, again = Noisy(), Noisy()
    seed = torch.default_generator.initial_seed()
    for module, name in [
        (torch, "manual_seed"),
        (torch, "seed"),
        (torch.random, "manual_seed"),
        (torch.random, "seed"),
        (torch.cuda, "manual_seed"),
        (torch.cuda, "manual_seed_all"),
        (random, "seed"),
        (np.random, "seed"),
    ]:
        monkeypatch.setattr(module, name, lambda *_, name=name: pytest.fail(f"{name} was called"))
    evaluate = {"evaluate": lambda epoch: {"score": float(torch.rand(()))}, "select": "score"}
    train(learner, folder=tmp_path, save_every=2, **evaluate)
    train(again, folder=tmp_path, save_every=2, **evaluate)
    assert torch.default_generator.initial_seed() == seed


@pytest.mark.parametrize(
    "source",
    [torch.rand, lambda n: torch.tensor([random.random()] * n), lambda n: torch.tensor(np.random.rand(n))],
    ids=["torch", "python", "numpy"],
)
def test_evaluation_does_not_change_the_training(source):
    with_it, without = Noisy(), Noisy()
    scramble(0)
    train(with_it, evaluate=lambda epoch: with_it.eval() and {"score": float(source(3).sum())})
    scramble(0)
    train(without)
    assert same(weights(with_it), weights(without))


@pytest.mark.parametrize("settings", [{}, {"save_every": 1}, {"tensorboard": True}])
def test_output_does_not_change_the_training(tmp_path, settings):
    if "tensorboard" in settings:
        pytest.importorskip("tensorboard")
    scramble(0)
    written, silent = Noisy(), Noisy()
    history = train(written, folder=tmp_path, **settings)
    ours = outcome(written, history)
    scramble(0)
    assert same(ours, outcome(silent, train(silent)))


class Own(Separable):
    """A classifier with generators of its own, one in a module and one in an object."""

    def __init__(self):
        super().__init__()
        self.model[0].own = torch.Generator().manual_seed(1)
        self.noise = partial(torch.rand, 3, generator=torch.Generator().manual_seed(2))

    def forward(self, images, labels):
        loss, terms = super().forward(images, labels)
        return loss * (self.noise().sum() + torch.rand((), generator=self.model[0].own)), terms


@pytest.mark.parametrize("stop", [2, 4])
def test_generators_of_the_learner_are_part_of_a_checkpoint(tmp_path, stop):
    whole, cut, resumed = Own(), Own(), Own()
    train(whole)
    with pytest.raises(Interrupted):
        train(cut, schedule=Halving(stop), folder=tmp_path, save_every=1)
    train(resumed, folder=tmp_path)
    assert same(weights(resumed), weights(whole))


class Late(Separable):
    """A classifier that replaces its generator in the second epoch, or makes it in the first forward pass."""

    def __init__(self, own):
        super().__init__()
        self.own = own

    def forward(self, images, labels):
        if self.own is None or len(self.seen) == 3:
            self.own = torch.Generator().manual_seed(len(self.seen))
        loss, terms = super().forward(images, labels)
        return loss * torch.rand((), generator=self.own), terms


def test_a_generator_in_the_place_of_another_is_part_of_a_checkpoint(tmp_path):
    whole, cut, resumed = (Late(torch.Generator().manual_seed(5)) for _ in range(3))
    train(whole)
    with pytest.raises(Interrupted):
        train(cut, schedule=Halving(5), folder=tmp_path, save_every=1)
    train(resumed, folder=tmp_path)
    assert same(weights(resumed), weights(whole))


def test_a_generator_that_is_made_in_training_is_refused_where_it_would_be_saved(tmp_path):
    train(Late(None))
    learner = Late(None)
    with pytest.raises(RuntimeError, match=r"^fit: expected generators to be created before training"):
        train(learner, folder=tmp_path, save_every=1)
    assert len(learner.seen) == 1


def test_an_evaluation_that_uses_the_generators_of_the_learner_does_not_change_the_training():
    with_it, without = Own(), Own()
    train(with_it, evaluate=lambda epoch: {"score": float(with_it.noise().sum())})
    train(without)
    assert same(weights(with_it), weights(without))
