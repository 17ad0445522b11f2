"""Attacks of torchattacks where ours go, and ours called as torchattacks calls its own."""

import re

import pytest
import torch
from torch import nn

from advcontrast import ACLTrainer, PGDAttack, bn_branch, export_branch
from advcontrast.adapters.torchattacks import AsTorchattack, TorchattacksAttack
from advcontrast.attacks import APGDAttack, ClassificationObjective, under_attack
from advcontrast.evaluation import accuracy, robust_accuracy
from advcontrast.strategies import AdversarialTrainer, TRADESTrainer
from tests.adapters.networks import classifier, everything, images, random_states
from tests.processes import run

torchattacks = pytest.importorskip("torchattacks", reason="torchattacks is not installed")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

X, EPS = images(), 0.1
ATTACKS = {
    "PGD": lambda model: torchattacks.PGD(model, eps=EPS, alpha=0.05, steps=3),
    "FGSM": lambda model: torchattacks.FGSM(model, eps=EPS),
    "APGD": lambda model: torchattacks.APGD(model, eps=EPS, steps=3),
    "CW": lambda model: torchattacks.CW(model, steps=3),
    "Square": lambda model: torchattacks.Square(model, eps=EPS, n_queries=5),
    "Pixle": lambda model: torchattacks.Pixle(model, max_iterations=2),
    "DeepFool": lambda model: torchattacks.DeepFool(model, steps=2),
}


def objective_of(model, labels):
    return ClassificationObjective(model, labels)


# Theirs where ours go


def test_its_attack_gives_what_it_gives_itself_from_the_same_seed(model, labels):
    attack = ATTACKS["PGD"](model)
    seed = int(torch.randint(2**62, (), generator=torch.Generator().manual_seed(3)))
    generator = torch.Generator().manual_seed(3)
    found = TorchattacksAttack(attack)(objective_of(model, labels), X, generator=generator)
    torch.manual_seed(seed)
    assert torch.equal(found, attack(X, labels))


def test_devices_that_are_not_put_back_are_not_seeded(model, labels, monkeypatch):
    attack = TorchattacksAttack(ATTACKS["PGD"](model))
    seeded = []
    monkeypatch.setattr(torch, "manual_seed", seeded.append)
    attack(objective_of(model, labels), X)
    assert seeded == []


def test_robust_accuracy_under_its_attack_is_what_its_own_calls_give(model, labels):
    attack = torchattacks.PGD(model, eps=0.03, alpha=0.01, steps=3)
    batches = [(X[:7], labels[:7]), (X[7:], labels[7:])]
    verdicts = robust_accuracy(model, batches, TorchattacksAttack(attack)).correct
    seeds, expected = torch.Generator().manual_seed(0), []
    for x, y in batches:
        torch.manual_seed(int(torch.randint(2**62, (), generator=seeds)))
        adv = attack(x, y)
        with under_attack(model):
            expected.append(model(adv).argmax(1) == y)
    assert torch.equal(verdicts, torch.cat(expected))
    assert 0 < verdicts.sum() < len(X)


@pytest.mark.parametrize("name", ATTACKS)
@pytest.mark.parametrize("seeded", [True, False])
def test_its_attacks_leave_no_trace(model, labels, name, seeded):
    attack = TorchattacksAttack(ATTACKS[name](model))
    before, randomness = everything(model), random_states()
    images_before, labels_before = X.clone(), labels.clone()
    adv = attack(objective_of(model, labels), X, generator=torch.Generator().manual_seed(0) if seeded else None)
    assert everything(model) == before
    assert torch.equal(X, images_before)
    assert torch.equal(labels, labels_before)
    assert not adv.requires_grad
    assert adv.shape == X.shape
    assert (random_states() == randomness) is seeded
    assert random_states()[1:] == randomness[1:]


def test_an_attack_that_works_in_place_gets_copies(model, labels):
    class InPlace(torchattacks.attack.Attack):
        def forward(self, images, labels):
            labels.zero_()
            return images.mul_(0.5)

    x, y = X.clone(), labels.clone()
    assert torch.equal(TorchattacksAttack(InPlace("InPlace", model))(objective_of(model, y), x), 0.5 * X)
    assert torch.equal(x, X)
    assert torch.equal(y, labels)


def test_without_a_generator_each_call_draws_anew_even_of_an_attack_that_seeds_itself(model, labels):
    attack = TorchattacksAttack(ATTACKS["APGD"](model))
    torch.manual_seed(5)
    attack(objective_of(model, labels), X)
    first = torch.rand(3)
    attack(objective_of(model, labels), X)
    assert not torch.equal(first, torch.rand(3))


