"""foolbox's attacks on our models, and where ours go."""

import re
import warnings

import pytest
import torch

from advcontrast import ACLTrainer, PGDAttack, export_branch
from advcontrast.attacks import ClassificationObjective
from advcontrast.evaluation import accuracy, robust_accuracy
from advcontrast.strategies import AdversarialTrainer
from tests.adapters.networks import everything, images, random_states
from tests.processes import run

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)
    foolbox = pytest.importorskip("foolbox", reason="foolbox is not installed")
from advcontrast.adapters.foolbox import FoolboxAttack, as_foolbox_model

X, EPS = images(), 0.1
ATTACKS = {
    "LinfPGD": lambda: foolbox.attacks.LinfPGD(steps=3),
    "L2PGD": lambda: foolbox.attacks.L2PGD(steps=3),
    "DeepFool": lambda: foolbox.attacks.LinfDeepFoolAttack(steps=3),
    "CW": lambda: foolbox.attacks.L2CarliniWagnerAttack(steps=3, binary_search_steps=1),
    "Boundary": lambda: foolbox.attacks.BoundaryAttack(steps=5),
    "SaltAndPepper": lambda: foolbox.attacks.SaltAndPepperNoiseAttack(steps=5),
}


# Our models for its attacks


@pytest.mark.parametrize("branch", ["clean", "adv"])
def test_its_model_is_the_chosen_branch_in_eval_mode(model, branch):
    found = as_foolbox_model(model, branch=branch)(X)
    assert torch.equal(found, export_branch(model, branch).eval()(X))


def test_without_a_branch_it_is_the_one_that_is_active(model):
    assert torch.equal(as_foolbox_model(model)(X), export_branch(model, "clean").eval()(X))


def test_later_changes_of_the_weights_are_visible(model):
    view = as_foolbox_model(model, branch="adv")
    with torch.no_grad():
        model[5].bias.add_(1)
    assert torch.equal(view(X), export_branch(model, "adv").eval()(X))


def test_its_bounds_and_device_are_ours(model):
    view = as_foolbox_model(model, bounds=(-1.0, 2.0))
    assert view.bounds == (-1.0, 2.0)
    assert view.device == torch.device("cpu")
    assert isinstance(view, foolbox.PyTorchModel)


def test_a_model_on_another_device_stays_there(model):
    assert as_foolbox_model(model.to("meta")).device == torch.device("meta")
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}


@pytest.mark.parametrize("branch", [None, "adv"])
@pytest.mark.parametrize("name", ["LinfPGD", "L2PGD", "Boundary"])
def test_its_success_flags_are_what_we_find(model, branch, name):
    plain = export_branch(model, branch or "clean").eval()
    labels = plain(X).argmax(1)
    before = everything(model)
    torch.manual_seed(0)
    _, clipped, success = ATTACKS[name]()(as_foolbox_model(model, branch=branch), X, labels, epsilons=[0.01, 1.0, 5.0])
    assert everything(model) == before
    for adv, flags in zip(clipped, success, strict=True):
        assert torch.equal(flags, ~accuracy(plain, [(adv, labels)]).correct)
    assert 0 < success.sum() < success.numel()


# Its attacks where ours go


@pytest.mark.parametrize("name", ATTACKS)
@pytest.mark.parametrize("seeded", [True, False])
def test_its_attacks_leave_no_trace(model, labels, name, seeded):
    attack = FoolboxAttack(ATTACKS[name](), eps=EPS)
    before, randomness, x, y = everything(model), random_states(), X.clone(), labels.clone()
    adv = attack(
        ClassificationObjective(model, labels), X, generator=torch.Generator().manual_seed(0) if seeded else None
    )
    assert everything(model) == before
    assert torch.equal(X, x)
    assert torch.equal(labels, y)
    assert not adv.requires_grad
    assert adv.shape == X.shape
    assert (random_states() == randomness) is seeded
    assert random_states()[1:] == randomness[1:]


@pytest.mark.parametrize("name", ["LinfPGD", "L2PGD", "Boundary"])
def test_robust_accuracy_is_what_its_own_flags_say(model, labels, name):
    attack, batches = ATTACKS[name](), [(X[:7], labels[:7]), (X[7:], labels[7:])]
    verdicts = robust_accuracy(model, batches, FoolboxAttack(attack, eps=EPS)).correct
    seeds, expected = torch.Generator().manual_seed(0), []
    for x, y in batches:
        torch.manual_seed(int(torch.randint(2**62, (), generator=seeds)))
        expected.append(~attack(as_foolbox_model(model), x, y, epsilons=EPS)[2])
    assert torch.equal(verdicts, torch.cat(expected))


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_it_attacks_where_gradients_are_off(model, labels, context):
    attack = FoolboxAttack(foolbox.attacks.LinfPGD(steps=3, random_start=False), eps=EPS)
    expected = attack(ClassificationObjective(model, labels), X)
    with context():
        found = attack(ClassificationObjective(model, labels.clone()), X.clone())
    assert torch.equal(found, expected)


