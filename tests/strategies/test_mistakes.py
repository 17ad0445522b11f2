"""Mistakes are named before anything changes, at the latest by the first call of a learner."""

import copy

import pytest
import torch
from torch import nn

from advcontrast import ACLTrainer, ContrastivePairAugment
from advcontrast.augment import CropFlip
from advcontrast.strategies import (
    ContrastiveLearner,
    Distillation,
    DynACL,
    Frozen,
    Invariance,
    Part,
    ProFeAT,
    Queue,
    Ramp,
    RobustCoreset,
    RoCL,
    Scheduled,
    Step,
    TeCoA,
    perturbed_weights,
    pseudo_labels,
)
from tests.strategies.methods import FEW, METHODS, batch
from tests.strategies.networks import network, views

pytestmark = pytest.mark.filterwarnings(r"ignore:\w+. expected dual batch norms")


class Lengthened(nn.Module):
    """A network whose results are changed."""

    def __init__(self, change):
        super().__init__()
        self.network, self.change = network("single"), change

    def forward(self, x):
        return self.change(self.network(x))


def long():
    return Lengthened(lambda z: torch.cat([z, z], 1)).eval()


def air(**settings):
    return {"augment": ContrastivePairAugment(6), "terms": [Invariance()], **settings}


def acl(**settings):
    return ACLTrainer(network("dual"), attack=FEW, **settings)


def widens(objective, x, generator=None):
    return x.double()


@pytest.mark.parametrize(
    ("make", "calls", "message"),
    [
        (lambda: ProFeAT(network("single"), nn.Linear(10, 3), long(), attack=FEW), 2, "ProFeAT: expected model and t"),
        (lambda: acl(terms=[Distillation(long())]), 2, "Distillation: expected model and teacher"),
        (lambda: acl(mode="A2A", terms=[Distillation(long())]), 2, "Distillation: expected .*'clean', got adv"),
        (lambda: acl(mode="S2S", **air()), 1, "Invariance: expected .*'adv', got 2 of 'clean'"),
        (lambda: METHODS["TARO"].make("single", **air()), 1, "Invariance: expected .*, got 1 of 'clean', 1 of 'adv'"),
    ],
)
def test_parts_that_do_not_fit_are_named_by_the_first_call_and_no_statistics_move(make, calls, message):
    learner = make()
    dtype = next(learner.model.parameters()).dtype
    before = copy.deepcopy(learner.state_dict())
    with pytest.raises(ValueError, match=message):
        learner(*views(dtype=dtype)[:calls])
    after = learner.state_dict()
    assert all(torch.equal(value, after[key]) for key, value in before.items() if isinstance(value, torch.Tensor))


@pytest.mark.parametrize("name", ["RoCL", "AInfoNCE", "AMOC", "TARO", "FARE"])
def test_embeddings_are_rows(name):
    method = METHODS[name]
    learner = method.make("single")
    learner.model.append(nn.Unflatten(1, (5, 1)))
    with pytest.raises(ValueError, match=r"\w+: expected the result of model of shape \[\d+, D\]"):
        learner(*batch(method))


def test_an_attack_keeps_the_dtype():
    with pytest.raises(TypeError, match="RoCL: expected the result of attack"):
        RoCL(network("single"), attack=widens)(*views())


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_views_are_finite(value):
    learner, (x1, x2) = METHODS["ACL"].make("dual"), batch(METHODS["ACL"])
    x2[0, 0, 0, 0] = value
    with pytest.raises(ValueError, match="ACLTrainer: expected x2"):
        learner(x1, x2)


def test_the_number_of_tensors_counts_targets():
    with pytest.raises(ValueError, match=r"AdvCL: expected 3 views.*and targets, got 3 tensors"):
        METHODS["AdvCL"].make("dual")(*batch(METHODS["AdvCL"])[:3])


def test_an_augmentation_returns_as_many_views_as_the_strategy_has():
    learner = METHODS["DeACL"].make("single", augment=ContrastivePairAugment(6))
    with pytest.raises(ValueError, match="DeACL: expected augment to return one view, got tuple"):
        learner(*batch(METHODS["DeACL"]))


