"""One step of each supervised trainer, beside the same step written by hand."""

import copy
import re
from collections import OrderedDict

import pytest
import torch
from torch import nn

from advcontrast import PGDAttack, convert_to_dual_bn, export_branch, fit
from advcontrast.augment import CropFlip
from advcontrast.losses import SemiSupervisedLoss
from advcontrast.strategies.semi_supervised import SemiSupervisedTrainer, targets_of
from advcontrast.strategies.supervised import AdversarialTrainer, StandardTrainer, batch_accuracy, percent_right
from advcontrast.strategies.trades import TRADESTrainer

TOLERANCE = 1e-5  # of losses around 2 in float32
ATTACK = PGDAttack(eps=0.2, step_size=0.05, steps=8)
NO_ATTACK = PGDAttack(eps=0.0, steps=0)
LABELS = torch.tensor([0, 1, 2, 1])
SOME = torch.tensor([0, -1, 2, -1])
TEACHER = torch.tensor([[0.0, 3, 0], [0, 0, 3], [3, 0, 0], [0, 2, 1]])


def network():
    """Return a network of two parts, with running statistics, so that modes can be told apart."""
    encoder = nn.Sequential(nn.Flatten(), nn.Linear(12, 5), nn.BatchNorm1d(5), nn.ReLU())
    model = nn.Sequential(OrderedDict(encoder=encoder, head=nn.Linear(5, 3)))
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


def near(one, other):
    torch.testing.assert_close(one, other, atol=TOLERANCE, rtol=TOLERANCE)


def same_step(model, twin, output, loss):
    """Compare a step with the loss of its twin: value, gradients, running statistics."""
    near(output.loss, loss)
    output.loss.backward()
    loss.backward()
    for one, other in zip(model.parameters(), twin.parameters(), strict=True):
        near(one.grad, other.grad)
    near(model.encoder[2].running_mean, twin.encoder[2].running_mean)
    near(model.encoder[2].running_var, twin.encoder[2].running_var)


def test_standard_is_the_cross_entropy_of_the_images():
    model, x = network(), images()
    twin = copy.deepcopy(model)
    output = StandardTrainer(model)(x, LABELS)
    same_step(model, twin, output, cross_entropy(twin(x), LABELS).mean())


def test_standard_augments_what_it_learns():
    model, x = network(), images()
    trainer = StandardTrainer(model, augment=CropFlip(0, flip=1.0)).eval()
    near(trainer(x, LABELS).loss, cross_entropy(model(x.flip(3)), LABELS).mean())


def test_8_bit_images_reach_the_model_in_the_unit_range():
    model, x = network(), (images() * 255).byte()
    trainer = StandardTrainer(model, augment=CropFlip(0, flip=0.0)).eval()
    near(trainer(x, LABELS).loss, cross_entropy(model(x.float() / 255), LABELS).mean())


def test_adversarial_is_the_cross_entropy_of_images_that_maximise_it():
    model, x = network(), images()
    twin, draw = copy.deepcopy(model), torch.random.get_rng_state()
    output = AdversarialTrainer(model, attack=ATTACK)(x, LABELS)
    adv = by_hand(twin, x, lambda logits: cross_entropy(logits, LABELS), draw)
    same_step(model, twin, output, cross_entropy(twin(adv), LABELS).mean())
    assert model.encoder[2].num_batches_tracked == 1  # the attacked images, and nothing of the attack
    assert set(output.terms) == {"train_ra"}


def test_adversarial_training_has_by_default_the_attack_of_the_protocols():
    assert AdversarialTrainer(network()).attack == PGDAttack(eps=8 / 255, step_size=2 / 255, steps=10)


def test_trades_is_the_loss_of_its_authors():
    model, x = network().double(), images().double()
    twin, draw = copy.deepcopy(model), torch.random.get_rng_state()
    calm = copy.deepcopy(model).eval()(x).detach()
    output = TRADESTrainer(model, attack=ATTACK, beta=3.0)(x, LABELS)
    adv = by_hand(twin, x, lambda logits: divergence(calm, logits), draw)
    clean, attacked = twin(x), twin(adv)
    same_step(model, twin, output, cross_entropy(clean, LABELS).mean() + 3 * divergence(clean, attacked).mean())
    assert model.encoder[2].num_batches_tracked == 2  # clean and attacked, and nothing of the attack
    near(output.terms["train_ta"], batch_accuracy(clean, LABELS))
    near(output.terms["train_ra"], batch_accuracy(attacked, LABELS))