def test_images_a_rounding_error_out_of_range_are_let_pass(model, labels):
    attack = FoolboxAttack(ATTACKS["LinfPGD"](), eps=EPS)
    assert attack(ClassificationObjective(model, labels), X.clone().fill_(1 + 5e-7)).max() <= 1


class OwnTensor(torch.Tensor):
    """A subclass as users write them."""


@pytest.mark.parametrize("change", [lambda x: x.as_subclass(OwnTensor), lambda x: x.clone().requires_grad_()])
def test_subclasses_and_images_with_a_gradient_are_attacked_as_others(model, labels, change):
    attack, x = FoolboxAttack(foolbox.attacks.LinfPGD(steps=3, random_start=False), eps=EPS), change(X)
    expected = attack(ClassificationObjective(model, labels), X)
    assert torch.equal(attack(ClassificationObjective(model, labels), x), expected)
    assert x.grad is None


def test_labels_of_a_subclass_are_labels(model, labels):
    attack = FoolboxAttack(foolbox.attacks.LinfPGD(steps=3, random_start=False), eps=EPS)
    expected = attack(ClassificationObjective(model, labels), X)
    assert torch.equal(attack(ClassificationObjective(model, labels.as_subclass(OwnTensor)), X), expected)


def test_a_network_is_trained_on_what_its_attack_finds(model, labels):
    model = export_branch(model, "clean")
    attack = foolbox.attacks.LinfPGD(steps=3, random_start=False)
    adv, seen = attack(as_foolbox_model(model), X, labels, epsilons=EPS)[1], []
    trainer = AdversarialTrainer(model, attack=FoolboxAttack(attack, eps=EPS))
    model.register_forward_pre_hook(lambda module, x: seen.append(x[0].detach()))
    trainer(X, labels).loss.backward()
    assert torch.equal(seen[-1], adv)


def test_an_objective_without_labels_is_refused(model):
    learner = ACLTrainer(model, attack=FoolboxAttack(ATTACKS["LinfPGD"](), eps=EPS))
    expected = "FoolboxAttack: expected an objective with a model and labels, such as ClassificationObjective(model, y)"
    with pytest.raises(TypeError, match=re.escape(expected)):
        learner(X, X)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda m: as_foolbox_model(1), TypeError, "as_foolbox_model: expected model to be an nn.Module"),
        (lambda m: as_foolbox_model(m, branch="no"), ValueError, "bn_branch: expected"),
        (lambda m: as_foolbox_model(m, bounds=(1, 0)), ValueError, "as_foolbox_model: expected bounds (low, high)"),
        (lambda m: FoolboxAttack(PGDAttack(), eps=EPS), TypeError, "FoolboxAttack: expected attack to be"),
        (lambda m: FoolboxAttack(ATTACKS["CW"](), eps=None), TypeError, "FoolboxAttack: expected eps to be a finite"),
        (lambda m: FoolboxAttack(ATTACKS["CW"](), eps=-1), ValueError, "FoolboxAttack: expected eps to be a finite"),
        (
            lambda m: FoolboxAttack(ATTACKS["CW"](), eps=EPS)(
                ClassificationObjective(m, torch.zeros(12).long()), 2 * X
            ),
            ValueError,
            "FoolboxAttack: expected x within bounds [0.0, 1.0]",
        ),
    ],
)
def test_mistakes_are_named_and_change_nothing(model, call, error, message):
    before = everything(model)
    with pytest.raises(error, match=re.escape(message)):
        call(model)
    assert everything(model) == before


def test_the_repr_reads_as_the_call():
    text = repr(FoolboxAttack(foolbox.attacks.LinfPGD(steps=3), eps=0.5))
    assert text.startswith("FoolboxAttack(attack=LinfProjectedGradientDescentAttack(")
    assert text.endswith("eps=0.5)")


@pytest.mark.nightly
def test_importing_it_is_quiet_even_where_warnings_are_errors():
    code = "import advcontrast.evaluation, scipy, warnings; warnings.simplefilter('error', DeprecationWarning)\n"
    done = run("-c", code + "import advcontrast.adapters.foolbox")
    assert done.returncode == 0, done.stderr


@pytest.mark.nightly
def test_without_foolbox_the_adapter_says_what_to_install():
    code = "import sys; sys.modules['foolbox'] = None; import advcontrast.adapters.foolbox"
    done = run("-c", code)
    assert "ImportError: advcontrast.adapters.foolbox: expected foolbox, got " in done.stderr
    assert "Install it with pip install foolbox." in done.stderr
