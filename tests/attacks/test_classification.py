"""Classifying labelled images as an objective: its value, its parts, its checks."""

import math
import re

import pytest
import torch
from torch import nn

from advcontrast import PGDAttack
from advcontrast.attacks import ClassificationObjective, under_attack

X = torch.rand(6, 3, 2, 2, generator=torch.Generator().manual_seed(1))
Y = torch.tensor([0, 3, 1, 2, 2, 0])


def classifier():
    torch.manual_seed(3)
    return nn.Sequential(nn.Flatten(), nn.Linear(12, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 4)).eval()


def test_value_is_the_cross_entropy_of_each_image():
    model = classifier()
    with torch.no_grad():
        ours = ClassificationObjective(model, Y)(X).tolist()
        rows = model(X).double().tolist()
    expected = [math.log(math.fsum(map(math.exp, row))) - row[y] for row, y in zip(rows, Y.tolist(), strict=True)]
    assert ours == pytest.approx(expected, rel=1e-6)


def test_logits_are_the_output_of_the_model():
    model = classifier()
    assert torch.equal(ClassificationObjective(model, Y).logits(X), model(X))


def test_gradient_flows_to_the_images():
    x = X.clone().requires_grad_()
    (slope,) = torch.autograd.grad(ClassificationObjective(classifier(), Y)(x).sum(), x)
    assert (slope != 0).flatten(1).any(1).all()


@pytest.mark.parametrize("which", [torch.tensor([1, 0, 0, 1, 1, 0]).bool(), torch.tensor([4, 0, 4])])
def test_part_is_the_objective_of_these_images(which):
    objective = ClassificationObjective(classifier(), Y)
    torch.testing.assert_close(objective[which](X[which]), objective(X)[which])
    assert torch.equal(objective[which].y, Y[which])


def test_part_shares_the_model():
    objective = ClassificationObjective(classifier(), Y)
    assert objective[Y > 0].model is objective.model


def test_nothing_left_is_an_objective_too():
    assert ClassificationObjective(classifier(), Y)[Y > 9](X[:0]).shape == (0,)


def test_any_function_may_be_the_model():
    assert ClassificationObjective(lambda x: x.flatten(1), Y)(X).shape == (6,)


def test_attack_maximises_it_as_it_does_a_function():
    model, attack = classifier(), PGDAttack(eps=0.1, random_start=False)
    expected = attack(lambda x: nn.functional.cross_entropy(model(x), Y, reduction="none"), X)
    assert torch.equal(attack(ClassificationObjective(model, Y), X), expected)


def test_model_in_train_mode_is_refused_until_it_is_lent():
    model = classifier()
    model[2].train()
    message = "ClassificationObjective: expected a model in eval mode"
    with pytest.raises(RuntimeError, match=re.escape(message)):
        ClassificationObjective(model, Y)(X)
    with under_attack(model):
        assert ClassificationObjective(model, Y)(X).shape == (6,)


@pytest.mark.parametrize(
    ("model", "y", "error", "message"),
    [
        (None, Y, TypeError, "model to be"),
        (X, Y, TypeError, "model to be"),
        (classifier(), Y.tolist(), TypeError, "y to be"),
        (classifier(), Y.int(), TypeError, "y to be"),
        (classifier(), Y.float(), TypeError, "y to be"),
        (classifier(), nn.functional.one_hot(Y), ValueError, "y of shape"),
        (classifier(), Y[0], ValueError, "y of shape"),
    ],
)
def test_wrong_arguments(model, y, error, message):
    with pytest.raises(error, match=re.escape(f"ClassificationObjective: expected {message}")):
        ClassificationObjective(model, y)


@pytest.mark.parametrize(
    ("model", "y", "error", "message"),
    [
        (nn.Identity(), Y, ValueError, "the output of the model of shape"),
        (nn.Flatten(0), Y, ValueError, "the output of the model of shape"),
        (classifier(), Y[:5], ValueError, "the output of the model of shape"),
        (lambda x: None, Y, TypeError, "the output of the model to be"),
        (lambda x: x.flatten(1).argmax(1), Y, TypeError, "the output of the model to be"),
        (classifier(), Y + 1, ValueError, "labels within"),
        (classifier(), Y - 1, ValueError, "labels within"),
    ],
)
def test_wrong_calls(model, y, error, message):
    if isinstance(model, nn.Module):
        model.eval()
    with pytest.raises(error, match=re.escape(f"ClassificationObjective: expected {message}")):
        ClassificationObjective(model, y)(X)


@pytest.mark.parametrize(("x", "got"), [(None, "NoneType"), (X.tolist(), "list"), (Y, "torch.int64")])
def test_wrong_images(x, got):
    message = f"ClassificationObjective: expected x to be a floating point tensor, got {got}"
    with pytest.raises(TypeError, match=re.escape(message)):
        ClassificationObjective(classifier(), Y)(x)
