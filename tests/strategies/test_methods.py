"""Properties that every strategy without labels has."""

import copy
import warnings

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel as DDP

from advcontrast import PGDAttack, convert_to_dual_bn, fit
from advcontrast.attacks import FreeAttack
from advcontrast.engine import forward_equivalents
from advcontrast.norm import DualNorm, bn_branch
from tests.ranks import WORLD_SIZE
from tests.strategies.methods import METHODS, WEIGHTS, batch
from tests.strategies.networks import flags

every_method = pytest.mark.parametrize("name", METHODS)


pytestmark = pytest.mark.filterwarnings(r"ignore:\w+. expected dual batch norms")


def state(learner):
    return {name: value for name, value in learner.state_dict().items() if isinstance(value, torch.Tensor)}


def same(ours, theirs):
    """Compare nested states to the bit."""
    if isinstance(ours, torch.Tensor):
        return isinstance(theirs, torch.Tensor) and torch.equal(ours, theirs)
    if isinstance(ours, dict):
        return ours.keys() == theirs.keys() and all(same(value, theirs[name]) for name, value in ours.items())
    return ours == theirs


def asks(objective, x, generator=None):
    """Attack in name only, which calls its objective."""
    x = x.clone().requires_grad_()
    objective(x).sum().backward(inputs=[x])
    objective(x.detach())
    return x.detach()


def rests(objective, x, generator=None):
    """Attack in name only."""
    return x


@every_method
def test_all_that_takes_part_in_an_attack_is_in_eval_mode_and_gets_no_gradients(name):
    method, found = METHODS[name], []

    def looks(objective, x, generator=None):
        networks = [module for name, module in learner.named_children() if name not in ("attack", "_clock")]
        parts = [part for module in networks for part in module.modules()]
        norms = [part for part in parts if isinstance(part, DualNorm)]
        weights = [p for part in parts for p in part.parameters()]
        found.append((any(part.training for part in parts), any(p.requires_grad for p in weights)))
        assert {norm.branch for norm in norms} == {method.attacked[len(found) - 1]}
        return x

    learner = method.make("dual", attack=looks)
    learner(*batch(method))
    assert found == [(False, False)] * len(method.attacked)


PASSES = {"ACL": {"clean": 1, "adv": 1}, "AIR": {"clean": 2, "adv": 1}, "AMOC": {"clean": 1, "adv": 1}}
PASSES |= {"AdvCL": {"clean": 3, "adv": 1, "adv_ce": 1}, "AInfoNCE": {"clean": 3, "adv": 1}, "CFAMC": {"adv": 1}}
PASSES |= {"DAQSDP": dict.fromkeys(("clean", "adv", "strong_clean", "strong_adv"), 1), "DeACL": {"adv": 1}}
PASSES |= {"DAQSDP, perturbed weights": PASSES["DAQSDP"], "DynACL": {"clean": 1, "adv": 1}, "FARE": {"adv": 1}}
PASSES |= {"ProFeAT": {"adv": 2}, "RoCL": {"adv": 1}, "SimCLIP": {"adv": 1}, "TARO": {"adv": 1}, "TeCoA": {"adv": 1}}


@pytest.mark.parametrize("name", PASSES)
def test_views_share_the_passes_of_the_paper(name):
    """Views in one pass share its batch statistics."""
    learner = METHODS[name].make("dual")
    learner(*batch(METHODS[name]))
    norm = next(part for part in learner.model.modules() if isinstance(part, DualNorm))
    passes = {branch: getattr(norm, branch).num_batches_tracked.item() for branch in norm.branches}
    assert {branch: count for branch, count in passes.items() if count} == PASSES[name]


def test_clean_and_attacked_images_of_fare_share_a_pass():
    learner = METHODS["FARE"].make("dual", clean=1.0)
    learner(*batch(METHODS["FARE"]))
    assert learner.model[1].adv.num_batches_tracked == 1


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


@pytest.mark.parametrize("name", [name for name in METHODS if METHODS[name].make("dual").branches == ("adv",)])
def test_a_method_of_one_branch_uses_no_other(name):
    learner, seen = METHODS[name].make("dual"), set()
    for part in learner.modules():
        if isinstance(part, DualNorm):
            part.register_forward_pre_hook(lambda norm, _: seen.add(norm.branch))
    learner(*batch(METHODS[name]))
    assert seen == {"adv"}


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


def test_a_later_call_reads_no_generator_of_a_device(monkeypatch):
    """While a CUDA graph is captured, that is an error."""
    learner = METHODS["ACL"].make("dual")
    learner(*batch(METHODS["ACL"]))
    monkeypatch.delattr("advcontrast.strategies.learner.in_use")
    learner(*batch(METHODS["ACL"]))