def test_semi_supervised_is_equation_3_on_an_attack_of_labels_and_pseudo_labels():
    model, x, teacher = network().double(), images().double(), TEACHER.double()
    twin, draw = copy.deepcopy(model), torch.random.get_rng_state()
    loss = SemiSupervisedLoss(alpha=0.25, temperature=1.0, beta=6.0)
    output = SemiSupervisedTrainer(model, loss=loss, attack=ATTACK)(x, SOME, teacher)
    targets = torch.tensor([0, 2, 2, 1])
    clean_and_adv = by_hand(twin, x, lambda logits: cross_entropy(logits, targets), draw)
    clean, adv = twin(x), twin(clean_and_adv)
    distilled = -(teacher.softmax(1) * adv.log_softmax(1)).sum(1)
    labelled = 0.25 * cross_entropy(adv, targets) + 0.75 * distilled
    terms = torch.where(SOME >= 0, labelled, distilled)
    same_step(model, twin, output, terms.mean() + 6 * divergence(clean, adv).mean())
    near(output.terms["train_ra"], batch_accuracy(adv, targets))


def test_the_accuracy_of_a_batch_is_a_fraction():
    assert batch_accuracy(torch.eye(4), torch.tensor([0, 1, 2, 0])).item() == 0.75


def test_the_old_name_gives_percent():
    with pytest.warns(DeprecationWarning, match="percent_right has moved .* Use batch_accuracy, a fraction"):
        assert percent_right(torch.eye(4), torch.tensor([0, 1, 2, 0])).item() == 75


def test_targets_are_labels_and_else_what_the_logits_say():
    assert targets_of(SOME, TEACHER).tolist() == [0, 2, 2, 1]


@pytest.mark.parametrize("trainer", [StandardTrainer, AdversarialTrainer, TRADESTrainer])
def test_a_frozen_encoder_does_not_change_to_the_bit(trainer):
    model = network()
    before = copy.deepcopy(model.encoder.state_dict())
    head = model.head.weight.clone()
    settings = {} if trainer is StandardTrainer else {"attack": ATTACK}
    learner = trainer(model, frozen=True, **settings)
    optimizer = torch.optim.SGD([p for p in learner.parameters() if p.requires_grad], 0.5, weight_decay=0.1)
    learner.train()
    for _ in range(3):
        learner(images(), LABELS).loss.backward()
        optimizer.step()
    assert all(torch.equal(value, before[name]) for name, value in model.encoder.state_dict().items())
    assert not torch.equal(model.head.weight, head)


def test_only_the_head_of_a_frozen_trainer_trains():
    trainer = StandardTrainer(network(), frozen=True).train()
    assert [name for name, p in trainer.named_parameters() if p.requires_grad] == [
        "model.head.weight",
        "model.head.bias",
    ]
    assert trainer.model.head.training
    assert not any(module.training for module in trainer.model.encoder.modules())


def test_a_trainer_that_is_not_frozen_moves_the_statistics():
    model = network()
    before = model.encoder[2].running_mean.clone()
    StandardTrainer(model).train()(images(), LABELS)
    assert not torch.equal(model.encoder[2].running_mean, before)


@pytest.mark.parametrize("trainer", [AdversarialTrainer, TRADESTrainer])
def test_the_attack_does_not_leave_gradients(trainer):
    model = network()
    trainer(model, attack=ATTACK)(images(), LABELS)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_eval_logits_leave_no_trace():
    model, x = network(), images()
    expected = copy.deepcopy(model).eval()(x)
    before = copy.deepcopy(model.state_dict())
    logits = AdversarialTrainer(model).eval_logits(x)
    assert torch.equal(logits, expected)
    assert not logits.requires_grad
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert model.encoder.training


