"""Every subpackage on an accelerator, as far as tests can see without one: the devices of tensors, and no waits."""

import sys
from contextlib import contextmanager

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from advcontrast import (
    ACLTrainer,
    ContrastivePairAugment,
    NTXentLoss,
    PGDAttack,
    convert_to_dual_bn,
    distributed,
    fit,
    surgery,
)
from advcontrast._transfer import on_cpu
from advcontrast.adapters.losses import PairsAsLabels
from advcontrast.attacks import FreeAttack, ProgressiveAttack, WarmStart, balls, context
from advcontrast.augment import CORRUPTIONS, Corruption, CropFlip, MultiView, Replay
from advcontrast.engine import run
from advcontrast.evaluation import accuracy, branch_gap, gradient_masking, inputs, robust_accuracy
from advcontrast.evaluation.accuracy import measure
from advcontrast.evaluation.representation import knn_monitor
from advcontrast.losses import SemiSupervisedLoss, TRADESLoss
from advcontrast.models import Normalize, WideResNet, resnet18
from advcontrast.norm import DualNorm, update_bn
from advcontrast.optim import EMA, LARS
from advcontrast.strategies import (
    AdversarialTrainer,
    Invariance,
    SemiSupervisedTrainer,
    StandardTrainer,
    Step,
    TRADESTrainer,
)
from tests.device import PER_EPOCH, WaitError, device, on_device
from tests.strategies.methods import METHODS, batch
from tests.strategies.networks import network

HALF = PGDAttack(steps=2, norm="l2", eps=0.5)
ATTACKS = [WarmStart(PGDAttack(steps=1)), FreeAttack(), ProgressiveAttack([(None, HALF)])]
IMAGES = torch.zeros(8, 3, 6, 6, dtype=torch.uint8)
LABELS = torch.arange(8) % 5


def far(x):
    """Return a tensor of the device like one of the host."""
    return torch.empty_like(x, device="cuda")


def views():
    return far(IMAGES.float()), far(IMAGES.float())


def acl(**settings):
    return on_device(ACLTrainer(network(), **{"attack": HALF, **settings}))


def take_step(learner, *x):
    optimizer = LARS(learner.parameters(), lr=0.1)
    learner(*x).loss.backward()
    for parameter in learner.parameters():
        parameter.grad = torch.empty_like(parameter)
    optimizer.step()


def average_weights():
    model = on_device(network())
    EMA(model, decay=0.9).update(model)


def supervised(kind):
    augment = CropFlip(1)
    settings = {} if kind is StandardTrainer else {"attack": PGDAttack(steps=1)}
    batch = (IMAGES, LABELS, torch.rand(8, 5))[: 3 if kind is SemiSupervisedTrainer else 2]
    take_step(on_device(kind(network("single"), augment=augment, **settings)), *map(far, batch))


def pass_through(model):
    on_device(model)(far(torch.rand(2, 3, 32, 32)))


def compare_logits():
    logits, y = far(torch.rand(8, 5)), far(LABELS)
    TRADESLoss()(logits, logits, y)
    SemiSupervisedLoss()(logits, logits, y, logits)


def convert_and_export():
    model = convert_to_dual_bn(on_device(network("single")))
    surgery.export_branch(model, "adv")
    surgery.interpolate_branches(model, {"clean": 0.5, "adv": 0.5})


