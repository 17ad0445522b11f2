"""Evaluations restore buffers that a forward pass updates in eval mode."""

import pytest
import torch
from torch import nn

from advcontrast import PGDAttack, fit
from advcontrast import evaluation as e
from advcontrast.evaluation import masking
from advcontrast.norm import DualNorm
from advcontrast.strategies import StandardTrainer

X = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
Y = torch.tensor([0, 1, 2, 0])
BATCHES = [(X, Y)]
ATTACK = PGDAttack(eps=0.1, step_size=0.1, steps=1)


class Counting(nn.Module):
    """A classifier that counts its images, in place and by rebinding a buffer, as quantisation or a codebook does."""

    def __init__(self, norm):
        super().__init__()
        self.register_buffer("seen", torch.zeros(()))
        self.register_buffer("largest", torch.zeros(()))
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 4), norm)

    def forward(self, x):
        self.seen += len(x)
        self.largest = torch.maximum(self.largest, x.detach().max())
        return self.layers(x)


class Awake(Counting):
    """A classifier that updates the running statistics of its norm in eval mode, by a function and by ``train()``."""

    def __init__(self, norm):
        super().__init__(norm)
        self.first, self.second = nn.BatchNorm2d(3), nn.BatchNorm2d(3)

    def forward(self, x):
        nn.functional.batch_norm(x.detach(), self.first.running_mean, self.first.running_var, training=True)
        self.second.train()(x.detach())
        self.second.eval()
        return self.layers(x)


def right(model):
    """Return labels that the model predicts."""
    with torch.no_grad():
        return [(X, model.layers(X).argmax(1))]


CALLS = {
    "accuracy": lambda model: e.accuracy(model, BATCHES),
    "robust_accuracy": lambda model: e.robust_accuracy(model, BATCHES, ATTACK),
    "robust_curve": lambda model: e.robust_curve(model, BATCHES, ATTACK, eps=[0.0, 0.1]),
    "uar": lambda model: e.uar(model, BATCHES, "pgd_linf", steps=1),
    "corruption_accuracy": lambda model: e.corruption_accuracy(model, [("fog", 1, BATCHES)]),
    "label_free_robustness": lambda model: e.label_free_robustness(model, BATCHES, ATTACK),
    "branch_gap": lambda model: e.branch_gap(model, BATCHES),
    "gradient_masking": lambda model: e.gradient_masking(model, right(model), ATTACK),
    "randomised_output": lambda model: masking.randomised_output(model, X),
    "batch_dependence": lambda model: masking.batch_dependence(model, X),
    "probability_output": lambda model: masking.probability_output(model, X),
    "zero_gradients": lambda model: masking.zero_gradients(model, BATCHES),
}


@pytest.mark.parametrize("name", CALLS)
def test_buffers_are_restored(name):
    torch.manual_seed(0)
    model = Counting(DualNorm(nn.LayerNorm(4)))
    seen, largest = model.seen, model.largest
    CALLS[name](model)
    assert model.seen is seen
    assert model.largest is largest
    assert seen == largest == 0


@pytest.mark.parametrize("name", CALLS)
def test_running_statistics_that_move_in_eval_mode_are_restored(name):
    model = Awake(DualNorm(nn.LayerNorm(4)))
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    CALLS[name](model)
    assert all(torch.equal(buffer, before[name]) for name, buffer in model.named_buffers())


def test_evaluating_between_epochs_changes_nothing():
    def trained(evaluate):
        torch.manual_seed(0)
        model = Counting(nn.LayerNorm(4))
        trainer = StandardTrainer(model)
        fit(trainer, (X, Y), epochs=2, batch_size=2, evaluate=evaluate and (lambda epoch: evaluate(model)))
        return model.state_dict()

    alone = trained(None)
    watched = trained(lambda model: {"ta": e.accuracy(model, [(torch.ones_like(X), Y)]).accuracy})
    assert alone["largest"] < 1
    assert all(torch.equal(alone[name], watched[name]) for name in alone)


def test_a_frozen_encoder_stays_as_it_is():
    model = nn.Sequential()
    model.encoder, model.head = Counting(nn.LayerNorm(4)), nn.Linear(4, 4)
    StandardTrainer(model, frozen=True)(X, Y)
    assert model.encoder.seen == 0