@pytest.mark.parametrize("name", ["PGD", "Pixle"])  # one draws from torch, one from NumPy
def test_the_generator_decides_the_noise(model, labels, name):
    attack = TorchattacksAttack(ATTACKS[name](model))
    first, again, other = (
        attack(objective_of(model, labels), X, generator=torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_it_attacks_where_gradients_are_off(model, labels, context):
    attack = TorchattacksAttack(torchattacks.PGD(model, eps=EPS, random_start=False))
    expected = attack(objective_of(model, labels), X)
    with context():
        found = attack(ClassificationObjective(model, labels.clone()), X.clone())
    assert torch.equal(found, expected)


def test_it_attacks_the_branch_that_is_active(model, labels):
    attack = TorchattacksAttack(torchattacks.PGD(model, eps=EPS, random_start=False))
    with bn_branch(model, "adv"):
        found = attack(objective_of(model, labels), X)
    plain = export_branch(model, "adv").eval()
    assert torch.equal(found, torchattacks.PGD(plain, eps=EPS, random_start=False)(X, labels))
    assert not torch.equal(found, attack(objective_of(model, labels), X))


def test_a_network_is_trained_on_what_its_attack_finds(model, labels):
    model = export_branch(model, "clean")
    attack = torchattacks.PGD(model, eps=EPS, random_start=False)
    adv, seen = attack(X, labels), []
    trainer = AdversarialTrainer(model, attack=TorchattacksAttack(attack))
    hook = model.register_forward_pre_hook(lambda module, x: seen.append(x[0].detach()) if torch.is_tensor(x[0]) else 0)
    trainer(X, labels).loss.backward()
    hook.remove()
    assert torch.equal(seen[-1], adv)
    assert model[5].weight.grad.isfinite().all()


def test_the_repr_says_which_attack(model):
    assert repr(TorchattacksAttack(ATTACKS["PGD"](model))).startswith("TorchattacksAttack(attack=PGD(")


@pytest.mark.parametrize("trainer", [ACLTrainer, TRADESTrainer])
def test_an_objective_without_labels_is_refused(model, labels, trainer):
    model = model if trainer is ACLTrainer else export_branch(model, "adv")
    learner = trainer(model, attack=TorchattacksAttack(ATTACKS["PGD"](model)))
    expected = (
        "TorchattacksAttack: expected an objective with a model and labels, such as ClassificationObjective(model, y)"
    )
    with pytest.raises(TypeError, match=re.escape(expected)):
        learner(X, X if trainer is ACLTrainer else labels)


@pytest.mark.parametrize("given", [lambda: ATTACKS["PGD"](classifier()), PGDAttack, lambda: None])
def test_an_attack_on_another_model_is_refused(model, labels, given):
    expected = "TorchattacksAttack: expected an attack on raw images and on the model that is attacked"
    with pytest.raises(ValueError, match=re.escape(expected)):
        robust_accuracy(model, [(X, labels)], TorchattacksAttack(given()))


def test_an_attack_that_normalises_by_itself_is_refused(model, labels):
    attack = ATTACKS["PGD"](model)
    attack.set_normalization_used(mean=[0.5] * 3, std=[0.5] * 3)
    with pytest.raises(ValueError, match=re.escape("Build it with the model that is evaluated.")):
        TorchattacksAttack(attack)(objective_of(model, labels), X)


def test_images_out_of_range_are_refused(model, labels):
    with pytest.raises(ValueError, match=re.escape("TorchattacksAttack: expected x within bounds [0.0, 1.0]")):
        TorchattacksAttack(ATTACKS["PGD"](model))(objective_of(model, labels), 2 * X)


# Ours called as theirs


@pytest.mark.parametrize("branch", ["clean", "adv"])
def test_our_attack_finds_what_it_finds_on_the_exported_branch(model, labels, branch):
    attack = PGDAttack(eps=EPS, random_start=False)
    found = AsTorchattack(attack, model, branch=branch)(X, labels)
    plain = export_branch(model, branch).eval()
    assert torch.equal(found, attack(ClassificationObjective(plain, labels), X))


def test_the_branches_differ(model, labels):
    clean, adv = (AsTorchattack(PGDAttack(random_start=False), model, b)(X, labels) for b in ("clean", "adv"))
    assert not torch.equal(clean, adv)


def test_our_attack_equals_theirs_where_the_algorithms_agree(model, labels):
    ours = PGDAttack(eps=EPS, step_size=EPS, steps=1, random_start=False)
    torch.testing.assert_close(
        AsTorchattack(ours, model)(X, labels), torchattacks.FGSM(model, eps=EPS)(X, labels), rtol=0, atol=1e-6
    )


@pytest.mark.parametrize("attack", [PGDAttack(eps=EPS, steps=2), APGDAttack(eps=EPS, steps=4)])
def test_our_attack_leaves_no_trace_but_the_noise_it_draws(model, labels, attack):
    before, randomness = everything(model), random_states()
    generator = torch.Generator().manual_seed(0)
    adv = AsTorchattack(attack, model, "adv")(X, labels, generator=generator)
    assert everything(model) == before
    assert random_states() == randomness
    assert (adv - X).abs().max() <= EPS
    assert AsTorchattack(attack, model, "adv")(X, labels).shape == X.shape
    assert random_states() != randomness


def test_labels_are_targets_of_an_attack_that_minimises(model, labels):
    targets = (labels + 1) % 5
    adv = AsTorchattack(PGDAttack(eps=0.5, step_size=0.1, steps=20, minimize=True), model)(X, targets)
    assert accuracy(model, [(adv, targets)]).accuracy > accuracy(model, [(X, targets)]).accuracy


def test_multi_attack_takes_our_attack_among_its_own(model, labels):
    ours = AsTorchattack(PGDAttack(eps=EPS, step_size=0.05, steps=5, random_start=False), model)
    both = torchattacks.MultiAttack([torchattacks.FGSM(model, eps=EPS), ours])(X, labels)
    fooled = {name: accuracy(model, [(x, labels)]).correct for name, x in (("both", both), ("ours", ours(X, labels)))}
    assert not (fooled["both"] & ~fooled["ours"]).any()


def test_the_repr_is_the_call_without_the_model(model):
    assert repr(AsTorchattack(PGDAttack(), model, "adv")) == (f"AsTorchattack(attack={PGDAttack()!r}, branch='adv')")


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda m: AsTorchattack("pgd", m), TypeError, "AsTorchattack: expected attack to be"),
        (lambda m: AsTorchattack(PGDAttack(), 1), TypeError, "AsTorchattack: expected model to be an nn.Mod"),
        (lambda m: AsTorchattack(PGDAttack(), m, "no"), ValueError, "bn_branch: expected"),
        (
            lambda m: AsTorchattack(PGDAttack(), nn.ReLU(), "adv"),
            ValueError,
            "branch: expected None for a network with",
        ),
        (
            lambda m: AsTorchattack(PGDAttack(), m)(X, [0] * 12),
            TypeError,
            "ClassificationObjective: expected y to be a",
        ),
        (lambda m: AsTorchattack(PGDAttack(), m)([X], torch.zeros(12).long()), TypeError, "PGDAttack: expected x"),
        (lambda m: AsTorchattack(PGDAttack(), m)(X, torch.full((12,), 7)), ValueError, "expected labels within"),
    ],
)
def test_mistakes_are_named_and_change_nothing(model, call, error, message):
    before = everything(model)
    with pytest.raises(error, match=re.escape(message)):
        call(model)
    assert everything(model) == before


