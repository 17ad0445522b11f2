"""Schedules: closed forms at every step."""

import dataclasses
import math
import re

import pytest
import torch
from torch.optim.lr_scheduler import LambdaLR

from advcontrast.optim.schedules import MultiStep, WarmupCosine

TOLERANCE = 1e-12  # relative


def factors(schedule, steps):
    return [schedule(step) for step in range(steps)]


@pytest.mark.parametrize("floor", [0.0, 0.25])
@pytest.mark.parametrize(("steps", "warmup"), [(20, 0), (20, 1), (20, 5), (21, 20), (2, 0)])
def test_warmup_cosine_is_the_closed_form(steps, warmup, floor):
    peak = max(warmup - 1, 0)
    expected = [(step + 1) / warmup for step in range(warmup)]
    for step in range(warmup, steps):
        turn = math.pi * (step - peak) / (steps - 1 - peak)
        expected.append(floor + (1 - floor) * (1 + math.cos(turn)) / 2)
    ours = factors(WarmupCosine(steps, warmup=warmup, floor=floor), steps)
    assert ours == pytest.approx(expected, rel=TOLERANCE, abs=TOLERANCE)


def test_warmup_is_that_of_the_acl_code():
    schedule = WarmupCosine(98_000, warmup=980)
    assert schedule(0) == 1 / 980
    assert schedule(979) == 1.0
    assert schedule(980) < 1.0


def test_cosine_without_warmup_starts_at_the_peak():
    assert WarmupCosine(10)(0) == 1.0


@pytest.mark.parametrize("floor", [0.0, 0.1, 0.3, 1.0])
@pytest.mark.parametrize("warmup", [0, 3])
def test_last_step_is_exactly_at_the_floor(warmup, floor):
    assert WarmupCosine(10, warmup=warmup, floor=floor)(9) == floor


def test_steps_beyond_the_last_stay_at_the_floor():
    assert factors(WarmupCosine(10, warmup=3, floor=0.1), 30)[9:] == [0.1] * 21


def test_cosine_never_rises_and_warmup_never_falls():
    ours = factors(WarmupCosine(100, warmup=10, floor=0.1), 100)
    assert ours[:10] == sorted(ours[:10])
    assert ours[9:] == sorted(ours[9:], reverse=True)


@pytest.mark.parametrize(("steps", "warmup"), [(1, 0), (1, 1), (5, 5)])
def test_training_without_room_for_the_cosine_ends_at_the_peak(steps, warmup):
    assert WarmupCosine(steps, warmup=warmup)(steps - 1) == 1.0


@pytest.mark.parametrize("floor", [0.0, 1 / 3, 0.7, 1.0])
def test_every_factor_is_a_fraction(floor):
    assert all(0 <= factor <= 1 for factor in factors(WarmupCosine(997, warmup=13, floor=floor), 1100))


def test_multi_step_drops_at_its_milestones():
    expected = [1.0] * 3 + [0.1] * 2 + [0.1**2] * 5
    assert factors(MultiStep((3, 5)), 10) == expected


@pytest.mark.parametrize("gamma", [0.5, 1.0, 1])
def test_multi_step_is_a_power_of_gamma(gamma):
    schedule = MultiStep((1, 2, 7), gamma=gamma)
    assert factors(schedule, 9) == [gamma**drops for drops in (0, 1, 2, 2, 2, 2, 2, 3, 3)]


def test_multi_step_without_milestones_is_constant():
    assert factors(MultiStep(()), 5) == [1.0] * 5


def test_multi_step_is_that_of_pytorch():
    weight = torch.nn.Parameter(torch.zeros(1))
    theirs = torch.optim.lr_scheduler.MultiStepLR(torch.optim.SGD([weight], lr=1.0), (2, 4), gamma=0.5)
    for step in range(6):
        assert theirs.get_last_lr() == [MultiStep((2, 4), gamma=0.5)(step)]
        theirs.optimizer.step()
        theirs.step()


@pytest.mark.parametrize("schedule", [WarmupCosine(10, warmup=3, floor=0.1), MultiStep((15, 20), gamma=0.5)])
def test_repr_reads_as_the_call(schedule):
    assert eval(repr(schedule)) == schedule


def test_milestones_become_a_tuple():
    assert hash(MultiStep([15, 20])) == hash(MultiStep((15, 20)))


@pytest.mark.parametrize("schedule", [WarmupCosine(10), MultiStep((15, 20))])
def test_schedules_are_frozen(schedule):
    name = dataclasses.fields(schedule)[0].name
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(schedule, name, 5)


def scheduled():
    weight = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([weight], lr=2.0)
    return optimizer, LambdaLR(optimizer, WarmupCosine(10, warmup=4))


def test_schedule_drives_a_scheduler_of_pytorch_and_resumes_with_it():
    optimizer, scheduler = scheduled()
    rates = []
    for step in range(10):
        if step == 6:
            state = optimizer.state_dict(), scheduler.state_dict()
            optimizer, scheduler = scheduled()
            optimizer.load_state_dict(state[0])
            scheduler.load_state_dict(state[1])
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert rates == [2.0 * factor for factor in factors(WarmupCosine(10, warmup=4), 10)]


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: WarmupCosine(0), ValueError, "WarmupCosine: expected steps "),
        (lambda: WarmupCosine(1e3), TypeError, "WarmupCosine: expected steps "),
        (lambda: WarmupCosine(10, warmup=-1), ValueError, "WarmupCosine: expected warmup "),
        (lambda: WarmupCosine(10, warmup=11), ValueError, "WarmupCosine: expected warmup <= steps"),
        (lambda: WarmupCosine(10, floor=1.5), ValueError, "WarmupCosine: expected floor "),
        (lambda: MultiStep(15), TypeError, "MultiStep: expected milestones to be"),
        (lambda: MultiStep("15"), TypeError, "MultiStep: expected milestones to be"),
        (lambda: MultiStep((0, 5)), ValueError, "MultiStep: expected each of milestones "),
        (lambda: MultiStep((1.5,)), TypeError, "MultiStep: expected each of milestones "),
        (lambda: MultiStep((20, 15)), ValueError, "MultiStep: expected milestones in ascending order"),
        (lambda: MultiStep((5, 5)), ValueError, "MultiStep: expected milestones in ascending order"),
        (lambda: MultiStep((5,), gamma=0), ValueError, "MultiStep: expected gamma "),
    ],
)
def test_wrong_settings(make, error, message):
    with pytest.raises(error, match=re.escape(message)):
        make()


@pytest.mark.parametrize("schedule", [WarmupCosine(10), MultiStep((5,))], ids=lambda s: type(s).__name__)
@pytest.mark.parametrize(("step", "error", "got"), [(-1, ValueError, "-1"), (0.5, TypeError, "float")])
def test_wrong_step(schedule, step, error, got):
    with pytest.raises(error, match=f"^{type(schedule).__name__}: expected step .*, got {got}"):
        schedule(step)
