"""Bad inputs of every strategy: errors that name them, before weights, statistics, counters or random state change."""

import copy

import pytest
import torch
from torch import nn

from advcontrast import ACLTrainer, convert_to_dual_bn
from advcontrast.attacks import FreeAttack
from advcontrast.augment import Replay
from advcontrast.strategies import Distillation, Queue
from tests.strategies.methods import FEW, METHODS, WEIGHTS, batch, student, teacher
from tests.strategies.test_methods import same

pytestmark = pytest.mark.filterwarnings(r"ignore:\w+. expected dual batch norms")
every_method = pytest.mark.parametrize("name", METHODS)
TAUGHT = [name for name in METHODS if hasattr(METHODS[name].make("dual"), "teacher")]
CONVOLUTIONS = [name for name in TAUGHT if "transformer" not in name]


def everything(learner, generator=None):
    """Return what an error must not change, as plain data."""
    state = {name: copy.deepcopy(value) for name, value in learner.state_dict().items()}
    state = {name: str(value) if torch.is_tensor(value) and value.is_meta else value for name, value in state.items()}
    random = [torch.get_rng_state(), *([] if generator is None else [generator.get_state()])]
    return {**state, **{f"random {i}": value for i, value in enumerate(random)}}


def refused(learner, call, message, error=ValueError, generator=None):
    """Require an error, and that nothing has changed."""
    before = everything(learner, generator)
    with pytest.raises(error, match=message):
        call()
    assert same(before, everything(learner, generator))


class Failed(Exception):
    """An attack failed."""


def fails(objective, x, *, generator=None):
    torch.rand(1), torch.rand(1, generator=generator)
    objective(x)
    raise Failed


@every_method
def test_an_error_in_the_first_call_changes_nothing(name):
    method, generator = METHODS[name], torch.Generator()
    learner = method.make("dual", attack=fails)
    refused(learner, lambda: learner(*batch(method), generator=generator), None, Failed, generator)


@every_method
def test_an_error_in_a_later_call_changes_no_random_state_or_counter(name):
    method, generator = METHODS[name], torch.Generator()
    learner = method.make("dual")
    learner(*batch(method), generator=generator)
    learner.attack = fails
    before = everything(learner, generator)
    with pytest.raises(Failed):
        learner(*batch(method), generator=generator)
    after = everything(learner, generator)
    kept = [name for name in before if name.startswith("random") or name.endswith("_extra_state")]
    assert len(kept) >= 2
    assert all(same(before[name], after[name]) for name in kept)


def test_labels_are_refused_in_a_later_call_after_the_augmentation_has_drawn():
    def views(x):
        return x * torch.rand(1), x * torch.rand(1), x

    method = METHODS["AdvCL"]
    learner, (x, *_, labels) = method.make("dual", augment=views), batch(method)
    learner(x, labels)
    refused(learner, lambda: learner(x, labels + 9), "^AdvCL: expected pseudo-labels")


def test_an_error_in_the_first_call_changes_no_augmentation_or_attack():
    attack = FreeAttack()
    learner = METHODS["RoCL"].make("dual", augment=Replay(lambda x: (x, x), times=3), attack=attack)
    learner.model.append(nn.Unflatten(1, (5, 1)))
    refused(learner, lambda: learner(batch(METHODS["RoCL"])[0]), "RoCL: expected the result of model")


MOVED = {
    "device": (lambda x: x.to("meta"), r"(views and networks|labels.*|images.*) on one device"),
    "dtype": (
        lambda x: x.float() if x.is_floating_point() else x,
        r"views and networks of one dtype, got x1 of torch.float32 and model\S+ of torch.float64",
    ),
}


@pytest.mark.parametrize("calls", [0, 1])
@pytest.mark.parametrize("kind", MOVED)
@every_method
@pytest.mark.sample(50)
def test_views_of_another_kind(name, kind, calls):
    method, (move, message) = METHODS[name], MOVED[kind]
    learner = method.make("dual")
    for _ in range(calls):
        learner(*batch(method))
    moved = [move(x) for x in batch(method)]
    refused(learner, lambda: learner(*moved), rf"^\w+: expected {message}")


@every_method
def test_one_view_on_another_device(name):
    method = METHODS[name]
    if method.views > 1:
        learner, views = method.make("dual"), list(batch(method))
        views[1] = views[1].to("meta")
        refused(learner, lambda: learner(*views), r"^\w+: expected x1 and x2 of one shape, dtype and device")


@every_method
def test_an_attack_that_leaves_the_device(name):
    method = METHODS[name]
    learner = method.make("dual", attack=lambda objective, x, generator=None: x.to("meta"))
    refused(learner, lambda: learner(*batch(method)), r"^\w+: expected attack to return .* on cpu, got .* on meta")


@pytest.mark.parametrize("name", TAUGHT)
def test_a_teacher_that_moved_to_another_device(name):
    method = METHODS[name]
    learner = method.make("dual")
    learner.teacher.to("meta")
    refused(learner, lambda: learner(*batch(method)), r"^\w+: expected views and networks on one device.*teacher")


