"""The alarm for training with attacks of one step."""

import re

import pytest
import torch
from torch import nn

from advcontrast import PGDAttack
from advcontrast.attacks import WarmStart
from advcontrast.evaluation import catastrophic_overfitting
from advcontrast.evaluation.masking import Overfitting
from tests.engine.learners import acl, images, same

EPS = 0.1


class Learner(nn.Module):
    """A learner whose loss is a function of the images."""

    def __init__(self, function):
        super().__init__()
        self.function = function
        self.attack = PGDAttack()

    def forward(self, x):
        return self.function(self.attack(lambda x: self.function(x, mean=False), x)), {}


def slope(x, mean=True):
    value = 20 * x.flatten(1).mean(1)
    return value.mean() if mean else value


def hilly(x, mean=True):
    """A loss with steep hills, from each of which a step of 5/4 eps leads to almost the same place on the next."""
    height = -torch.cos(2 * torch.pi * (x - 0.5) / (1.3 * EPS)).flatten(1) - 0.2
    value = torch.where(height > 0, height, 0.001 * height).mean(1)
    return value.mean() if mean else value


def test_one_step_on_a_slope_gains_almost_all():
    found = catastrophic_overfitting(Learner(slope), torch.full((8, 3, 8, 8), 0.5), eps=EPS)
    assert found.clean == pytest.approx(10)
    assert found.strong == pytest.approx(10 + 20 * EPS, rel=1e-3)
    assert found.share == pytest.approx(0.859, abs=0.02)  # the mean of min(u + 5/4, 1) for u in [-1, 1]
    assert not found.alarm


def test_loss_that_leads_one_step_astray_raises_the_alarm():
    found = catastrophic_overfitting(Learner(hilly), torch.full((8, 3, 8, 8), 0.5), eps=EPS)
    assert found.clean == pytest.approx(-0.0012)
    assert found.strong > 0.5
    assert found.share == pytest.approx(0.185, abs=0.02)  # the value for 512 images
    assert found.alarm


@pytest.mark.parametrize(
    ("found", "share", "alarm"),
    [
        (Overfitting(1.0, 1.5, 3.0), 0.25, False),
        (Overfitting(1.0, 1.4, 3.0), 0.2, True),
        (Overfitting(1.0, 0.5, 3.0), -0.25, True),
        (Overfitting(1.0, 1.0, 1.05), 0.0, False),
        (Overfitting(1.0, 1.5, 0.9), 1.0, False),
    ],
)
def test_share_and_alarm_follow_from_the_losses(found, share, alarm):
    assert found.share == pytest.approx(share)
    assert found.alarm is alarm


def test_learner_and_random_state_stay_as_they_are():
    learner = acl(attack=WarmStart(PGDAttack(steps=1)))
    learner.train()
    x = images(8)
    learner(x)
    before = {
        name: value.clone() if isinstance(value, torch.Tensor) else value
        for name, value in learner.state_dict().items()
    }
    state, attack = torch.get_rng_state(), learner.attack
    catastrophic_overfitting(learner, x)
    assert same(learner.state_dict(), before)
    assert torch.equal(torch.get_rng_state(), state)
    assert learner.attack is attack
    assert learner.training


def test_same_seed_gives_the_same_losses_and_another_one_others():
    learner, x = acl(), images(8)
    first = catastrophic_overfitting(learner, x)
    torch.manual_seed(9)
    assert catastrophic_overfitting(learner, x) == first
    assert catastrophic_overfitting(learner, x, seed=1) != first


def test_clean_loss_is_that_of_the_views_without_attack():
    learner, x = acl("A2A"), images(8)
    found = catastrophic_overfitting(learner, x, eps=0.3)
    learner.eval()
    learner.attack = lambda objective, x: x
    torch.manual_seed(0)
    assert found.clean == pytest.approx(learner(x).loss.item())


def test_learner_that_does_not_attack_is_refused():
    text = "catastrophic_overfitting: expected a learner"
    with pytest.raises(ValueError, match=re.escape(text)):
        catastrophic_overfitting(acl("S2S"), images(8))


@pytest.mark.parametrize(
    ("learner", "settings", "kind", "text"),
    [
        (5, {}, TypeError, "expected model"),
        (nn.Identity(), {}, ValueError, "expected a learner"),
        (Learner(slope), {"eps": 0}, ValueError, "expected eps"),
        (Learner(slope), {"steps": 1}, ValueError, "expected steps"),
        (Learner(slope), {"seed": -1}, ValueError, "expected seed"),
    ],
)
def test_bad_arguments_are_refused(learner, settings, kind, text):
    with pytest.raises(kind, match=re.escape(f"catastrophic_overfitting: {text}")):
        catastrophic_overfitting(learner, torch.rand(2, 3, 8, 8), **settings)