@every_method
def test_a_loss_under_inference_mode_is_the_same(name):
    method = METHODS[name]
    learner = method.make("dual").eval()
    expected = learner(*batch(method)).loss.item()
    with torch.inference_mode():
        assert learner(*batch(method)).loss.item() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(("name", "weight"), WEIGHTS)
def test_a_weight_follows_its_schedule(name, weight):
    method, values, losses = METHODS[name], (0.5, 0.1, 0.3), []
    learner = method.make(None, **{weight: lambda step: values[step]})
    for value in values:
        losses.append(learner(*batch(method)).loss.item())
        constant = method.make(None, **{weight: value})(*batch(method)).loss.item()
        assert losses[-1] == pytest.approx(constant, abs=1e-12)
    assert len({*losses}) == 3


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
    return learner.state_dict()


@every_method
@pytest.mark.sample(8)
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


def resumes_on_a_rank(name, folder):
    warnings.filterwarnings("ignore", r"\w+: expected dual batch norms")
    method = METHODS[name]
    whole = run(method, None)
    with pytest.raises(Stopped):
        run(method, folder, stop=4)
    return same(run(method, folder), whole)


@pytest.mark.distributed
@every_method
@pytest.mark.sample(5)
def test_an_interrupted_run_of_two_processes_ends_with_the_same_bits(ranks, name, tmp_path):
    assert ranks.run(resumes_on_a_rank, name, tmp_path) == [True] * WORLD_SIZE


SEPARATE = ["DAQSDP", "DeACL", "FARE", "FARE on a transformer", "ProFeAT", "SimCLIP", "SimCLIP on a transformer"]
SEPARATE += ["TeCoA", "TeCoA on a transformer"]


@pytest.mark.parametrize("name", sorted({*METHODS} - {*SEPARATE, "DAQSDP, perturbed weights"}))
def test_a_loss_that_compares_images_takes_whole_batches(name):
    method = METHODS[name]
    with pytest.raises(ValueError, match=r"^fit: expected accumulate to be 1"):
        fit(method.make(None), batch(method, 8), epochs=1, batch_size=4, accumulate=2)


def in_parts(name, accumulate):
    method = METHODS[name]
    learner = method.make(None)
    settings = {"epochs": 1, "batch_size": 4, "optimizer": optimizer(learner), "schedule": 1.0}
    fit(learner, batch(method, 8), accumulate=accumulate, **settings)
    return state(learner)


@pytest.mark.parametrize("name", SEPARATE)
def test_parts_of_a_batch_add_up(name):
    whole = in_parts(name, 1)
    for key, value in in_parts(name, 2).items():
        torch.testing.assert_close(value, whole[key], rtol=0, atol=1e-12)


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
@pytest.mark.sample(8)
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
@pytest.mark.sample(8)
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


def wide(norm="dual", *, dtype=torch.float32, seed=0, branches=("clean", "adv")):
    """Return a network whose cost is that of its second convolution."""
    layers = [nn.Conv2d(3, 64, 3, padding=1), nn.Conv2d(64, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU()]
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 5)).to(dtype)
    return convert_to_dual_bn(model, branches=branches) if norm == "dual" else model


COST = {"ACL": 32, "ACL with a teacher": 34, "AIR": 35, "AdvCL": 38, "AInfoNCE": 25, "AInfoNCE, adaptive": 27}
COST |= {"AMOC": 19, "CFAMC": 9, "DAQSDP": 34, "DeACL": 17, "DynACL": 28, "FARE": 14, "ProFeAT": 17, "RoCL": 20}
COST |= {"SimCLIP": 14, "TARO": 31, "TeCoA": 13}


@pytest.mark.parametrize("name", COST)
def test_the_cost_is_that_of_the_documentation(name, monkeypatch):
    """With 5 steps of attack, where FARE, SimCLIP and TeCoA document 10; CF-AMC documents the cost of a crop."""
    monkeypatch.setattr("tests.strategies.methods.network", wide)
    method = METHODS[name]
    learner = method.make("dual", attack=FreeAttack() if name == "CFAMC" else PGDAttack())
    assert forward_equivalents(learner, *batch(method)) == pytest.approx(COST[name], abs=0.6)


@every_method
def test_the_encoder_is_a_plain_network(name):
    method = METHODS[name]
    learner = method.make("dual")
    learner(*batch(method)).loss.backward()
    encoder, x = learner.encoder(), batch(method)[0]
    assert not any(isinstance(part, DualNorm) for part in encoder.modules())
    network = learner._trained_network()
    with bn_branch(network.eval(), "adv"):
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