def test_a_teacher_returns_a_tensor():
    with pytest.raises(TypeError, match="Frozen: expected the result of model"):
        Frozen(Lengthened(lambda z: (z, z)))(views()[0])


@pytest.mark.parametrize("augment", [ContrastivePairAugment(6), CropFlip(1), lambda strength: None])
def test_a_scheduled_augmentation_is_a_function_of_the_strength(augment):
    with pytest.raises(TypeError, match=r"Scheduled: expected (the result of )?make"):
        DynACL(network("dual"), steps=4, augment=augment)


class Weighted(RoCL):
    """A strategy whose part has a weight."""

    part_weight = None

    def parts(self, step):
        for part in super().parts(step):
            yield Part(part.name, part.loss, self.part_weight)


@pytest.mark.parametrize(("weight", "owner"), [(-1, "weight"), (lambda step: 1.0, "a schedule")])
def test_a_part_has_a_weight_that_was_checked(weight, owner):
    learner = Weighted(network("single"), attack=FEW)
    learner.part_weight = weight
    with pytest.raises(ValueError, match=f"Weighted: expected {owner}"):
        learner(*views())


class Yielding(ContrastiveLearner):
    """A strategy of known parts."""

    found = ()

    def parts(self, step):
        yield from self.found


@pytest.mark.parametrize(
    ("found", "message"),
    [
        ([], "parts with weights"),
        ([Part("a", torch.ones(()), 0.0)], "parts with weights"),
        ([("a", torch.ones(()))], "each part"),
        ([Part("a", 1.0)], "the loss of 'a'"),
        ([Part("a", torch.ones(3))], "the loss of 'a' of shape"),
    ],
)
def test_parts_are_scalars_with_weights(found, message):
    learner = Yielding(network("single"))
    learner.found = found
    with pytest.raises((TypeError, ValueError), match=f"Yielding: expected {message}"):
        learner(*views())


def test_a_strategy_without_parts_is_named():
    class Empty(ContrastiveLearner):
        pass

    with pytest.raises(NotImplementedError, match=r"^Empty: .*parts"):
        Empty(network("dual"))(*views())


@pytest.mark.parametrize("name", ["DeACL", "DAQSDP", "FARE", "ProFeAT"])
def test_a_constructor_that_fails_does_not_freeze_the_teacher(name):
    weight = {"FARE": "clean", "ProFeAT": "beta"}.get(name, "robust")
    made = METHODS[name].make("single")
    teacher = made.teacher.model.requires_grad_()
    projector = [] if name != "ProFeAT" else [nn.Linear(5, 2)]
    with pytest.raises(ValueError, match=f"{name}: expected {weight}"):
        type(made)(made.model, *projector, teacher, **{weight: -1.0})
    assert all(p.requires_grad for part in (teacher, *projector) for p in part.parameters())


@pytest.mark.parametrize("terms", [None, 1.0, torch.zeros(2)])
def test_terms_are_iterable(terms):
    with pytest.raises(TypeError, match="ACLTrainer: expected terms"):
        acl(terms=terms)


def test_branches_are_those_of_modules():
    with pytest.raises(TypeError, match="ACLTrainer: expected model"):
        acl().require_branches(None)


@pytest.mark.parametrize(
    ("call", "argument"),
    [
        (lambda step, x: step.embed("adv", None), "each of x"),
        (lambda step, x: step.embed("adv", x, x[:, :, 1:]), r"each of x of shape \[N, 3, 6, 6\]"),
        (lambda step, x: step.still("adv", x[0, 0, 0, 0]), "each of x of shape"),
        (lambda step, x: step.perturb(lambda z: z.sum(), "adv", None), "each of x"),
        (lambda step, x: step.perturb(None, "adv", x), "objective"),
        (lambda step, x: step.gather(None), "each of z"),
        (lambda step, x: step.gather(x[0, 0, 0, 0]), "each of z of shape"),
    ],
)
def test_a_step_takes_batches(call, argument):
    x = views()[0]
    with pytest.raises((TypeError, ValueError), match=f"ACLTrainer: expected {argument}"):
        call(Step(acl(), (x, x), source={}), x)


