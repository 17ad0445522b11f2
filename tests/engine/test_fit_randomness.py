"""What a run draws, and what it leaves undrawn."""

import random

import numpy as np
import pytest
import torch

from advcontrast._random import capture
from tests.engine.learners import (
    CPU,
    Drawing,
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
def test_what_is_written_does_not_change_the_training(tmp_path, settings):
    if "tensorboard" in settings:
        pytest.importorskip("tensorboard")
    scramble(0)
    written, silent = Noisy(), Noisy()
    history = train(written, folder=tmp_path, **settings)
    ours = outcome(written, history)
    scramble(0)
    assert same(ours, outcome(silent, train(silent)))
