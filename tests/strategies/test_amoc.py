"""The momentum network, the queues and the attack of AMOC."""

import pytest
import torch
from torch.nn import functional as F

from advcontrast.norm import bn_branch
from advcontrast.strategies import AMOC, Queue
from tests.strategies.methods import FEW, Given, Identity, known, student
from tests.strategies.networks import views
from tests.strategies.test_methods import same, state

pytestmark = pytest.mark.filterwarnings(r"ignore:\w+. expected dual batch norms")
F64 = {"dtype": torch.float64}


def unit(v):
    return F.normalize(known(v).detach().flatten(1), dim=1)


def test_keys_enter_their_queue_after_the_step():
    learner = AMOC(Identity(), queue=6, attack=Given(known(2), known(2)))
    learner(known(0), known(1))
    first = learner.queue.rows.clone()
    assert torch.allclose(first[:4], unit(1), atol=1e-12)
    assert torch.allclose(learner.queue_adv.rows[:4], unit(2), atol=1e-12)
    learner(known(0), known(3))
    assert torch.equal(learner.queue.rows[4:], first[:2])  # the oldest leave


def test_the_momentum_network_follows_the_model():
    learner = AMOC(student("dual"), queue=8, decay=0.75, attack=FEW)
    before = [p.clone() for p in learner.momentum.parameters()]
    with torch.no_grad():
        for p in learner.model.parameters():
            p.add_(1)
    learner(*views(**F64))
    for old, now in zip(before, learner.momentum.parameters(), strict=True):
        torch.testing.assert_close(now, old + 0.25)


def test_each_branch_of_the_momentum_network_sees_a_batch():
    x1, x2 = views(**F64)
    learner = AMOC(student("dual"), queue=8, attack=lambda objective, x: x)
    convolution, norm = learner.momentum.model[:2]
    with torch.no_grad():
        expected = [0.1 * convolution(x).mean((0, 2, 3)) for x in (x2, x1)]
    learner(x1, x2)
    assert (norm.clean.num_batches_tracked, norm.adv.num_batches_tracked) == (1, 1)
    torch.testing.assert_close([norm.clean.running_mean, norm.adv.running_mean], expected)


def test_the_attack_moves_the_query_from_its_key():
    attack = Given(known(2))
    learner = AMOC(Identity(), queue=4, attack=attack)
    learner.queue.rows, learner.queue_adv.rows = unit(3), unit(4)
    learner(known(0), known(1))
    assert attack.values[0].item() == pytest.approx(0.5841466393, abs=1e-9)


def test_the_key_of_the_attack_is_on_the_clean_branch_of_the_momentum_network():
    found = []

    def records(objective, x, generator=None):
        found.append(objective(x).item())
        return x

    learner = AMOC(student("dual"), queue=4, decay=1, attack=records).eval()
    with torch.no_grad():
        learner.model[5].adv.bias.add_(1)
        learner.momentum.model[5].adv.bias.add_(2)
    x1, x2 = views(**F64)
    learner(x1, x2)
    with bn_branch(learner.model, "adv"), bn_branch(learner.momentum, "clean"):
        q, k = learner.model(x1), learner.momentum(x2)
    assert found[0] == pytest.approx(learner._info_nce(q, k, learner.queue_adv.read(k)).item(), abs=1e-12)


def test_a_queue_shorter_than_a_batch_is_refused_before_anything_moves():
    learner = AMOC(student("dual"), queue=3, attack=FEW)
    before = {name: value.clone() for name, value in state(learner).items()}
    with pytest.raises(ValueError, match=r"^Queue: expected at most 3 embeddings"):
        learner(*views(**F64))
    assert same(before, state(learner))


def test_a_queue_refuses_embeddings_of_another_length():
    queue = Queue(4, 3)
    with pytest.raises(ValueError, match=r"^Queue: expected at most 4 embeddings of length 3"):
        queue.push(torch.ones(2, 5))


@pytest.mark.parametrize(
    ("settings", "error", "argument"),
    [
        ({"queue": 0}, ValueError, "Queue: expected size"),
        ({"decay": 1.5}, ValueError, "Momentum: expected decay"),
        ({"temperature": 0}, ValueError, "AMOC: expected temperature"),
        ({"released": 1}, TypeError, "AMOC: expected released"),
    ],
)
def test_wrong_settings(settings, error, argument):
    with pytest.raises(error, match=f"^{argument}"):
        AMOC(Identity(), **settings)
