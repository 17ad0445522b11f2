"""A run that goes on with another number of processes is the same run."""

import random
from contextlib import suppress
from itertools import chain

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import nn

from advcontrast import ACLTrainer, NTXentLoss, PGDAttack, convert_to_dual_bn
from advcontrast._random import branch_off, capture
from advcontrast.engine import fit
from advcontrast.engine.run import Run
from advcontrast.optim import EMA
from tests.engine.learners import CPU, Halving, Interrupted, Separable, images, labelled, network, same, scramble, sgd
from tests.ranks import Ranks

pytestmark = pytest.mark.distributed
TOLERANCE = 1e-12  # float64
STEPS = 6


@pytest.fixture(scope="module")
def pools(ranks):
    """Return a function that gives as many processes as asked for."""
    started = {2: ranks}
    yield lambda world: started.setdefault(world, Ranks(world)) if world not in started else started[world]
    for world, pool in started.items():
        if world != 2:
            pool.close()


def mirrored(x):
    """Return an image and its mirror image: views without randomness."""
    return x.double() / 255, x.flip(3).double() / 255


def contrastive():
    model = network(lambda channels: nn.GroupNorm(2, channels), dtype=torch.float64)
    attack = PGDAttack(steps=2, random_start=False)
    model = convert_to_dual_bn(model, norms=nn.GroupNorm)
    return ACLTrainer(model, loss=NTXentLoss(gather=True), attack=attack, augment=mirrored)


LEARNERS = {"separable": Separable, "contrastive": contrastive}
JOURNEYS = [
    *(("separable", worlds) for worlds in ((1, 2, 1), (2, 1), (1, 2), (2, 1, 2), (1, 4, 2), (4, 1, 2))),
    *(("contrastive", worlds) for worlds in ((1, 2, 1), (2, 1), (1, 2))),
]


def member(name, folder, stop, n=26):
    """Train two epochs of three steps of 12 samples, perhaps to be cut off before a step."""
    torch.set_num_threads(1)
    learner = LEARNERS[name]()
    data = labelled(n) if name == "separable" else images(n)
    settings = {"epochs": 2, "batch_size": 12, "optimizer": sgd(learner), "schedule": Halving(stop)}
    ema = EMA(learner.model, decay=0.5)
    history = None
    try:
        history = fit(learner, data, folder=folder, save_every=1, ema=ema, **settings)
    except Interrupted:
        assert stop is not None
    state = {**learner.state_dict(), **{f"ema.{key}": value for key, value in ema.model.state_dict().items()}}
    return {
        "weights": {key: value.tolist() for key, value in state.items()},
        "seen": getattr(learner, "seen", []),
        "rows": history and [{key: row[key] for key in ("epoch", "step", "lr", "loss")} for row in history],
    }


def journey(pools, name, worlds, folder, monkeypatch):
    """Train with one number of processes after the other, two steps each; return what each leg left in each of them."""
    monkeypatch.setattr("warnings.warn", lambda *_, **__: None)  # which the tests of the messages look at
    legs = []
    for leg, world in enumerate(worlds):
        stop = None if leg + 1 == len(worlds) else STEPS // len(worlds) * (leg + 1)
        legs.append([member(name, folder, stop)] if world == 1 else pools(world).run(member, name, str(folder), stop))
    return legs


@pytest.mark.parametrize(("name", "worlds"), JOURNEYS)
@pytest.mark.sample(3)
def test_run_of_changing_processes_equals_the_run_of_one(pools, tmp_path, monkeypatch, name, worlds):
    expected = member(name, tmp_path / "one", None)
    legs = journey(pools, name, worlds, tmp_path / "many", monkeypatch)
    for found in legs[-1]:
        for key, value in expected["weights"].items():
            torch.testing.assert_close(
                torch.tensor(found["weights"][key], dtype=torch.float64),
                torch.tensor(value, dtype=torch.float64),
                rtol=TOLERANCE,
                atol=TOLERANCE,
                msg=lambda text, key=key: f"{key}: {text}",
            )
        for ours, theirs in zip(found["rows"], expected["rows"], strict=True):
            assert ours == pytest.approx(theirs, rel=1e-6)
    if name == "separable":
        seen = [sorted(chain(*step)) for leg in legs for step in zip(*(rank["seen"] for rank in leg), strict=True)]
        assert seen == [sorted(step) for step in expected["seen"]]


