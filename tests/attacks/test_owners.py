"""An error names the attack that was called, whichever of its checks failed."""

import inspect

import pytest
import torch
from torch import nn

from advcontrast.attacks import (
    APGDAttack,
    ClassificationObjective,
    FreeAttack,
    PGDAttack,
    ProgressiveAttack,
    WarmStart,
    under_attack,
)
from advcontrast.evaluation.uar import ElasticAttack, FrankWolfeAttack, JPEGAttack
from advcontrast.models import Normalize

X, Y = torch.full((2, 3, 16, 16), 0.5), torch.tensor([0, 1])
ATTACKS = (APGDAttack, ElasticAttack, FrankWolfeAttack, JPEGAttack, PGDAttack)
CLASSIFIER = nn.Sequential(nn.Flatten(), nn.Linear(768, 2)).eval()


def brightness(x):
    return x.flatten(1).sum(1)


def nowhere(x):
    return torch.ones(len(x), requires_grad=True)


def steep(x):
    return (0 * x.flatten(1)).sqrt().sum(1)


SETTINGS = [
    (APGDAttack, {"eps": -1}),
    (APGDAttack, {"loss": "bce"}),
    (APGDAttack, {"restarts": 0}),
    (APGDAttack, {"targets": 0}),
    (ElasticAttack, {"eps": -1}),
    (ElasticAttack, {"step_size": 0}),
    (ElasticAttack, {"steps": -1}),
    (ElasticAttack, {"random_start": None}),
    (ElasticAttack, {"kernel_size": 0}),
    (ElasticAttack, {"kernel_size": 4}),
    (ElasticAttack, {"kernel_std": 0}),
    (ElasticAttack, {"minimize": None}),
    (FrankWolfeAttack, {"eps": -1}),
    (FrankWolfeAttack, {"steps": -1}),
    (FrankWolfeAttack, {"random_start": None}),
    (FrankWolfeAttack, {"minimize": None}),
    (FrankWolfeAttack, {"bounds": None}),
    (FrankWolfeAttack, {"bounds": (0.0, float("inf"))}),
    (FreeAttack, {"norm": "l1"}),
    (FreeAttack, {"step_size": 0}),
    (JPEGAttack, {"eps": -1}),
    (JPEGAttack, {"norm": "l0"}),
    (JPEGAttack, {"step_size": 0}),
    (JPEGAttack, {"norm": "l1", "step_size": 1.0}),
    (JPEGAttack, {"steps": -1}),
    (JPEGAttack, {"random_start": None}),
    (JPEGAttack, {"minimize": None}),
    (PGDAttack, {"eps": -1}),
    (PGDAttack, {"eps": 8}),
    (PGDAttack, {"steps": -1}),
    (PGDAttack, {"norm": "l1"}),
    (PGDAttack, {"bounds": None}),
    (PGDAttack, {"step_size": 0}),
    (PGDAttack, {"random_start": None}),
    (PGDAttack, {"minimize": None}),
    (PGDAttack, {"restarts": 0}),
    (ProgressiveAttack, {"stages": None}),
    (ProgressiveAttack, {"stages": []}),
    (ProgressiveAttack, {"stages": [None]}),
    (ProgressiveAttack, {"stages": [(0, PGDAttack()), (None, PGDAttack())]}),
    (ProgressiveAttack, {"stages": [(1, PGDAttack())]}),
    (WarmStart, {"attack": None}),
    (ClassificationObjective, {"model": None, "y": Y}),
    (ClassificationObjective, {"model": CLASSIFIER, "y": None}),
    (ClassificationObjective, {"model": CLASSIFIER, "y": Y[0]}),
]


@pytest.mark.parametrize(("owner", "settings"), SETTINGS)
def test_a_refused_setting_is_one_of_the_attack(owner, settings):
    with pytest.raises((TypeError, ValueError), match=f"^{owner.__name__}: expected "):
        owner(**settings)


@pytest.mark.parametrize("owner", [*ATTACKS, FreeAttack])
@pytest.mark.parametrize(
    ("objective", "x", "generator"),
    [
        (None, X, None),
        (brightness, X.half(), None),
        (brightness, X[0, 0, 0, 0], None),
        (brightness, X, 0),
        (brightness, X + 1, None),
        (brightness, X * torch.nan, None),
    ],
    ids=["objective", "dtype", "shape", "generator", "bounds", "not finite"],
)
def test_a_refused_call_is_one_of_the_attack(owner, objective, x, generator):
    with pytest.raises((TypeError, ValueError), match=f"^{owner.__name__}: expected "):
        owner()(objective, x, generator=generator)


@pytest.mark.parametrize("owner", ATTACKS)
@pytest.mark.parametrize("objective", [lambda x: None, lambda x: x, lambda x: brightness(x) * torch.nan])
def test_a_refused_objective_is_one_of_the_attack(owner, objective):
    with pytest.raises((TypeError, ValueError), match=f"^{owner.__name__}: expected "):
        owner()(objective, X)


@pytest.mark.parametrize("owner", [APGDAttack, FrankWolfeAttack, PGDAttack])
@pytest.mark.parametrize("objective", [nowhere, steep])
def test_a_refused_gradient_is_one_of_the_attack(owner, objective):
    with pytest.raises(ValueError, match=f"^{owner.__name__}: expected "):
        owner()(objective, X)


