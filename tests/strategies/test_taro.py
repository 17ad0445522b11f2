"""The targets and the attack of TARO."""

import pytest
import torch
from torch import nn

from advcontrast import convert_to_dual_bn
from advcontrast.strategies import TARO
from advcontrast.strategies.taro import choose_targets
from tests.strategies.methods import Given, Identity, known, student
from tests.strategies.networks import views
from tests.strategies.test_methods import same, state

pytestmark = pytest.mark.filterwarnings(r"ignore:\w+. expected dual batch norms")


def test_known_targets():
    p = torch.cat([known(0), known(1)], 1).flatten(1)
    for itself in (False, True):
        assert choose_targets(p, itself=itself).tolist() == [1, 0, 3, 2]


def test_the_most_uncertain_image_is_the_target_of_equally_similar_ones():
    p = torch.tensor([[4.0, 0.0, 0.0], [0.0, 4.0, 0.0], [0.0, 0.0, 1.0]])
    assert choose_targets(p, itself=False)[:2].tolist() == [2, 2]


def test_an_image_is_its_own_target_in_the_released_code_alone():
    p = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    assert choose_targets(p, itself=False).tolist() == [1, 0]
    assert choose_targets(p, itself=True).tolist() == [0, 1]


def test_the_attack_moves_the_predictions_of_each_view_towards_its_targets():
    attack, expected = Given(known(0), known(0)), 0.0
    views = [known(v).detach() for v in (0, 2)]
    found = [choose_targets(x.flatten(1), itself=False) for x in views]
    assert not torch.equal(*found)
    with torch.no_grad():
        TARO(Identity(), nn.Identity(), attack=attack)(*views)
    for x, targets in zip(views, found, strict=True):
        expected += nn.functional.cosine_similarity(x.flatten(1), x.flatten(1)[targets]).mean().item()
    assert attack.values[0].item() == pytest.approx(expected, abs=1e-12)


def test_the_predictor_has_branches_of_its_own():
    predictor, seen = convert_to_dual_bn(nn.Sequential(nn.Linear(5, 5), nn.BatchNorm1d(5)).double()), set()
    predictor[1].register_forward_pre_hook(lambda norm, _: seen.add(norm.branch))
    learner = TARO(student("dual"), predictor)
    learner(*views(dtype=torch.float64))
    assert (predictor[1].clean.num_batches_tracked, predictor[1].adv.num_batches_tracked) == (0, 1)
    assert seen == {"adv"}


def test_a_predictor_of_another_size_is_refused_before_anything_moves():
    learner = TARO(student("dual"), nn.Linear(5, 4).double())
    before = {name: value.clone() for name, value in state(learner).items()}
    with pytest.raises(ValueError, match=r"^TARO: expected predictor to return shape \[4, 5\]"):
        learner(*views(dtype=torch.float64))
    assert same(before, state(learner))


@pytest.mark.parametrize(("arguments", "argument"), [((len,), "predictor"), ((nn.Identity(), 1), "released")])
def test_wrong_arguments(arguments, argument):
    with pytest.raises(TypeError, match=f"^TARO: expected {argument}"):
        TARO(Identity(), arguments[0], **({"released": arguments[1]} if len(arguments) > 1 else {}))
