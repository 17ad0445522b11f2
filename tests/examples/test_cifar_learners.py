"""One step of each learner of the CIFAR scripts, beside the same step written by hand."""

import copy

import pytest
import torch
from torch import nn

from advcontrast import PGDAttack
from advcontrast.augment import CropFlip
from advcontrast.losses import SemiSupervisedLoss
from tests.examples.cifar import scripts_importable

TOLERANCE = 1e-5  # of losses around 2 in float32
ATTACK = PGDAttack(eps=0.2, step_size=0.05, steps=8)
NO_ATTACK = PGDAttack(eps=0.0, steps=0)
LABELS = torch.tensor([0, 1, 2, 1])
SOME = torch.tensor([0, -1, 2, -1])
TEACHER = torch.tensor([[0.0, 3, 0], [0, 0, 3], [3, 0, 0], [0, 2, 1]])


def still(x):
    """Return the images as they are, and draw nothing."""
    return x


@pytest.fixture
def learners():
    with scripts_importable():
        import learners

        yield learners


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


def test_standard_is_the_cross_entropy_of_the_images(learners):
    model, x = network(), images()
    output = learners.Standard(model, still)(x, LABELS)
    near(output.loss, cross_entropy(copy.deepcopy(model)(x), LABELS).mean())


def test_standard_augments_what_it_learns(learners):
    model, x = network().eval(), images()
    learner = learners.Standard(model, CropFlip(0, flip=1.0))
    learner.eval()
    near(learner(x, LABELS).loss, cross_entropy(model(x.flip(3)), LABELS).mean())


def test_the_accuracy_of_a_batch_is_in_percent(learners):
    assert learners.percent_right(torch.eye(4), torch.tensor([0, 1, 2, 0])).item() == 75


@pytest.mark.parametrize("adversarial", [False, True])
def test_a_frozen_encoder_does_not_change_to_the_bit(learners, adversarial):
    model = network()
    before = copy.deepcopy(model.encoder.state_dict())
    if adversarial:
        learner = learners.Trades(model, still, ATTACK, beta=6.0, frozen=True)
    else:
        learner = learners.Standard(model, still, frozen=True)
    head = model.head.weight.clone()
    optimizer = torch.optim.SGD([p for p in learner.parameters() if p.requires_grad], 0.5, weight_decay=0.1)
    learner.train()
    for _ in range(3):
        learner(images(), LABELS).loss.backward()
        optimizer.step()
    assert all(torch.equal(value, before[name]) for name, value in model.encoder.state_dict().items())
    assert not torch.equal(model.head.weight, head)


def test_only_the_head_of_a_frozen_learner_trains(learners):
    learner = learners.Standard(network(), still, frozen=True).train()
    assert [name for name, p in learner.named_parameters() if p.requires_grad] == [
        "model.head.weight",
        "model.head.bias",
    ]
    assert learner.model.head.training
    assert not any(module.training for module in learner.model.encoder.modules())


def test_a_learner_that_is_not_frozen_moves_the_statistics(learners):
    model = network()
    before = model.encoder[2].running_mean.clone()
    learners.Standard(model, still).train()(images(), LABELS)
    assert not torch.equal(model.encoder[2].running_mean, before)


def test_trades_is_the_loss_of_its_authors(learners):
    model, x = network(), images()
    twin = copy.deepcopy(model)
    calm = copy.deepcopy(model).eval()(x).detach()
    learner = learners.Trades(model, still, ATTACK, beta=6.0)
    output, clean, adv = stepped(learner, twin, x, LABELS, objective=lambda logits: divergence(calm, logits))
    near(output.loss, cross_entropy(clean, LABELS).mean() + 6 * divergence(clean, adv).mean())


def test_trades_has_the_gradients_and_statistics_of_the_step_by_hand(learners):
    model, x = network(), images()
    twin = copy.deepcopy(model)
    calm = copy.deepcopy(model).eval()(x).detach()
    learner = learners.Trades(model, still, ATTACK, beta=6.0)
    output, clean, adv = stepped(learner, twin, x, LABELS, objective=lambda logits: divergence(calm, logits))
    output.loss.backward()
    (cross_entropy(clean, LABELS).mean() + 6 * divergence(clean, adv).mean()).backward()
    for one, other in zip(model.parameters(), twin.parameters(), strict=True):
        near(one.grad, other.grad)
    near(model.encoder[2].running_mean, twin.encoder[2].running_mean)
    assert model.encoder[2].num_batches_tracked == 2  # clean and attacked, and nothing of the attack


def test_the_attack_does_not_leave_gradients(learners):
    model = network()
    learners.Trades(model, still, ATTACK, beta=6.0)(images(), LABELS)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_targets_are_labels_and_else_what_the_logits_say(learners):
    assert learners.targets_of(SOME, TEACHER).tolist() == [0, 2, 2, 1]


def test_semi_supervised_is_equation_3_on_an_attack_of_labels_and_pseudo_labels(learners):
    model, x = network(), images()
    twin = copy.deepcopy(model)
    learner = learners.SemiSupervised(model, still, ATTACK, SemiSupervisedLoss(alpha=0.25, temperature=1.0, beta=6.0))
    targets = torch.tensor([0, 2, 2, 1])
    output, clean, adv = stepped(
        learner, twin, x, SOME, TEACHER, objective=lambda logits: cross_entropy(logits, targets)
    )
    distilled = -(TEACHER.softmax(1) * adv.log_softmax(1)).sum(1)
    labelled = 0.25 * cross_entropy(adv, targets) + 0.75 * distilled
    terms = torch.where(SOME >= 0, labelled, distilled)
    near(output.loss, terms.mean() + 6 * divergence(clean, adv).mean())


@pytest.mark.parametrize("online", [False, True])
@pytest.mark.parametrize("fixed", [False, True])
def test_uat_has_the_terms_it_is_asked_for(learners, online, fixed):
    model, x = network(), images()
    twin = copy.deepcopy(model)
    calm = copy.deepcopy(model).eval()(x).detach()
    learner = learners.UAT(model, still, ATTACK, online=online, fixed=fixed, weight=0.5)
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
    learner = learners.UAT(model, still, ATTACK, online=True, fixed=False, weight=1.0)
    batch = (x, torch.full((4,), -1), TEACHER)
    output, clean, adv = stepped(learner, twin, *batch, objective=lambda logits: cross_entropy(logits, calm))
    output.loss.backward()
    divergence(clean.detach(), adv).mean().backward()
    for one, other in zip(model.parameters(), twin.parameters(), strict=True):
        near(one.grad, other.grad)


@pytest.mark.parametrize("name", ["Standard", "Trades", "UAT"])
def test_the_description_tells_learners_of_other_settings_apart(learners, name):
    model = network()
    make = {
        "Standard": lambda on: learners.Standard(model, still, frozen=on),
        "Trades": lambda on: learners.Trades(model, still, ATTACK if on else NO_ATTACK, beta=6.0),
        "UAT": lambda on: learners.UAT(model, still, ATTACK, online=on, fixed=True, weight=1.0),
    }[name]
    assert make(False).extra_repr() != make(True).extra_repr()
    assert make(True).extra_repr() == make(True).train(False).extra_repr()