def test_the_loop_takes_every_trainer():
    x, y = torch.randint(0, 256, (8, 3, 4, 4), dtype=torch.uint8), torch.arange(8) % 2
    model = nn.Sequential(nn.Flatten(), nn.Linear(48, 2))
    augment = CropFlip(1)
    attack = PGDAttack(steps=1)
    runs = [
        (StandardTrainer(model, augment=augment), (x, y)),
        (AdversarialTrainer(model, attack=attack, augment=augment), (x, y)),
        (TRADESTrainer(model, attack=attack, augment=augment), (x, y)),
        (SemiSupervisedTrainer(model, attack=attack, augment=augment), (x, y, torch.zeros(8, 2))),
    ]
    rows = [fit(learner, data, epochs=1, batch_size=4)[-1] for learner, data in runs]
    assert all(row["loss"] > 0 for row in rows)


@pytest.mark.parametrize("name", ["frozen", "attack", "beta", "loss", "augment"])
def test_the_description_tells_trainers_of_other_settings_apart(name):
    one, other = {
        "frozen": lambda: [StandardTrainer(network(), frozen=on) for on in (False, True)],
        "attack": lambda: [AdversarialTrainer(network(), attack=attack) for attack in (ATTACK, NO_ATTACK)],
        "beta": lambda: [TRADESTrainer(network(), beta=beta) for beta in (6.0, 1.0)],
        "loss": lambda: [SemiSupervisedTrainer(network(), loss=SemiSupervisedLoss(alpha=a)) for a in (0.5, 1.0)],
        "augment": lambda: [StandardTrainer(network(), augment=CropFlip(pad)) for pad in (1, 2)],
    }[name]()
    assert repr(one) != repr(other)
    assert repr(one) == repr(one.train(False))


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: StandardTrainer(len), TypeError, "StandardTrainer: expected model to be"),
        (lambda: StandardTrainer(network(), augment=4), TypeError, "StandardTrainer: expected augment to be"),
        (lambda: StandardTrainer(network(), frozen=1), TypeError, "StandardTrainer: expected frozen to be"),
        (
            lambda: TRADESTrainer(nn.Flatten(), frozen=True),
            ValueError,
            "TRADESTrainer: expected a model with a part named encoder",
        ),
        (lambda: AdversarialTrainer(network(), attack="pgd"), TypeError, "AdversarialTrainer: expected attack to be"),
        (lambda: TRADESTrainer(network(), beta=-1), ValueError, "TRADESLoss: expected beta to be a finite number >= 0"),
        (lambda: SemiSupervisedTrainer(network(), loss="eq3"), TypeError, "SemiSupervisedTrainer: expected loss to be"),
    ],
)
def test_wrong_settings(make, error, message):
    with pytest.raises(error, match=re.escape(message)):
        make()


X = torch.full((4, 3, 2, 2), 0.5)
SHAPES = "expected images of shape [N, ...] and labels of shape [N] with N >= 1"


@pytest.mark.parametrize("trainer", [StandardTrainer, AdversarialTrainer, TRADESTrainer])
@pytest.mark.parametrize(
    ("x", "y", "error", "message"),
    [
        (X.byte(), LABELS, TypeError, "expected images to be"),
        (None, LABELS, TypeError, "expected images to be"),
        (X, LABELS[:3], ValueError, SHAPES),
        (X[:3], LABELS, ValueError, SHAPES),
        (X, LABELS[:, None], ValueError, SHAPES),
        (X[0, 0, 0, 0], LABELS[0], ValueError, SHAPES),
        (X[:0], LABELS[:0], ValueError, SHAPES),
        (X, LABELS.float(), TypeError, "expected labels to be"),
        (X, LABELS.tolist(), TypeError, "expected labels to be"),
        (X, LABELS - 1, ValueError, "expected labels within"),
    ],
)
def test_wrong_batches_are_refused_before_anything_moves(trainer, x, y, error, message):
    model, draw = network(), torch.random.get_rng_state()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(error, match=re.escape(f"{trainer.__name__}: {message}")):
        trainer(model)(x, y)
    assert torch.equal(torch.random.get_rng_state(), draw)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("trainer", [StandardTrainer, AdversarialTrainer, TRADESTrainer])
def test_labels_beyond_the_classes_of_the_model(trainer):
    message = f"{trainer.__name__}: expected labels within bounds [0, 2]"
    with pytest.raises(ValueError, match=re.escape(message)):
        trainer(network())(X, LABELS + 1)


@pytest.mark.parametrize("trainer", [StandardTrainer, AdversarialTrainer, TRADESTrainer])
def test_labels_on_another_device(trainer):
    message = f"{trainer.__name__}: expected logits and labels on one device, got cpu and meta. Move them to the device"
    with pytest.raises(ValueError, match=re.escape(message)):
        trainer(network())(X, LABELS.to("meta"))