SCENARIOS = {
    **{
        f"step with {type(attack).__name__}": lambda attack=attack: take_step(acl(attack=attack), *views())
        for attack in ATTACKS
    },
    **{f"step of {mode}": lambda mode=mode: take_step(acl(mode=mode), *views()) for mode in ("A2S", "DS")},
    "step with a term": lambda: take_step(acl(terms=[Invariance()], augment=CropPair()), far(IMAGES)),
    "loss of another library": lambda: PairsAsLabels(lambda z, y: z[y].sum())(
        *(far(torch.rand(8, 5)) for _ in range(2))
    ),
    "tiled loss": lambda: NTXentLoss(0.01, tile=4)(*(far(torch.rand(8, 5)) for _ in range(2))),
    **{
        name: lambda method=method: take_step(on_device(method.make("dual")), *map(far, batch(method)))
        for name, method in METHODS.items()
    },
    **{
        kind.__name__: lambda kind=kind: supervised(kind)
        for kind in (StandardTrainer, AdversarialTrainer, TRADESTrainer, SemiSupervisedTrainer)
    },
    "losses of logits": compare_logits,
    "views": lambda: ContrastivePairAugment(6)(far(IMAGES), torch.Generator("cuda")),
    "views of a transform": lambda: ContrastivePairAugment(6, transform=lambda x: x)(
        far(IMAGES), torch.Generator("cuda")
    ),
    "several views": lambda: Replay(MultiView(CropFlip(1), CropPair()), times=2)(far(IMAGES), torch.Generator("cuda")),
    "residual network": lambda: pass_through(resnet18(4, width=8)),
    "wide residual network": lambda: pass_through(WideResNet(4, width=4)),
    "average": average_weights,
    "surgery": convert_and_export,
    "normalisation": lambda: on_device(Normalize())(far(IMAGES.float())),
    **{name: lambda name=name: Corruption(name)(far(IMAGES)) for name in CORRUPTIONS},
}
#: Poisson numbers and JPEG files are made on the host.
ON_HOST = {("corruptions.py", "shot_noise"), ("corruptions.py", "jpeg_compression")}


@pytest.mark.parametrize("name", SCENARIOS)
def test_nothing_waits_for_the_device(name):
    with device(ON_HOST):
        SCENARIOS[name]()


def two_epochs(batches):
    """Return how often ``fit`` waits in two epochs of so many batches."""
    with device(PER_EPOCH) as mode, pytest.MonkeyPatch.context() as patch:
        # Tensors without values cannot be moved in place.
        patch.setattr(sys.modules[fit.__module__], "choose_memory_format", lambda learner: torch.contiguous_format)
        learner = acl(mode="S2S", augment=CropPair())
        fit(learner, torch.zeros(4 * batches, 3, 6, 6), epochs=2, batch_size=4, ema=EMA(learner.model, decay=0.9))
    return mode.waits


class CropPair:
    def __call__(self, x, generator=None):
        return CropFlip(1)(x, generator), CropFlip(1)(x, generator)


def test_fit_waits_as_often_in_longer_epochs():
    assert two_epochs(3) == two_epochs(1) <= 20


def of_batches(evaluate):
    """Return how often an evaluation waits for one batch, and for three."""
    found = []
    for batches in (1, 3):
        with device({("test_device.py", "of_batches")}) as mode, pytest.MonkeyPatch.context() as patch:
            patch.setattr(inputs, "refuse_probabilities", lambda *_: None)  # values are ones
            evaluate([(IMAGES.float(), LABELS)] * batches)
            found.append(mode.waits)
    return found


def nearest(batches):
    return knn_monitor(on_device(network("single")), batches, batches, k=2)(1)


EVALUATIONS = {
    "accuracy": lambda batches: accuracy(on_device(network("single")), batches),
    "robust_accuracy": lambda batches: robust_accuracy(on_device(network("single")), batches, PGDAttack(steps=1)),
    "branch_gap": lambda batches: branch_gap(on_device(network()), batches),
    "nearest neighbours": lambda batches: nearest([(x, y % 2) for x, y in batches]),
    "update_bn": lambda batches: update_bn(on_device(network()), batches, "adv"),
}


@pytest.mark.filterwarnings("ignore:robust_accuracy. expected attack to change images")
@pytest.mark.parametrize("name", EVALUATIONS)
def test_an_evaluation_waits_as_often_for_more_batches(name):
    one, three = of_batches(EVALUATIONS[name])
    assert one == three


@contextmanager
def exchanges():
    """Yield a patch, and a list of the device that was made current for each exchange of objects."""
    current, seen = [None], []

    @contextmanager
    def device_index(index):
        current.append(index)
        yield
        current.pop()

    def exchange(value):
        seen.append(current[-1])
        return [value]

    with device(PER_EPOCH), pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.accelerator, "device_index", device_index)
        patch.setattr(distributed, "all_gather_object", exchange)
        yield patch, seen


def test_the_loss_exchanges_objects_from_the_device_of_its_embeddings():
    with exchanges() as (patch, seen):
        patch.setattr(distributed, "world_size", lambda: 2)
        patch.setattr(distributed, "all_gather", lambda tensor: torch.stack([tensor, tensor]))
        NTXentLoss(gather=True)(*(torch.empty(4, 3, device="cuda:1") for _ in range(2)))
    assert seen == [1]