def drawing(folder, stop):
    """Train a learner that draws nothing; return what the generators of this process give next."""
    scramble(0)  # alike in all processes, as after a forgotten seed
    member("separable", folder, stop)
    return [random.random(), float(torch.rand((), dtype=torch.float64)), float(np.random.rand())]


def test_processes_that_join_have_random_streams_of_their_own(pools, tmp_path, monkeypatch):
    monkeypatch.setattr("warnings.warn", lambda *_, **__: None)
    first = drawing(tmp_path, 2)
    joined = pools(4).run(drawing, str(tmp_path), 4)
    assert joined[0] == first  # it goes on where it was
    for source in zip(*joined, strict=True):
        assert len(set(source)) == 4


def test_joining_again_gives_the_same_streams(pools, tmp_path, monkeypatch):
    monkeypatch.setattr("warnings.warn", lambda *_, **__: None)
    drawing(tmp_path, 2)
    assert pools(2).run(drawing, str(tmp_path), 2) == pools(2).run(drawing, str(tmp_path), 2)


def test_stream_that_branches_off_depends_on_all_that_was_there_and_on_the_process():
    scramble(0)
    before = capture(CPU)
    states = []
    for state, rank in ((before, 1), (before, 2), (before | {"torch": before["torch"].flip(0)}, 1), (before, 1)):
        branch_off(state, rank, CPU)
        states.append(capture(CPU))
    assert same(states[0], states[3])
    for generator in ("torch", "python", "numpy"):
        assert not any(same(states[0][generator], other[generator]) for other in (before, states[1], states[2]))


def test_a_process_that_joins_has_generators_of_its_own(monkeypatch):
    learner = Separable()
    learner.own = torch.Generator().manual_seed(1)
    run = Run(learner, sgd(learner), 1.0, "off", None, {})
    state, before = run.state(), learner.own.get_state()
    monkeypatch.setattr("advcontrast.distributed.rank", lambda: 1)
    monkeypatch.setattr("advcontrast.distributed.world_size", lambda: 2)
    states = []
    for _ in range(2):
        with pytest.warns(UserWarning, match="fit: expected as many processes as before"):
            run.restore(state, "the checkpoint")
        states.append(learner.own.get_state())
    assert same(*states)
    assert not same(states[0], before)


class TrainOnlyMemoryBank(Separable):
    """A learner with a state of its own in each process, which is no tensor."""

    def __init__(self):
        super().__init__()
        self.memory = []

    def forward(self, images, labels):
        self.memory.append(torch.tensor(labels.tolist()))
        return super().forward(images, labels)

    def get_extra_state(self):
        return {"memory": list(self.memory)}

    def set_extra_state(self, state):
        self.memory = list(state["memory"])


def remembering(folder, stop):
    learner = TrainOnlyMemoryBank()
    with suppress(Interrupted):
        fit(
            learner,
            labelled(26),
            epochs=2,
            batch_size=12,
            optimizer=sgd(learner),
            schedule=Halving(stop),
            folder=folder,
            save_every=1,
        )
    return [labels.tolist() for labels in learner.memory]


def test_extra_state_is_resumed_in_the_process_that_had_it(pools, tmp_path):
    expected = pools(2).run(remembering, str(tmp_path / "whole"), None)
    pools(2).run(remembering, str(tmp_path / "cut"), 4)
    assert expected[0] != expected[1]
    assert pools(2).run(remembering, str(tmp_path / "cut"), None) == expected


def folder_of_its_own(folder):
    """Train with a folder that the others do not see, as on the disks of several machines."""
    mine = f"{folder}/{dist.get_rank()}"
    return [member("separable", mine, 3), member("separable", mine, None)]


def test_only_the_first_process_needs_the_folder(pools, tmp_path):
    expected = member("separable", tmp_path / "one", None)
    for cut, whole in pools(2).run(folder_of_its_own, str(tmp_path)):
        assert len(cut["seen"]) == len(whole["seen"]) == 3
        for key, value in expected["weights"].items():
            assert np.allclose(whole["weights"][key], value, rtol=TOLERANCE, atol=TOLERANCE)
    assert (tmp_path / "0" / "metrics.csv").exists()
    assert not (tmp_path / "1").exists()
