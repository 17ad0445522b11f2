"""Learning rates of ``fit``: those that the optimizer has when it is passed."""

import pytest
import torch
from torch import nn

from advcontrast.engine import fit
from advcontrast.optim import WarmupCosine
from tests.engine.learners import Halving, Interrupted, Separable, sgd, train


class Mean(nn.Module):
    """A weight with the gradient 1."""

    def __init__(self):
        super().__init__()
        self.model = nn.Linear(1, 1, bias=False)
        nn.init.ones_(self.model.weight)

    def forward(self, x):
        return self.model(x).mean(), {}


def step_of(learner, optimizer, **settings):
    """Take one step and return its length and the reported rate."""
    before = learner.model.weight.item()
    (row,) = fit(learner, torch.ones(4, 1), epochs=1, batch_size=4, optimizer=optimizer, **settings)
    return before - learner.model.weight.item(), row["lr"]


@pytest.mark.parametrize("schedule", [1.0, 1, lambda step: 1.0])
def test_the_rate_of_a_second_stage_is_the_one_that_was_set(schedule):
    learner = Mean()
    optimizer = torch.optim.SGD(learner.parameters(), lr=0.1)
    assert step_of(learner, optimizer, schedule=schedule) == pytest.approx((0.1, 0.1))
    optimizer.param_groups[0]["lr"] = 0.001
    assert step_of(learner, optimizer, schedule=schedule) == pytest.approx((0.001, 0.001), rel=1e-4)


def test_a_number_is_the_fraction_of_every_step():
    learner = Mean()
    assert step_of(learner, torch.optim.SGD(learner.parameters(), lr=0.1), schedule=0.5) == pytest.approx((0.05, 0.05))


def test_the_rate_that_a_scheduler_of_pytorch_has_noted_is_not_used():
    learner = Mean()
    optimizer = torch.optim.SGD(learner.parameters(), lr=0.1)
    torch.optim.lr_scheduler.StepLR(optimizer, 10)
    optimizer.param_groups[0]["lr"] = 0.001
    assert step_of(learner, optimizer, schedule=1.0) == pytest.approx((0.001, 0.001), rel=1e-4)


@pytest.mark.parametrize("lr", [0.1, torch.tensor(0.1)], ids=["number", "tensor"])
@pytest.mark.parametrize("schedule", [None, Halving(4)], ids=["finished", "interrupted"])
def test_afterwards_the_optimizer_has_its_rates_again(tmp_path, lr, schedule):
    learner = Separable()
    groups = [{"params": learner.model[:3].parameters()}, {"params": learner.model[3:].parameters(), "lr": 0.3}]
    optimizer = torch.optim.AdamW(groups, lr=lr)
    try:
        train(learner, optimizer=optimizer, schedule=schedule, folder=tmp_path)
    except Interrupted:
        train(learner, optimizer=optimizer, folder=tmp_path)  # a resume loads the rates of the checkpoint
    assert [group["lr"] for group in optimizer.param_groups] == [lr, 0.3]
    assert "initial_lr" not in optimizer.param_groups[0]


def test_afterwards_also_means_after_ctrl_c():
    def interrupt(epoch):
        raise KeyboardInterrupt

    learner = Separable()
    optimizer = sgd(learner)
    with pytest.raises(KeyboardInterrupt):
        train(learner, optimizer=optimizer, evaluate=interrupt)
    assert optimizer.param_groups[0]["lr"] == 0.1


@pytest.mark.parametrize("lr", [0.1, torch.tensor(0.1)], ids=["number", "tensor"])
@pytest.mark.parametrize("change", ["by hand", "scheduler", "new group"])
@pytest.mark.parametrize("caller", ["evaluate", "after_step"])
def test_a_rate_that_a_function_of_the_user_sets_is_refused(caller, change, lr):
    learner = Separable()
    optimizer = torch.optim.SGD(learner.model[:5].parameters(), lr=lr)
    plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0)
    plateau.step(0.0)
    learner.model[5].requires_grad_(False)
    changes = {
        "by hand": lambda: optimizer.param_groups[0].update(lr=0.001),
        "scheduler": lambda: plateau.step(1.0),
        "new group": lambda: optimizer.add_param_group({"params": [*learner.model[5].parameters()]}),
    }
    with pytest.raises(RuntimeError, match=f"^fit: expected {caller} to leave the learning rates unchanged"):
        train(learner, optimizer=optimizer, schedule=1.0, **{caller: lambda _: changes[change]() or {}})
    assert optimizer.param_groups[0]["lr"] == lr


def test_the_log_names_the_schedule_of_an_optimizer_that_is_passed(caplog):
    learner = Separable()
    with caplog.at_level("INFO", logger="advcontrast"):
        train(learner, schedule=None)
    assert caplog.records[0].getMessage() == f"SGD with lr 0.1, schedule {WarmupCosine(6)}"