@pytest.mark.parametrize("y", [LABELS[:3], LABELS - 1])
def test_wrong_labels_are_refused_before_the_augmentation_draws(y):
    trainer, draw = StandardTrainer(network(), augment=CropFlip(1)), torch.random.get_rng_state()
    with pytest.raises(ValueError, match=re.escape("StandardTrainer: expected ")):
        trainer((X * 255).byte(), y)
    assert torch.equal(torch.random.get_rng_state(), draw)


def test_an_augmentation_must_return_float_images():
    trainer = StandardTrainer(network(), augment=lambda x: x)
    message = "StandardTrainer: expected images to be"
    with pytest.raises(TypeError, match=re.escape(message)):
        trainer(X.byte(), LABELS)


@pytest.mark.parametrize("trainer", [StandardTrainer, AdversarialTrainer, TRADESTrainer])
def test_a_model_must_return_a_row_an_image(trainer):
    message = f"{trainer.__name__}: expected the output of the model of shape [4, C], a row per label, got [8, 6]. "
    with pytest.raises(ValueError, match=re.escape(message)):
        trainer(nn.Sequential(nn.Flatten(0), nn.Unflatten(0, (8, 6))))(X, LABELS)


def test_an_objective_must_be_callable():
    trainer, draw = AdversarialTrainer(network()), torch.random.get_rng_state()
    message = "AdversarialTrainer: expected objective to be"
    with pytest.raises(TypeError, match=re.escape(message)):
        trainer.attacked(X, None)
    assert torch.equal(torch.random.get_rng_state(), draw)


@pytest.mark.parametrize("trainer", [StandardTrainer, AdversarialTrainer, TRADESTrainer])
@pytest.mark.parametrize(
    ("model", "got"), [(nn.Flatten(0), "[48]"), (nn.Sequential(nn.Flatten(), nn.Linear(12, 1)), "[4, 1]")]
)
def test_a_model_that_does_not_classify(trainer, model, got):
    message = (
        f"{trainer.__name__}: expected the output of the model of shape [N, C] with C >= 2, got {got}. "
        "Pass a classifier whose output is its logits."
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        trainer(model)(X, LABELS)


@pytest.mark.parametrize(
    ("labels", "logits", "error", "message"),
    [
        (SOME[:3], TEACHER, ValueError, "expected labels of shape"),
        (SOME[:, None], TEACHER, ValueError, "expected labels of shape"),
        (SOME, TEACHER[:, 0], ValueError, "expected logits of shape"),
        (SOME, TEACHER[:, :0], ValueError, "expected logits of shape"),
        (SOME, TEACHER[:, :1], ValueError, "expected logits of shape"),
        (SOME + 1, TEACHER, ValueError, "expected labels within"),
        (SOME - 1, TEACHER, ValueError, "expected labels within"),
        (SOME.float(), TEACHER, TypeError, "expected labels to be"),
        (SOME, TEACHER.argmax(1), TypeError, "expected logits to be"),
    ],
)
def test_pseudo_labels_that_do_not_fit(labels, logits, error, message):
    model, draw = network(), torch.random.get_rng_state()
    with pytest.raises(error, match=re.escape(f"targets_of: {message}")):
        SemiSupervisedTrainer(model)(X, labels, logits)
    assert torch.equal(torch.random.get_rng_state(), draw)
    assert model.encoder[2].num_batches_tracked == 0


def test_pseudo_labels_on_another_device():
    message = "targets_of: expected logits and labels on one device"
    with pytest.raises(ValueError, match=re.escape(message)):
        SemiSupervisedTrainer(network())(X, SOME, TEACHER.to("meta"))


@pytest.mark.parametrize("kind", [StandardTrainer, AdversarialTrainer, TRADESTrainer])
def test_dual_norms_of_which_one_branch_would_be_trained_are_warned_of(kind):
    model = convert_to_dual_bn(nn.Sequential(nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(12, 2)))
    text = f"{kind.__name__}: expected a network with single norms, got dual norms"
    with pytest.warns(UserWarning, match=re.escape(text)):
        kind(model)
    kind(export_branch(model, "adv"))