def test_our_attacks_need_no_torchattacks():
    code = (
        "import sys; sys.modules['torchattacks'] = None\n"
        "import torch; from advcontrast import PGDAttack\n"
        "from advcontrast.adapters.torchattacks import AsTorchattack\n"
        "print(AsTorchattack(PGDAttack(), torch.nn.Flatten())(torch.rand(2, 3), torch.tensor([0, 1])).shape)"
    )
    assert run("-c", code).stdout == "torch.Size([2, 3])\n"


def test_a_branch_of_a_plain_network_is_refused_with_the_right_advice(model):
    plain = export_branch(model, "adv")
    text = "branch: expected None for a network with single norms"
    with pytest.raises(ValueError, match=re.escape(text)):
        AsTorchattack(PGDAttack(), plain, branch="adv")


def test_a_bare_attack_of_theirs_is_told_from_ours(model, labels):
    text = "robust_accuracy: expected an attack of advcontrast"
    with pytest.raises(TypeError, match=re.escape(text)):
        robust_accuracy(model, [(X, labels)], torchattacks.FGSM(model))


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (torch.full((12,), 9), "labels within bounds [0, 4]"),
        (torch.zeros(3, dtype=torch.int64), "12 labels, one per image"),
    ],
)
def test_labels_that_do_not_fit_are_refused_before_the_attack(labels, message):
    model = classifier().eval()
    with pytest.raises(ValueError, match=f"^{re.escape(f'TorchattacksAttack: expected {message}')}"):
        TorchattacksAttack(torchattacks.FGSM(model))(ClassificationObjective(model, labels), images())
