"""Hard negatives, schedules and errors of A-InfoNCE."""

import copy
import math

import pytest
import torch

from advcontrast.norm import bn_branch
from advcontrast.strategies import AdaptiveGamma, AInfoNCE
from tests.strategies.methods import FEW, METHODS, Identity, batch, known, student
from tests.strategies.networks import unlike_branches
from tests.strategies.test_methods import same, state

pytestmark = pytest.mark.filterwarnings(r"ignore:\w+. expected dual batch norms")
METHOD = METHODS["AInfoNCE"]


def loop(z, prior, beta, added=0.0):
    """Return the loss of each pair of views with hard negatives, from the formula; ``added`` to what weighs them."""
    unit = [each / each.norm(dim=1, keepdim=True) for each in z]
    views, n = len(z), len(z[0])
    losses = torch.zeros(views, views, dtype=torch.float64)
    for a in range(views):
        for i in range(n):
            e = [[math.exp(float(unit[a][i] @ unit[b][j]) / 0.5) for j in range(n)] for b in range(views)]
            partners = [e[b][i] for b in range(views) if b != a]
            others = [e[b][j] for b in range(views) for j in range(n) if j != i]
            count, p = len(others), sum(partners) / len(partners)
            weights = [(x + added) ** beta for x in others]
            mean = sum(w * x for w, x in zip(weights, others, strict=True)) / sum(weights)
            hard = max((count * mean - prior * count * p) / (1 - prior), count * math.exp(-2))
            for b in range(views):
                losses[a, b] += 0 if a == b else -math.log(e[b][i] / (p + hard)) / n
    return losses


@pytest.mark.parametrize(("prior", "beta"), [(0.1, 1), (0.0, 0.5), (0.4, 2)])
def test_hard_negatives(prior, beta):
    z = [known(v).detach().flatten(1) for v in (2, 0, 1, 3)]
    losses = AInfoNCE(Identity(), hard_negatives=(prior, beta))._losses(*z)
    expected = loop(z, prior, beta)
    torch.testing.assert_close(losses, expected, rtol=0, atol=1e-12)


def test_the_reference_adds_up_a_constant_and_has_one_direction():
    losses = loop([known(v).detach().flatten(1) for v in (2, 0, 1, 3)], 0.1, 1, added=1e-9 * math.exp(2))
    total = losses[1:, 1:].sum() + 2 * losses[0, 1:].sum()
    assert 0.5 / 0.07 / 12 * total.item() == pytest.approx(18.8326759091, rel=0, abs=1e-9)


def test_gamma_follows_its_schedule():
    x, values = batch(METHOD), []
    learner = AInfoNCE(student(None), gamma=lambda step: step / 2, attack=FEW)
    for step in range(3):
        values.append(learner(*x).loss.item())
        assert values[-1] == AInfoNCE(student(None), gamma=step / 2, attack=FEW)(*x).loss.item()
    assert len({*values}) == 3


def test_the_adaptive_gamma_follows_the_distance_from_the_mean_of_the_first_steps():
    gamma = AdaptiveGamma(0.2, after=2, nearest=1.0)
    for distance in torch.tensor([4.0, 2.0]):
        assert gamma(distance[None]).item() == pytest.approx(0.2)
        gamma.advance()
    found = [gamma(distance[None]).item() for distance in torch.tensor([5.0, 3.0, 2.0, 1.0, 0.5])]
    assert found == pytest.approx([0.2, 0.2, 0.35, 0.5, 0.5])
    gamma.advance()
    assert gamma(torch.tensor([2.0])).item() == pytest.approx(0.35)
    other = AdaptiveGamma(0.2, after=2, nearest=1.0)
    other.load_state_dict(gamma.state_dict())
    assert other(torch.tensor([2.0])) == gamma(torch.tensor([2.0]))


def test_the_adaptive_gamma_of_images_that_are_near_from_the_beginning():
    gamma = AdaptiveGamma(0.2, after=1, nearest=1.0)
    gamma(torch.tensor([0.5]))
    gamma.advance()
    assert [gamma(distance[None]).item() for distance in torch.tensor([0.75, 1.0, 1.5])] == pytest.approx(
        [0.5, 0.5, 0.2]
    )


def test_the_adaptive_gamma_measures_clean_and_attacked_images_on_the_clean_branch():
    x, found = batch(METHOD), []
    gamma = AdaptiveGamma(after=1)
    gamma.register_forward_pre_hook(lambda _, arguments: found.append(arguments[0]))
    learner = METHOD.make("dual", gamma=gamma, attack=lambda objective, x: x * 0.5)
    model = copy.deepcopy(unlike_branches(learner.model)).eval()
    learner.eval()(*x)
    with bn_branch(model, "clean"):
        expected = (model(x[2]) - model(x[2] * 0.5)).norm(dim=1).mean().item()
    assert found[0].mean().item() == pytest.approx(expected, abs=1e-12)


def test_the_loss_has_the_adaptive_gamma():
    adaptive, scheduled = (
        METHOD.make("dual", gamma=gamma)
        for gamma in (AdaptiveGamma(0.2, after=1, nearest=100.0), lambda step: 0.5 if step else 0.2)
    )
    for seed in range(2):
        x = batch(METHOD, seed=seed)
        assert adaptive(*x).loss.item() == pytest.approx(scheduled(*x).loss.item(), abs=1e-12)


def test_an_evaluation_does_not_count_for_the_adaptive_gamma():
    learner = METHOD.make("dual", gamma=AdaptiveGamma(after=1)).eval()
    learner(*batch(METHOD))
    assert (learner.gamma.total, learner.gamma.steps) == (0, 0)


def test_a_schedule_that_leaves_the_range_is_refused_before_anything_moves():
    learner = METHOD.make("dual", gamma=lambda step: 2.0 * step)
    learner(*batch(METHOD))
    before = {name: value.clone() for name, value in state(learner).items()}
    with pytest.raises(ValueError, match=r"^AInfoNCE: expected gamma"):
        learner(*batch(METHOD))
    assert same(before, state(learner))


@pytest.mark.parametrize(
    ("settings", "error", "argument"),
    [
        ({"gamma": 1.5}, ValueError, "gamma"),
        ({"gamma": "0.2"}, TypeError, "gamma"),
        ({"weight": -1}, ValueError, "weight"),
        ({"released": 1}, TypeError, "released"),
        ({"hard_negatives": 0.1}, TypeError, "hard_negatives"),
        ({"hard_negatives": (0.1,)}, TypeError, "hard_negatives"),
        ({"hard_negatives": (1.0, 1)}, ValueError, "1 - the prior"),
        ({"hard_negatives": (0.1, -1)}, ValueError, "the concentration"),
    ],
)
def test_wrong_settings(settings, error, argument):
    with pytest.raises(error, match=f"^AInfoNCE: expected {argument}"):
        AInfoNCE(Identity(), **settings)


@pytest.mark.parametrize(
    ("settings", "argument"), [({"start": 2.0}, "start"), ({"after": 0}, "after"), ({"nearest": -1.0}, "nearest")]
)
def test_wrong_settings_of_the_adaptive_gamma(settings, argument):
    with pytest.raises(ValueError, match=f"^AdaptiveGamma: expected {argument}"):
        AdaptiveGamma(**{"after": 1, **settings})