@pytest.mark.parametrize("start", [None, X[:1], X * torch.nan], ids=["type", "shape", "not finite"])
def test_a_refused_start_is_one_of_the_attack(start):
    with pytest.raises((TypeError, ValueError), match=r"^PGDAttack: expected "):
        PGDAttack()(brightness, X, start=start if start is not None else X.half())


@pytest.mark.parametrize("loss", ["dlr", "dlr-targeted"])
@pytest.mark.parametrize("objective", [brightness, ClassificationObjective(CLASSIFIER, Y)])
def test_a_refused_classifier_is_one_of_the_attack(loss, objective):
    with pytest.raises(ValueError, match=r"^APGDAttack: expected "):
        APGDAttack(loss=loss)(objective, X)


def test_a_refused_flow_is_one_of_the_attack():
    with pytest.raises(ValueError, match=r"^ElasticAttack: expected x of shape"):
        ElasticAttack()(brightness, X[:, 0])


@pytest.mark.parametrize(
    ("model", "x", "error"),
    [
        (nn.Sequential(nn.Flatten(), nn.Linear(768, 2)), X, RuntimeError),
        (CLASSIFIER, None, TypeError),
        (lambda x: None, X, TypeError),
        (lambda x: x, X, ValueError),
        (lambda x: x.flatten(1)[:, :1], X, ValueError),
    ],
    ids=["mode", "images", "type", "shape", "labels"],
)
def test_a_refused_model_is_one_of_the_objective(model, x, error):
    with pytest.raises(error, match=r"^ClassificationObjective: expected "):
        ClassificationObjective(model, Y).logits(x)


def test_a_refused_state_is_one_of_the_attack():
    with pytest.raises(TypeError, match=r"^ProgressiveAttack: expected state"):
        ProgressiveAttack([(None, PGDAttack())]).set_extra_state({})


def test_a_model_that_is_none_is_one_of_the_context():
    with pytest.raises(TypeError, match=r"^under_attack: expected model"), under_attack(None):
        pass


EVERY = (*ATTACKS, FreeAttack, WarmStart, ProgressiveAttack)
WRAPPED = {WarmStart: (PGDAttack(steps=1),), ProgressiveAttack: ([(None, PGDAttack(steps=1))],)}


@pytest.mark.parametrize("attack", EVERY)
def test_the_constructor_of_another_library_is_explained(attack):
    with pytest.raises(TypeError, match=rf"^{attack.__name__}: expected settings by name, got . by position"):
        attack(*WRAPPED.get(attack, ()), CLASSIFIER, eps=0.1)


@pytest.mark.parametrize("attack", EVERY)
def test_the_call_of_another_library_is_explained(attack):
    with pytest.raises(TypeError, match=rf"^{attack.__name__}: expected an objective and images, got 3 by position\."):
        attack(*WRAPPED.get(attack, ()))(CLASSIFIER, X, Y)


@pytest.mark.parametrize("attack", EVERY)
def test_names_of_another_library_are_explained(attack):
    own = WRAPPED.get(attack, ())
    with pytest.raises(TypeError, match=rf"^{attack.__name__}: expected arguments among .*, got alpha\. The model and"):
        attack(*own, alpha=0.1)
    with pytest.raises(TypeError, match=rf"^{attack.__name__}: expected arguments among objective, x, .*, got labels"):
        attack(*own)(CLASSIFIER, X, labels=Y)


@pytest.mark.parametrize("attack", EVERY)
def test_a_signature_names_the_settings_and_the_arguments(attack):
    call = attack.forward if issubclass(attack, nn.Module) else attack.__call__
    assert list(inspect.signature(call).parameters)[:4] == ["self", "objective", "x", "generator"]
    assert not any(part.kind is part.VAR_POSITIONAL for part in inspect.signature(attack).parameters.values())


@pytest.mark.parametrize("attack", ATTACKS)
def test_a_network_in_the_place_of_an_objective_is_explained(attack):
    with (
        under_attack(CLASSIFIER),
        pytest.raises(ValueError, match=r"Pass ClassificationObjective\(model, y\), or a function"),
    ):
        attack(steps=1)(CLASSIFIER, X)


class InPlace(nn.Module):
    """Normalises its input in place."""

    def forward(self, x):
        return CLASSIFIER(x.sub_(0.5).div_(0.25))


@pytest.mark.parametrize(
    "as_objective", [lambda model: ClassificationObjective(model, Y), lambda model: lambda x: model(x)[:, 0]]
)
@pytest.mark.parametrize("attack", ATTACKS)
def test_an_objective_may_change_its_argument(attack, as_objective):
    x = X.clone()
    settings = {"restarts": 1} if attack is PGDAttack else {}
    found, expected = (
        attack(steps=2, **settings)(as_objective(model.eval()), x, generator=torch.Generator().manual_seed(0))
        for model in (InPlace(), nn.Sequential(Normalize([0.5] * 3, [0.25] * 3), CLASSIFIER))
    )
    assert torch.equal(x, X)
    torch.testing.assert_close(found, expected)
