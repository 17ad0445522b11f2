"""Crops and the free attack of CF-AMC."""

import pytest
import torch

from advcontrast import fit
from advcontrast.augment import Replay
from advcontrast.strategies import CFAMC
from tests.strategies.methods import student
from tests.strategies.test_methods import Stopped, optimizer, same, state

pytestmark = pytest.mark.filterwarnings(r"ignore:\w+. expected dual batch norms")


def images(n=8):
    return torch.rand(n, 3, 6, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def crops(x):
    return x, x.flip(3), x.flip(2), x.mT


def test_the_number_of_crops_is_that_of_the_augmentation():
    seen = []
    learner = CFAMC(student("single"), augment=crops)
    learner.model.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    learner(images(2))
    assert seen == [8]  # one forward pass, and none for the attack


def test_the_training_step_moves_the_perturbations():
    learner = CFAMC(student("single"), augment=crops)
    learner(images(2)).loss.backward()
    first = learner.attack._perturbations.clone()
    learner(images(2)).loss.backward()
    moved = (learner.attack._perturbations - first).abs()
    assert 0.005 < moved.mean().item() <= 0.01


def test_one_view_is_refused():
    with pytest.raises(ValueError, match=r"^CFAMC: expected two or more views"):
        CFAMC(student("single"))(images(2))
    with pytest.raises(ValueError, match=r"^CFAMC: expected augment to return two or more views"):
        CFAMC(student("single"), augment=lambda x: x)(images(2))


def run(folder, stop=None):
    learner = CFAMC(student("single"), augment=Replay(crops, times=2))

    def schedule(step):
        if step == stop:
            raise Stopped
        return 1.0

    fit(
        learner,
        images(),
        epochs=2,
        batch_size=4,
        optimizer=optimizer(learner),
        schedule=schedule,
        folder=folder,
        save_every=1,
    )
    return state(learner)


def test_an_interrupted_free_attack_ends_with_the_same_bits(tmp_path):
    torch.manual_seed(0)
    whole = run(tmp_path / "whole")
    torch.manual_seed(0)
    with pytest.raises(Stopped):
        run(tmp_path / "parts", stop=3)
    torch.manual_seed(1)
    assert same(run(tmp_path / "parts"), whole)
