"""The branches of DAQ-SDP, and perturbed weights."""

import pytest
import torch
from torch import nn

from advcontrast.functional import cosine
from advcontrast.norm import bn_branch
from advcontrast.strategies import DAQSDP, perturbed_weights
from tests.strategies.methods import METHODS, Constant, Given, Identity, batch, known, norms, student, teacher
from tests.strategies.networks import gradients
from tests.strategies.test_methods import same, state

METHOD = METHODS["DAQSDP"]


def test_each_branch_sees_one_batch():
    learner = METHOD.make("dual")
    weak, strong = batch(METHOD)
    learner(weak, strong)
    norm, x = learner.model[1], learner.model[0](weak).mean((0, 2, 3))
    assert [getattr(norm, branch).num_batches_tracked.item() for branch in DAQSDP.branches] == [1] * 4
    torch.testing.assert_close(norm.clean.running_mean, 0.1 * x)


def test_each_stream_is_attacked_through_its_adversarial_branch():
    found = []

    def records(objective, x, generator=None):
        found.append(objective(x).item())
        return x

    learner = METHOD.make("dual", attack=records)
    with torch.no_grad():
        for i, branch in enumerate(DAQSDP.branches):
            getattr(learner.model[5], branch).bias.add_(i)
    views, expected = batch(METHOD), []
    learner.eval()(*views)
    for branch, x in zip(("adv", "strong_adv"), views, strict=True):
        with bn_branch(learner.model, branch):
            expected.append(-cosine(learner.model(x), learner.teacher(x)).item())
    assert found == pytest.approx(expected, abs=1e-12)


def test_gradients_reach_both_arguments_of_the_second_term():
    x, x_adv = (known(0), known(1)), [known(2), known(3)]

    DAQSDP(Identity(), Constant(known(1), known(2)), attack=Given(*x_adv))(*x).loss.backward()
    assert norms(x[0], x_adv[0]) == pytest.approx([1.08649 / 2, 0.745262 / 2], abs=1e-5)  # those of DeACL
    assert all(norms(x[1], x_adv[1]))


def test_a_teacher_of_another_size_is_refused_before_anything_moves():
    other = nn.Sequential(nn.Flatten(), nn.Linear(108, 4)).double().eval()
    learner = DAQSDP(student("dual", branches=DAQSDP.branches), other)
    before = {name: value.clone() for name, value in state(learner).items()}
    with pytest.raises(ValueError, match=r"^DAQSDP: expected model and teacher to return embeddings of one shape"):
        learner(*batch(METHOD))
    assert same(before, state(learner))


def test_two_branches_are_too_few():
    with pytest.raises(ValueError, match=r"^DAQSDP: expected dual norms"):
        DAQSDP(student("dual"), teacher())


def network():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 2)).double()


X = torch.rand(5, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_weights_move_along_the_gradient_by_a_fraction_of_their_norm():
    model = network()
    before = [p.detach().clone() for p in model.parameters()]
    slopes = torch.autograd.grad(model(X).square().mean(), [*model.parameters()])
    with perturbed_weights(model, lambda: model(X).square().mean(), gamma=0.1):
        for p, old, g in zip(model.parameters(), before, slopes, strict=True):
            moved = 0.1 * old.norm() * g / g.norm() if p.dim() > 1 else torch.zeros_like(g)
            torch.testing.assert_close(p.detach() - old, moved)


def test_weights_are_restored_to_the_bit_and_nothing_else_moves():
    model = network()
    before = {name: value.clone() for name, value in model.state_dict().items()}

    def fails():
        with perturbed_weights(model, lambda: model(X).square().mean()):
            assert not torch.equal(model[0].weight, before["0.weight"])
            assert all(p.grad is None for p in model.parameters())
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fails()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_the_gradients_are_those_of_the_perturbed_weights():
    model, moved = network(), network()
    with perturbed_weights(model, lambda: model(X).square().mean(), gamma=0.5):
        moved.load_state_dict(model.state_dict())
        model(X).square().mean().backward()
    moved(X).square().mean().backward()
    for ours, theirs in zip(gradients(model).values(), gradients(moved).values(), strict=True):
        assert torch.equal(ours, theirs)


def test_a_loss_without_a_gradient_perturbs_nothing():
    model = nn.Linear(2, 2)
    before = model.weight.detach().clone()
    with perturbed_weights(model, lambda: 0 * model(torch.ones(1, 2)).sum()):
        assert torch.equal(model.weight, before)


def test_it_wraps_the_step_of_a_learner():
    learner, views = METHOD.make("dual"), batch(METHOD)
    before = {name: value.clone() for name, value in learner.model.state_dict().items() if "running" not in name}
    with perturbed_weights(learner.model, lambda: learner(*views).loss):
        learner(*views).loss.backward()
    assert learner.model[1].clean.num_batches_tracked == 1
    assert all(
        torch.equal(value, before[name])
        for name, value in learner.model.state_dict().items()
        if "running" not in name and "tracked" not in name
    )


def shifts(objective, x, generator=None):
    return (x + 0.1).clamp(max=1)


def test_a_learner_perturbs_its_weights_for_the_loss_of_the_weak_stream():
    ours, theirs = (METHOD.make("dual", attack=shifts, **settings) for settings in ({"gamma": 0.1}, {}))
    weak, strong = batch(METHOD)
    ours(weak, strong).loss.backward()
    target = theirs.teacher(weak)

    def loss():
        with bn_branch(theirs.model, "clean"):
            z = theirs.model(weak)
        with bn_branch(theirs.model, "adv"):
            return -cosine(z, target) - 2 * cosine(theirs.model(shifts(None, weak)), z)

    with perturbed_weights(theirs.model, loss, gamma=0.1):
        theirs(weak, strong).loss.backward()
    for name, gradient in gradients(theirs).items():
        torch.testing.assert_close(gradients(ours)[name], gradient)
    assert same(state(ours), state(theirs))


def test_a_learner_in_eval_mode_perturbs_no_weights():
    ours, theirs = (METHOD.make("dual", **settings).eval() for settings in ({"gamma": 0.1}, {}))
    assert ours(*batch(METHOD)).loss == theirs(*batch(METHOD)).loss


@pytest.mark.parametrize(
    ("arguments", "error", "argument"),
    [
        ((None, len), TypeError, "model"),
        ((nn.Linear(1, 1), None), TypeError, "loss"),
        ((nn.Linear(1, 1), len, -1), ValueError, "gamma"),
    ],
)
def test_wrong_arguments(arguments, error, argument):
    model, loss, *gamma = arguments
    with pytest.raises(error, match=f"^perturbed_weights: expected {argument}"):
        perturbed_weights(model, loss, **({"gamma": gamma[0]} if gamma else {})).__enter__()