@pytest.mark.parametrize(
    ("block", "state"),
    [
        (lambda: Queue(4), None),
        (lambda: Queue(4), {}),
        (lambda: Queue(4), {"rows": 1}),
        (lambda: Queue(4), {"rows": torch.zeros(3, 2)}),
        (lambda: Scheduled(lambda s: lambda x: x, lambda step: 1.0), {"calls": -1}),
        (lambda: Scheduled(lambda s: lambda x: x, lambda step: 1.0), {"count": 1}),
    ],
)
def test_a_state_is_one_that_was_saved(block, state):
    block = block()
    before = block.get_extra_state()
    with pytest.raises((TypeError, ValueError), match=f"{type(block).__name__}: expected .*state"):
        block.set_extra_state(state)
    assert block.get_extra_state() == before


def test_a_coreset_belongs_to_a_learner():
    learner, images = acl(augment=ContrastivePairAugment(6)), torch.rand(8, 3, 6, 6)
    for head in (nn.Linear(2, 2), learner.model[2]):
        with pytest.raises(ValueError, match="RobustCoreset: expected head"):
            RobustCoreset(learner, images, fraction=0.5, every=1, head=head)
    with pytest.raises(ValueError, match="RobustCoreset: expected batch_size"):
        RobustCoreset(learner, images, fraction=0.5, every=1, batch_size=1)
    select = RobustCoreset(learner, images, fraction=0.5, every=1)
    with pytest.raises(ValueError, match="RobustCoreset: expected learner"):
        select(1, acl())
    with pytest.raises(TypeError, match="RobustCoreset: expected selected of the state"):
        select.set_extra_state({"selected": [1, 2]})


@pytest.mark.parametrize("loss", [lambda z: z, lambda z: None])
def test_perturbed_weights_take_a_scalar_and_keep_statistics(loss):
    model, x = network("single"), views()[0]
    before = copy.deepcopy(model.state_dict())
    with (
        pytest.raises((TypeError, ValueError), match="perturbed_weights: expected the result of loss"),
        perturbed_weights(model, lambda: loss(model(x))),
    ):
        pass
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_other_arguments():
    with pytest.raises(ValueError, match="TeCoA: expected prototypes"):
        TeCoA(nn.Flatten(), torch.zeros(3, 0))
    with pytest.raises(ValueError, match="pseudo_labels: expected at least one number of clusters"):
        pseudo_labels(nn.Flatten(), torch.rand(4, 3, 6, 6), [])
    with pytest.raises(ValueError, match="pseudo_labels: expected seed"):
        pseudo_labels(nn.Flatten(), torch.rand(4, 3, 6, 6), 2, seed=2**32)
    with pytest.raises(TypeError, match="Ramp: expected step"):
        Ramp(4, 2)(None)
    with pytest.raises(TypeError, match="Frozen: expected x"):
        Frozen(nn.Flatten())(None)


class Returns(ContrastiveLearner):
    """A strategy whose objective returns what it is made with."""

    def __init__(self, value):
        super().__init__(network("dual"), attack=FEW)
        self.value = value

    def parts(self, step):
        step.perturb(lambda z: self.value, "adv", step.views[0])
        return []


@pytest.mark.parametrize("value", [None, 1.0, object()], ids=["nothing", "a number", "an object"])
def test_an_objective_that_returns_no_tensor_is_named(value):
    with pytest.raises(TypeError, match=r"^PGDAttack: expected the value of the objective to be a floating point"):
        Returns(value)(*views())


def test_labels_of_flat_inputs_are_counted():
    learner = TeCoA(nn.Sequential(nn.Unflatten(0, (-1, 1)), nn.Linear(1, 2)), torch.eye(2), attack=FEW)
    with pytest.raises(ValueError, match=r"^TeCoA: expected labels of shape \[4\], got \[3\]"):
        learner(torch.rand(4), torch.tensor([0, 1, 0]))
