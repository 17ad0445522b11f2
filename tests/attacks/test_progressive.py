"""An attack that changes after so many calls."""

import re

import pytest
import torch

from advcontrast import PGDAttack
from advcontrast.attacks import ProgressiveAttack, WarmStart
from tests.engine.learners import acl, images, train


def named(name, log):
    def attack(objective, x, *, generator=None):
        log.append((name, generator))
        return x

    return attack


def test_each_stage_serves_its_calls_and_the_last_one_the_rest():
    log = []
    attack = ProgressiveAttack([(2, named("a", log)), (1, named("b", log)), (None, named("c", log))])
    for _ in range(6):
        attack(None, torch.zeros(1))
    assert "".join(name for name, _ in log) == "aabccc"


def test_current_looks_without_counting():
    stages = [(1, PGDAttack(steps=1)), (None, PGDAttack(steps=2))]
    attack = ProgressiveAttack(stages)
    assert [attack.current.steps for _ in range(3)] == [1, 1, 1]


def test_generator_is_passed_on():
    log, generator = [], torch.Generator()
    ProgressiveAttack([(None, named("a", log))])(None, torch.zeros(1), generator=generator)
    assert log[0][1] is generator


def test_call_that_fails_does_not_count():
    attack = ProgressiveAttack([(1, PGDAttack(steps=1)), (None, PGDAttack(steps=2))])
    with pytest.raises(TypeError):
        attack(None, torch.rand(2, 3))
    assert attack.current.steps == 1


def test_count_travels_in_the_state_dict():
    stages = [(1, PGDAttack(steps=0)), (None, PGDAttack(steps=2))]
    attack, fresh = ProgressiveAttack(stages), ProgressiveAttack(stages)
    attack(lambda x: x.sum(1), torch.rand(2, 3))
    fresh.load_state_dict(attack.state_dict())
    assert fresh.current.steps == 2


def test_state_of_a_stage_travels_too():
    attack = ProgressiveAttack([(None, WarmStart(PGDAttack(steps=1)))])
    attack(lambda x: x.sum(1), torch.rand(2, 3))
    fresh = ProgressiveAttack([(None, WarmStart(PGDAttack(steps=1)))])
    fresh.load_state_dict(attack.state_dict())
    assert torch.equal(fresh.current.recall(torch.rand(2, 3)), attack.current.recall(torch.rand(2, 3)))


def test_training_makes_one_call_a_step(tmp_path):
    learner = acl(attack=ProgressiveAttack([(5, PGDAttack(steps=0)), (None, PGDAttack(steps=1))]))
    train(learner, images(), folder=tmp_path, epochs=1)
    assert learner.attack.get_extra_state() == {"calls": 3}
    again = acl(attack=ProgressiveAttack([(5, PGDAttack(steps=0)), (None, PGDAttack(steps=1))]))
    train(again, images(), folder=tmp_path, epochs=1)
    assert again.attack.get_extra_state() == {"calls": 3}


ATTACK = PGDAttack()


@pytest.mark.parametrize(
    ("stages", "kind", "text"),
    [
        (ATTACK, TypeError, "expected stages to be"),
        ([], ValueError, "expected at least one stage"),
        ([ATTACK], TypeError, "expected each stage to be"),
        ([(None, 5)], TypeError, "expected each stage to be"),
        ([(0, ATTACK), (None, ATTACK)], ValueError, "expected calls of every stage but the last to be an int >= 1"),
        ([(None, ATTACK), (None, ATTACK)], TypeError, "expected calls of every stage but the last to be an int >= 1"),
        ([(5, ATTACK)], ValueError, "expected None calls of the last stage"),
    ],
)
def test_bad_stages_are_refused(stages, kind, text):
    with pytest.raises(kind, match=re.escape(f"ProgressiveAttack: {text}")):
        ProgressiveAttack(stages)


@pytest.mark.parametrize("state", [None, {}, {"calls": -1}, {"calls": 1.5}], ids=str)
def test_a_state_of_something_else_is_refused(state):
    attack = ProgressiveAttack([(1, PGDAttack(steps=1)), (None, PGDAttack(steps=2))])
    with pytest.raises((TypeError, ValueError), match=r"^ProgressiveAttack: expected (state|calls)"):
        attack.set_extra_state(state)
    assert attack.get_extra_state() == {"calls": 0}


def test_a_refused_state_is_answered_with_where_to_get_one():
    message = "ProgressiveAttack: expected calls of the state to be"
    with pytest.raises(ValueError, match=message):
        ProgressiveAttack([(None, PGDAttack(steps=1))]).set_extra_state({"calls": -1})


def test_the_state_of_an_attack_that_was_never_called_takes_another_back_to_its_start():
    fresh, used = (ProgressiveAttack([(1, PGDAttack(steps=1)), (None, PGDAttack(steps=2))]) for _ in range(2))
    used(lambda x: x.sum(1), torch.full((1, 1), 0.5))
    used.load_state_dict(fresh.state_dict())
    assert used.get_extra_state() == {"calls": 0}
