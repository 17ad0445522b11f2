"""Properties that every strategy without labels has."""

import copy
import warnings

import pytest
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel as DDP

from advcontrast import fit
from advcontrast.engine import forward_equivalents
from advcontrast.norm import DualNorm, bn_branch
from tests.ranks import WORLD_SIZE
from tests.strategies.methods import METHODS, batch
from tests.strategies.networks import flags

every_method = pytest.mark.parametrize("name", METHODS)


pytestmark = pytest.mark.filterwarnings(r"ignore:\w+. expected dual batch norms")


def state(learner):
    return {name: value for name, value in learner.state_dict().items() if isinstance(value, torch.Tensor)}


def same(ours, theirs):
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def asks(objective, x, generator=None):
    """Attack in name only, which calls its objective."""
    x = x.clone().requires_grad_()
    objective(x).sum().backward(inputs=[x])
    objective(x.detach())
    return x.detach()


def rests(objective, x, generator=None):
    """Attack in name only."""
    return x


@pytest.mark.parametrize("norm", ["dual", "single"])
@every_method
def test_a_step_gives_every_parameter_a_gradient_but_those_that_ddp_ignores(name, norm):
    method = METHODS[name]
    learner = method.make(norm)
    out = learner(*batch(method))
    assert out.loss.shape == ()
    out.loss.backward()
    without = {name for name, p in learner.named_parameters() if p.requires_grad and p.grad is None}
    ignored = learner._ddp_params_and_buffers_to_ignore
    assert without == {name for name, p in learner.named_parameters() if name in ignored and p.requires_grad}


@every_method
def test_an_attack_changes_nothing_but_images(name):
    method, found = METHODS[name], []
    for attack in (asks, rests):
        learner = method.make("dual", attack=attack)
        before = flags(learner)
        out = learner(*batch(method))
        out.loss.backward()
        assert flags(learner) == before
        gradients = {name: p.grad for name, p in learner.named_parameters() if p.grad is not None}
        found.append((out.loss, gradients, state(learner)))
    (loss, gradients, moved), others = found
    assert torch.equal(loss, others[0])
    assert same(gradients, others[1])
    assert same(moved, others[2])


@every_method
def test_attacks_run_through_the_adversarial_branches(name):
    method, seen = METHODS[name], []

    def sees(objective, x, generator=None):
        with norm.register_forward_pre_hook(lambda norm, _: seen.append(norm.branch)):
            objective(x)
        return x

    learner = method.make("dual", attack=sees)
    norm = next(part for part in learner.model.modules() if isinstance(part, DualNorm))
    learner(*batch(method))
    assert tuple(dict.fromkeys(seen)) == method.attacked


@every_method
def test_an_evaluation_counts_no_step(name):
    method = METHODS[name]
    learner = method.make("dual").eval()
    before = copy.deepcopy(learner.state_dict())
    learner(*batch(method))
    after = learner.state_dict()
    assert before.keys() == after.keys()
    assert all(
        torch.equal(a, b) if torch.is_tensor(a) else a == b
        for a, b in zip(before.values(), after.values(), strict=True)
    )


def optimizer(learner):
    return torch.optim.SGD([p for p in learner.parameters() if p.requires_grad], lr=0.1, momentum=0.9)


class Stopped(Exception):
    """A run was interrupted."""


def run(method, folder, *, stop=None):
    learner = method.make("dual")
    data = batch(method, 12)

    def schedule(step):
        if step == stop:
            raise Stopped
        return 1.0

    fit(
        learner,
        data,
        epochs=2,
        batch_size=4,
        optimizer=optimizer(learner),
        schedule=schedule,
        folder=folder,
        save_every=None if folder is None else 1,
    )
    return state(learner)


@every_method
def test_a_run_that_is_interrupted_ends_with_the_same_bits(name, tmp_path):
    method = METHODS[name]
    torch.manual_seed(0)
    whole = run(method, None)
    for stop in (2, 4):
        torch.manual_seed(0)
        folder = tmp_path / str(stop)
        with pytest.raises(Stopped):
            run(method, folder, stop=stop)
        torch.manual_seed(1)
        assert same(run(method, folder), whole)


def train_on_a_rank(name):
    """Take three steps with this rank's part of each batch."""
    warnings.filterwarnings("ignore", r"\w+: expected dual batch norms")
    method = METHODS[name]
    learner = method.make(None)
    wrapped = DDP(learner) if dist.is_initialized() else learner
    sgd, losses = optimizer(learner), []
    for step in range(3):
        data = batch(method, 8, seed=step)
        if dist.is_initialized():
            data = [x.chunk(WORLD_SIZE)[dist.get_rank()] for x in data]
        loss = wrapped(*data).loss
        loss.backward()
        sgd.step()
        sgd.zero_grad()
        losses.append(loss.item())
    return losses, {name: value.tolist() for name, value in state(learner).items()}


@pytest.mark.distributed
@every_method
def test_two_processes_train_like_one(ranks, name):
    torch.manual_seed(0)
    losses, ours = train_on_a_rank(name)
    everyone = ranks.run(train_on_a_rank, name)
    means = [sum(values) / WORLD_SIZE for values in zip(*(theirs[0] for theirs in everyone), strict=True)]
    assert means == pytest.approx(losses, abs=1e-12)
    for _, theirs in everyone:
        for key, value in ours.items():
            torch.testing.assert_close(torch.tensor(theirs[key]), torch.tensor(value), rtol=0, atol=1e-12)


@every_method
def test_a_compiled_model_computes_the_same(name):
    method, losses = METHODS[name], []
    for compiled in (False, True):
        learner = method.make("dual")
        if compiled:
            learner.model.compile(backend="eager")
        losses.append(learner(*batch(method)).loss.item())
    assert losses[1] == pytest.approx(losses[0], rel=1e-12)


@every_method
def test_bf16_trains(name):
    method = METHODS[name]
    learner = method.make("dual").float()
    data = [x.float() if x.is_floating_point() else x for x in batch(method)]
    with torch.autocast("cpu", torch.bfloat16):
        loss = learner(*data).loss
    loss.backward()
    assert loss.isfinite()


@every_method
def test_the_cost_is_counted(name):
    method = METHODS[name]
    assert forward_equivalents(method.make("dual"), *batch(method)) > 3


@every_method
def test_the_encoder_is_a_plain_network(name):
    method = METHODS[name]
    learner = method.make("dual")
    learner(*batch(method)).loss.backward()
    encoder, x = learner.encoder(), batch(method)[0]
    assert not any(isinstance(part, DualNorm) for part in encoder.modules())
    network = learner._trained_network()
    branch = learner._branch_to_ship()
    with bn_branch(network.eval(), branch):
        assert torch.equal(encoder.eval()(x), network(x))


@every_method
def test_the_wrong_number_of_tensors_is_refused_before_anything_moves(name):
    method = METHODS[name]
    learner = method.make("dual")
    before = {name: value.clone() for name, value in state(learner).items()}
    x = batch(method)[0]
    with pytest.raises((TypeError, ValueError), match=rf"^({type(learner).__name__}: expected|\w+\.forward\(\))"):
        learner(*[x] * (1 if learner.views is None else method.views + 2))
    assert same(before, state(learner))
