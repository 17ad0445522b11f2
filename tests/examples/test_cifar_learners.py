"""One step of the learner of the CIFAR scripts, beside the same step written by hand; and what their presets say."""

import copy
from dataclasses import asdict

import pytest
import torch
from torch import nn

from advcontrast import PGDAttack
from advcontrast.evaluation import protocol
from tests.examples.cifar import FEW, TINY, flags_of, inside, scripts_importable

TOLERANCE = 1e-5  # of losses around 2 in float32
ATTACK = PGDAttack(eps=0.2, step_size=0.05, steps=8)
SOME = torch.tensor([0, -1, 2, -1])
TEACHER = torch.tensor([[0.0, 3, 0], [0, 0, 3], [3, 0, 0], [0, 2, 1]])


def still(x):
    """Return the images as they are, and draw nothing."""
    return x


@pytest.fixture
def learners():
    with scripts_importable():
        from baselines import uat

        yield uat


def network():
    """Return a network of two parts, with running statistics, so that modes can be told apart."""
    encoder = nn.Sequential(nn.Flatten(), nn.Linear(12, 5), nn.BatchNorm1d(5), nn.ReLU())
    model = nn.Sequential()
    model.add_module("encoder", encoder)
    model.add_module("head", nn.Linear(5, 3))
    # Of confident predictions it shows which way round a divergence is.
    nn.init.normal_(model.head.weight, std=3.0)
    return model


def images():
    return torch.rand(4, 3, 2, 2) * 0.8 + 0.1


def cross_entropy(logits, labels):
    """Return the cross-entropy of each sample, by its definition."""
    return logits.logsumexp(1) - logits[torch.arange(len(labels)), labels]


def divergence(p, q):
    p, q = p.log_softmax(1), q.log_softmax(1)
    return (p.exp() * (p - q)).sum(1)


def by_hand(model, x, objective, draw):
    """Return what the attack finds, by the definition of projected gradient descent, from the same start."""
    torch.random.set_rng_state(draw)
    start = PGDAttack(eps=ATTACK.eps, step_size=ATTACK.step_size, steps=0)(lambda z: z.sum(), x)
    model.eval()
    for _ in range(ATTACK.steps):
        start.requires_grad_()
        (gradient,) = torch.autograd.grad(objective(model(start)).sum(), start)
        start = start.detach() + ATTACK.step_size * gradient.sign()
        start = torch.clamp(start, x - ATTACK.eps, x + ATTACK.eps).clamp(0, 1)
    model.train()
    return start


def stepped(learner, twin, *batch, objective):
    """Return what a learner says of a batch, and the logits of its twin for clean and for attacked images."""
    draw = torch.random.get_rng_state()
    output = learner(*batch)
    adv = by_hand(twin, batch[0], objective, draw)
    return output, twin(batch[0]), twin(adv)


def near(one, other):
    torch.testing.assert_close(one, other, atol=TOLERANCE, rtol=TOLERANCE)


@pytest.mark.parametrize("online", [False, True])
@pytest.mark.parametrize("fixed", [False, True])
def test_uat_has_the_terms_it_is_asked_for(learners, online, fixed):
    model, x = network(), images()
    twin = copy.deepcopy(model)
    calm = copy.deepcopy(model).eval()(x).detach()
    learner = learners.UAT(model, augment=still, attack=ATTACK, online=online, fixed=fixed, weight=0.5)
    targets = torch.where(SOME >= 0, SOME, (TEACHER if fixed else calm).argmax(1))
    output, clean, adv = stepped(
        learner, twin, x, SOME, TEACHER, objective=lambda logits: cross_entropy(logits, targets)
    )
    error = cross_entropy(adv, targets)
    loss = (error * torch.tensor([1, 0.5 * fixed, 1, 0.5 * fixed])).mean()
    near(output.loss, loss + 0.5 * online * divergence(clean, adv).mean())


def test_the_online_target_of_uat_gets_no_gradient(learners):
    model, x = network(), images()
    twin = copy.deepcopy(model)
    calm = copy.deepcopy(model).eval()(x).argmax(1)
    learner = learners.UAT(model, augment=still, attack=ATTACK, online=True, fixed=False, weight=1.0)
    batch = (x, torch.full((4,), -1), TEACHER)
    output, clean, adv = stepped(learner, twin, *batch, objective=lambda logits: cross_entropy(logits, calm))
    output.loss.backward()
    divergence(clean.detach(), adv).mean().backward()
    for one, other in zip(model.parameters(), twin.parameters(), strict=True):
        near(one.grad, other.grad)


def test_the_description_tells_learners_of_other_settings_apart(learners):
    def make(online):
        return learners.UAT(model, augment=still, attack=ATTACK, online=online, fixed=True, weight=1.0)

    model = network()
    assert make(False).extra_repr() != make(True).extra_repr()
    assert make(True).extra_repr() == make(True).train(False).extra_repr()


def presets(script):
    with scripts_importable():
        return __import__(script).PRESETS


@pytest.mark.parametrize(("name", "preset"), [("paper", "acl2020"), ("robustssl", "robustssl"), ("dynacl2023",) * 2])
@pytest.mark.parametrize(("script", "kinds"), [("linear", ("SLF", "ALF")), ("finetune", ("AFF",))])
def test_presets_are_protocols(script, kinds, name, preset):
    flags = presets(script)[name]
    for kind in kinds:
        wanted = asdict(protocol(preset, kind))
        wanted["milestones"] = ",".join(map(str, wanted["milestones"]))
        differing = {key for key, value in flags.items() if wanted[key] not in (value, None)}
        assert differing <= ({"loss"} if kind == "SLF" else set())


@pytest.mark.parametrize("script", ["linear", "finetune"])
def test_the_fast_preset_is_the_paper_in_ten_epochs(script):
    found = presets(script)
    assert found["fast"] == {**found["paper"], "epochs": 10, "milestones": "6,8"}


@pytest.mark.parametrize("script", ["linear", "finetune"])
@pytest.mark.parametrize("preset", ["robustssl", "dynacl2023"])
@pytest.mark.sample(2)
def test_a_script_trains_with_the_numbers_of_a_preset(script, preset, tmp_path):
    tiny = (*FEW, "--epochs", "1", "--attack-steps", "1")
    assert inside(script, *tiny, "--preset", preset, "--out", tmp_path) == 0
    settings = flags_of(tmp_path)
    wanted = protocol(preset, "AFF" if script == "finetune" else "SLF")
    assert (settings["lr"], settings["nesterov"], settings["batch_size"]) == (
        wanted.lr,
        wanted.nesterov,
        wanted.batch_size,
    )


def test_linear_evaluation_minimises_what_it_is_told(tmp_path):
    flags = (*TINY, "--train", "adversarial")
    assert inside("linear", *flags, "--loss", "adversarial-ce", "--out", tmp_path / "ce") == 0
    assert inside("linear", *flags, "--out", tmp_path / "trades") == 0
    headers = [(tmp_path / name / "metrics.csv").read_text().splitlines()[0] for name in ("ce", "trades")]
    assert ["train_ta" in header for header in headers] == [False, True]
