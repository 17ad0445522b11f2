"""The states of the global random generators."""

import random
import sys

import numpy as np
import pytest
import torch

from advcontrast.engine import randomness
from tests.engine.learners import CPU, draw, same, scramble

DRAWS = {
    "torch": lambda: torch.rand(3).tolist(),
    "torch normal": lambda: torch.randn(3).tolist(),
    "python": lambda: [random.random(), random.gauss(0, 1)],
    "numpy": lambda: np.random.rand(3).tolist(),
    "numpy normal": lambda: [np.random.randn()],
}


@pytest.mark.parametrize("name", DRAWS)
def test_restored_generators_draw_the_same_again(name):
    scramble(3)
    DRAWS[name]()  # half of a pair of normal numbers is kept for later
    state = randomness.capture(CPU)
    expected = DRAWS[name]()
    scramble(4)
    assert DRAWS[name]() != expected
    randomness.restore(state, CPU)
    assert DRAWS[name]() == expected


def test_capturing_draws_nothing():
    scramble(0)
    expected = draw()
    scramble(0)
    randomness.capture(CPU)
    assert draw() == expected


def test_captured_state_does_not_change_later():
    state = randomness.capture(CPU)
    again = randomness.capture(CPU)
    draw()
    assert same(state, again)
    assert not same(state, randomness.capture(CPU))


def test_state_is_read_back_by_the_safe_parser(tmp_path):
    state = randomness.capture(CPU)
    torch.save(state, tmp_path / "state.pt")
    assert same(torch.load(tmp_path / "state.pt", weights_only=True), state)


def test_numpy_is_left_out_where_it_is_not_in_use(monkeypatch):
    everything = randomness.capture(CPU)
    monkeypatch.delitem(sys.modules, "numpy")
    assert sorted(randomness.capture(CPU)) == ["python", "torch"]
    randomness.restore(everything, CPU)
    assert "numpy" not in sys.modules


def test_state_without_numpy_leaves_numpy_alone():
    state = randomness.capture(CPU)
    del state["numpy"]
    np.random.seed(9)
    expected = np.random.get_state()[1].copy()
    randomness.restore(state, CPU)
    assert (np.random.get_state()[1] == expected).all()
