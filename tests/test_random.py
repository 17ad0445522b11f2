"""The states of the global random generators."""

import random
import re
import sys
from collections import deque
from contextlib import suppress
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import advcontrast
from advcontrast import _random
from tests.engine.learners import CPU, draw, same, scramble

PACKAGE = Path(advcontrast.__file__).parent
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
    state = _random.capture(CPU)
    expected = DRAWS[name]()
    scramble(4)
    assert DRAWS[name]() != expected
    _random.restore(state, CPU)
    assert DRAWS[name]() == expected


def test_capturing_draws_nothing():
    scramble(0)
    expected = draw()
    scramble(0)
    _random.capture(CPU)
    assert draw() == expected


def test_captured_state_does_not_change_later():
    state = _random.capture(CPU)
    again = _random.capture(CPU)
    draw()
    assert same(state, again)
    assert not same(state, _random.capture(CPU))


def test_state_is_read_back_by_the_safe_parser(tmp_path):
    state = _random.capture(CPU)
    torch.save(state, tmp_path / "state.pt")
    assert same(torch.load(tmp_path / "state.pt", weights_only=True), state)


def test_numpy_is_left_out_where_it_is_not_in_use(monkeypatch):
    everything = _random.capture(CPU)
    monkeypatch.delitem(sys.modules, "numpy")
    assert sorted(_random.capture(CPU)) == ["devices", "python", "torch"]
    _random.restore(everything, CPU)
    assert "numpy" not in sys.modules


def test_state_without_numpy_leaves_numpy_alone():
    state = _random.capture(CPU)
    del state["numpy"]
    np.random.seed(9)
    expected = np.random.get_state()[1].copy()
    _random.restore(state, CPU)
    assert (np.random.get_state()[1] == expected).all()


@pytest.mark.parametrize("name", DRAWS)
@pytest.mark.parametrize("seed", [None, 5])
def test_block_leaves_no_trace(name, seed):
    scramble(3)
    expected = DRAWS[name]()
    scramble(3)
    with suppress(ZeroDivisionError), _random.preserve_rng_state(seed):
        DRAWS[name]()
        raise ZeroDivisionError
    assert DRAWS[name]() == expected


@pytest.mark.parametrize("name", DRAWS)
def test_block_with_a_seed_draws_the_same_again(name):
    def drawn():
        with _random.preserve_rng_state(2**40 + 1):
            return DRAWS[name]()

    assert drawn() == drawn()


class Module:
    """Stand-in for torch.cuda: two devices, of which every state is a count."""

    def __init__(self, initialized=True):
        self.initialized, self.states = initialized, {0: 10, 1: 20}

    def is_initialized(self):
        return self.initialized

    def device_count(self):
        return 2

    def get_rng_state(self, device):
        assert self.initialized, "initialises the accelerator"
        return self.states[device.index]

    def set_rng_state(self, state, device):
        self.states[device.index] = state


@pytest.fixture
def accelerator(monkeypatch):
    def install(module):
        monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("cuda"))
        monkeypatch.setattr(torch, "get_device_module", lambda device: module)
        return module

    return install


def test_block_keeps_every_device_of_the_accelerator(accelerator):
    module = accelerator(Module())
    with _random.preserve_rng_state():
        module.states = {0: 11, 1: 21}
    assert module.states == {0: 10, 1: 20}


def test_block_initialises_no_accelerator(accelerator):
    module = accelerator(Module(initialized=False))
    with _random.preserve_rng_state(3):
        pass
    assert module.states == {0: 10, 1: 20}


def test_an_accelerator_that_needs_no_initialisation_is_kept(accelerator, monkeypatch):
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.delattr(Module, "is_initialized")
    module = accelerator(Module())
    with _random.preserve_rng_state():
        module.states[0] = 11
    assert module.states == {0: 10, 1: 20}


def test_state_of_a_device_may_go_to_another_one(accelerator):
    module = accelerator(Module())
    state = _random.capture(torch.device("cuda", 0))
    _random.restore(state, torch.device("cuda", 1))
    assert module.states == {0: 10, 1: 10}
    _random.restore(state, CPU)
    assert module.states == {0: 10, 1: 10}


class OneGenerator(Module):
    """Stand-in for torch.mps, whose functions take no device."""

    def get_rng_state(self):
        return self.states[0]

    def set_rng_state(self, state):
        self.states[0] = state


def test_an_accelerator_with_one_generator_is_seeded_and_kept(accelerator, monkeypatch):
    module = accelerator(OneGenerator())
    mps = torch.device("mps", 0)
    monkeypatch.setattr(_random, "in_use", lambda: [mps])
    monkeypatch.setattr(torch, "Generator", lambda device, make=torch.Generator: make())
    with _random.preserve_rng_state(2**62):
        assert torch.equal(module.states[0], torch.Generator("mps").manual_seed(2**62).get_state())
    assert module.states[0] == 10


def test_generators_are_found_in_modules_objects_containers_partials_and_methods():
    class Plain:
        def __init__(self):
            self.g = torch.Generator()
            self.back = self

        def draw(self):
            return torch.rand(3, generator=self.g)

    class Slots:
        __slots__ = ("g", "unset")

    learner, plain = nn.Module(), Plain()
    learner.part = nn.Sequential(nn.ReLU())
    learner.part[0].g = torch.Generator()
    learner.many = [torch.Generator(), {"x": (plain, plain.g)}]
    learner.queue = deque([torch.Generator()])
    learner.call = partial(torch.rand, 3, generator=torch.Generator())
    learner.scale = nn.Parameter(torch.ones(1))
    learner.method, learner.slots = Plain().draw, Slots()
    learner.slots.g = torch.Generator()
    names = ["call.keywords.generator", "many.0", "many.1.x.1", "method.self.g", "part.0.g", "queue.0", "slots.g"]
    assert sorted(_random.generators(learner)) == names


def test_generators_of_hooks_have_the_same_names_in_a_second_learner():
    names = []
    for _ in range(2):
        learner = nn.Linear(1, 1)
        learner.register_forward_hook(partial(print, torch.Generator()))
        names.append([*_random.generators(learner)])
    assert names[0] == names[1] == ["_forward_hooks.0.args.0"]


def test_no_other_file_keeps_a_random_state():
    found = [
        str(path.relative_to(PACKAGE))
        for path in PACKAGE.rglob("*.py")
        if path.name != "_random.py" and re.search(r"fork_rng|[gs]et_rng_state|cuda\.(manual_)?seed", path.read_text())
    ]
    assert found == []