def test_fit_exchanges_objects_from_the_device_of_the_learner(monkeypatch):
    monkeypatch.setattr(sys.modules[fit.__module__], "choose_memory_format", lambda learner: torch.contiguous_format)
    with exchanges() as (_, seen):
        fit(acl(mode="S2S", augment=CropPair()), torch.zeros(4, 3, 6, 6), epochs=1, batch_size=4)
    assert set(seen) == {0}


class NoFloat64(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            assert not isinstance(leaf, FakeTensor) or leaf.dtype != torch.float64, func
        return result


def masking():
    return gradient_masking(on_device(network("single")), [(IMAGES.float(), LABELS)], PGDAttack(steps=1))


WITHOUT_FLOAT64 = {
    "views": lambda: ContrastivePairAugment(6)(far(IMAGES), torch.Generator("cuda")),
    "crops": lambda: CropFlip(1)(far(IMAGES), torch.Generator("cuda")),
    "loss": lambda: NTXentLoss()(*(torch.empty(4, 3, device="mps") for _ in range(2))),
    "gradient masking": masking,
}


@pytest.mark.parametrize("name", WITHOUT_FLOAT64)
def test_nothing_has_float64_on_a_device_without_it(name, monkeypatch):
    monkeypatch.setattr(balls, "widest", lambda x: x.dtype)  # as on such a device
    with device({("test_device.py", "masking")}), NoFloat64():
        WITHOUT_FLOAT64[name]()


def test_a_state_is_copied_once_for_each_dtype():
    with device({("_transfer.py", "on_cpu")}) as mode:
        weight = far(torch.empty(2, 3, 4, 4).contiguous(memory_format=torch.channels_last))
        state = on_cpu({"weight": weight, "others": [far(torch.empty(3)), far(torch.empty(()).long()), 1.0]})
    assert mode.waits == 2
    assert state["weight"].is_contiguous(memory_format=torch.channels_last)
    assert {state["weight"].device.type, *(each.device.type for each in state["others"][:2])} == {"cpu"}


PLANTS = {
    "functional": (
        sys.modules["advcontrast.functional.nt_xent"],
        "scaled_views",
        lambda: test_nothing_waits_for_the_device("tiled loss"),
    ),
    "adapters": (PairsAsLabels, "forward", lambda: test_nothing_waits_for_the_device("loss of another library")),
    "losses": (NTXentLoss, "forward", lambda: test_nothing_waits_for_the_device("tiled loss")),
    "models": (Normalize, "forward", lambda: test_nothing_waits_for_the_device("normalisation")),
    "attacks": (balls.L2Ball, "step", lambda: test_nothing_waits_for_the_device("step of DS")),
    "attacks, folded": (context, "_combined", lambda: test_nothing_waits_for_the_device("step of DS")),
    "augment": (CropFlip, "__call__", lambda: test_nothing_waits_for_the_device("StandardTrainer")),
    "norm": (DualNorm, "forward", lambda: test_nothing_waits_for_the_device("step of DS")),
    "surgery": (surgery, "export_branch", lambda: test_nothing_waits_for_the_device("surgery")),
    "optim": (EMA, "update", lambda: test_nothing_waits_for_the_device("average")),
    "strategies": (Step, "embed", lambda: test_nothing_waits_for_the_device("step of DS")),
    "engine": (run.Means, "add", test_fit_waits_as_often_in_longer_epochs),
    "evaluation": (measure, "verdict", lambda: test_an_evaluation_waits_as_often_for_more_batches("accuracy")),
}


@pytest.mark.parametrize("subpackage", PLANTS)
def test_a_read_value_is_found_in_every_subpackage(subpackage, monkeypatch):
    owner, name, test = PLANTS[subpackage]
    function = getattr(owner, name)

    def reading(*args, **kwargs):
        result = function(*args, **kwargs)
        held = [
            [*leaf.parameters()] if isinstance(leaf, nn.Module) else leaf
            for leaf in tree_leaves((args, kwargs, result))
        ]
        next(leaf for leaf in tree_leaves(held) if isinstance(leaf, FakeTensor)).sum().item()
        return result

    monkeypatch.setattr(owner, name, reading)
    with pytest.raises(AssertionError):
        test()


def test_a_copy_from_memory_that_is_not_pinned_is_found():
    with device(), pytest.raises(WaitError, match="pinned"):
        torch.ones(3).to("cuda", non_blocking=True)