@pytest.mark.parametrize("calls", [0, 1])
@pytest.mark.parametrize("name", TAUGHT)
def test_a_teacher_that_was_put_into_train_mode(name, calls):
    method = METHODS[name]
    learner = method.make("dual")
    for _ in range(calls):
        learner(*batch(method))
    learner.teacher.model.train()
    message = "^Frozen: expected model in eval mode, got train mode"
    refused(learner, lambda: learner(*batch(method)), message, RuntimeError)


@pytest.mark.parametrize("name", TAUGHT)
def test_a_teacher_of_another_dtype(name):
    method = METHODS[name]
    learner = method.make("dual")
    learner.teacher.half()
    message = r"^\w+: expected views and networks of one dtype, got .*teacher\.model\S+ of torch.float16"
    refused(learner, lambda: learner(*batch(method)), message)


@pytest.mark.parametrize("model", [lambda: student("dual"), lambda: nn.Sequential(student("dual"), nn.Linear(5, 5))])
def test_the_teacher_of_a_term_is_not_the_model_or_a_part_of_it(model):
    model = model()
    part = model if len(model) > 2 else model[0]
    with pytest.raises(ValueError, match=r"^ACLTrainer: expected terms\[0\] to share no frozen weights with model"):
        ACLTrainer(model, terms=[Distillation(part.eval())])


@pytest.mark.parametrize("name", ["ACL", "AMOC", "DeACL", "RoCL"])
def test_the_teacher_of_a_term_on_another_device(name):
    method = METHODS[name]
    learner = method.make("dual", terms=[Distillation(teacher().to("meta"))])
    refused(learner, lambda: learner(*batch(method)), r"^\w+: expected views and networks on one device.*terms\.0")


def test_an_error_without_other_devices_stays_as_it_is():
    learner = METHODS["ACL"].make("dual")
    narrow = [x[:, :1] for x in batch(METHODS["ACL"])]
    refused(learner, lambda: learner(*narrow), "channels", RuntimeError)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda taught: taught.train(), "teacher in eval mode, got train mode"),
        (lambda taught: taught.to("meta"), "model and teacher on one device, got cpu and meta"),
        (lambda taught: None, "teacher to be an nn.Module, got NoneType"),
    ],
)
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_teachers(name, change, message):
    learner = METHODS[name].make("single")
    projector = [learner.projector.model] if name == "ProFeAT" else []
    with pytest.raises((TypeError, ValueError), match=f"^{type(learner).__name__}: expected {message}"):
        type(learner)(learner.model, *projector, change(teacher()))


@pytest.mark.parametrize(("attribute", "value"), [("stride", (1, 1)), ("padding", (2, 2)), ("dilation", (2, 2))])
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_a_stem_that_computes_something_else_with_the_weights_of_the_teacher(name, attribute, value):
    learner = METHODS[name].make("single")
    projector = [learner.projector.model] if name == "ProFeAT" else []
    branches = learner.branches if len(learner.branches) > 1 else ("clean", "adv")
    copied = convert_to_dual_bn(teacher().train(), branches=branches)
    type(learner)(copied, *projector, teacher())
    setattr(copied[0], attribute, value)
    with pytest.raises(ValueError, match=rf"^{type(learner).__name__}: expected model\.0, .*got .*{attribute} "):
        type(learner)(copied, *projector, teacher())


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1.0, "1", None])
@pytest.mark.parametrize(("name", "weight"), WEIGHTS)
def test_a_schedule_returns_finite_numbers(name, weight, value):
    method = METHODS[name]
    learner = method.make("dual", **{weight: lambda step: value if step else 0.5})
    learner(*batch(method))
    refused(learner, lambda: learner(*batch(method)), rf"^\w+: expected {weight}", (TypeError, ValueError))


@pytest.mark.parametrize("calls", [0, 1])
@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("AdvCL", lambda y: y + 2),
        ("AdvCL", lambda y: y - 2),
        ("AdvCL", lambda y: y.double()),
        ("AdvCL", lambda y: y.to("meta")),
        ("AdvCL", lambda y: y[:, :1]),
        ("TeCoA", lambda y: y + 1),
        ("TeCoA", lambda y: y - 1),
        ("TeCoA", lambda y: y.double()),
        ("TeCoA", lambda y: y.to("meta")),
        ("TeCoA", lambda y: y[:3]),
    ],
)
def test_labels(name, change, calls):
    method = METHODS[name]
    learner = method.make("dual")
    for _ in range(calls):
        learner(*batch(method))
    *views, labels = batch(method)
    message = rf"^{name}: expected (\w+ and )?(pseudo-)?labels|^{name}: expected views and networks"
    refused(learner, lambda: learner(*views, change(labels)), message, (TypeError, ValueError))


@pytest.mark.parametrize("calls", [0, 1])
def test_a_queue_shorter_than_a_batch(calls):
    method = METHODS["AMOC"]
    learner = method.make("dual", queue=5)
    for _ in range(calls):
        learner(*batch(method))
    views = batch(method, 6)
    refused(learner, lambda: learner(*views), "^Queue: expected at most 5 embeddings")
    assert isinstance(learner.queue, Queue)


def test_a_teacher_of_another_size_in_a_term():
    narrow = nn.Sequential(teacher(), nn.Linear(5, 3).double()).eval()
    learner = ACLTrainer(student("dual"), attack=FEW, terms=[Distillation(narrow)])
    refused(learner, lambda: learner(*batch(METHODS["ACL"])), "^Distillation: expected model and teacher to return")
