"""Every mistake that an attack was ever seen to make breaks an invariant."""

import itertools
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from advcontrast import PGDAttack
from advcontrast.attacks.balls import BALLS
from tests.properties.pgd_invariants import INVARIANTS, Case

pytestmark = pytest.mark.nightly  # it tests the property tests

CASES = [
    Case(norm, eps, ratio, 3, 3, grid, bounds, dtype, seed)
    for seed, (norm, (eps, ratio), (grid, bounds), dtype) in enumerate(
        itertools.product(
            ("linf", "l2"),
            ((8 / 255, 0.3), (0.3, 0.7)),
            ((True, (0.0, 1.0)), (False, (-1.0, 1.0))),
            (torch.float32, torch.float64),
        )
    )
]
DEFAULTS = {"restarts": None, "minimize": False, "random_start": True}


def start(ball, s, generator):
    return ball.project(ball.random_point(generator) if s.random_start else ball.centre)


def gradient(value, image):
    scale = 64 * (len(image) if value.dim() == 0 else 1)
    return torch.autograd.grad(scale * value.double().sum(), image)[0]


def step(ball, point, slope, s):
    return ball.step(point, slope, s.step_size)


def finish(ball, point, x):
    return point.to(x.dtype)


@torch.inference_mode(False)
@torch.enable_grad()
def run(objective, x, *, generator=None, s, start, gradient, step, finish):
    """Make one run of PGD from parts, each of which a defect may replace."""
    x = x.detach().clone()
    ball = BALLS[s.norm](x, s.eps, s.bounds)
    point = start(ball, s, generator)
    for _ in range(s.steps):
        image = point.to(x.dtype).detach().requires_grad_()
        value = objective(image)
        point = step(ball, point, (-1 if s.minimize else 1) * gradient(value, image), s)
    return finish(ball, point, x).detach()


def restated(start=start, gradient=gradient, step=step, finish=finish):
    parts = {"start": start, "gradient": gradient, "step": step, "finish": finish}
    return lambda **settings: partial(run, s=SimpleNamespace(**DEFAULTS | settings), **parts)


def around(call):
    """Make a defect of a function of the right attack, the objective, the images and the generator."""

    def implementation(**settings):
        right = PGDAttack(**settings)
        return lambda objective, x, *, generator=None: call(right, objective, x, generator)

    return implementation


def instead(**changes):
    return lambda **settings: PGDAttack(**settings | changes)


def naive_ball(ball, point, slope, s):
    """Clamp the perturbation, add it in the dtype of the images, and let the sum be rounded."""
    x = ball.centre.to(torch.float32)
    delta = (point + s.step_size * slope.sign()).float() - x
    return (x + delta.clamp(-s.eps, s.eps)).clamp(*s.bounds).to(point.dtype)


def whole_batch_length(ball, point, slope, s):
    if s.norm == "linf":
        return step(ball, point, slope, s)
    return ball.project(point + s.step_size * slope / slope.norm())


def whole_batch_projection(ball, point, slope, s):
    if s.norm == "linf":
        return step(ball, point, slope, s)
    delta = point + s.step_size * torch.nn.functional.normalize(slope.flatten(1)).view_as(slope) - ball.centre
    return ball.centre + delta * min(1, s.eps / delta.norm().item())


def around_the_last_iterate(ball, point, slope, s):
    return BALLS[s.norm](point, s.eps, s.bounds).step(point, slope, s.step_size)


def no_projection(ball, point, slope, s):
    slope = slope.to(point.dtype)
    return point + s.step_size * (slope.sign() if s.norm == "linf" else slope / slope.flatten(1).norm())


def start_shared(ball, s, generator):
    return start(ball, s, generator)[:1].expand(ball.centre.shape)


def start_outside_bounds(ball, s, generator):
    if not s.random_start:
        return start(ball, s, generator)
    return ball.centre + s.eps * (2 * torch.rand(ball.centre.shape, generator=generator, dtype=ball.centre.dtype) - 1)


def start_normal(ball, s, generator):
    if not s.random_start:
        return start(ball, s, generator)
    noise = torch.randn(ball.centre.shape, generator=generator, dtype=ball.centre.dtype)
    return ball.project(ball.centre + s.eps * noise)


def backward_through_parameters(attack, objective, x, generator):
    with torch.enable_grad():
        image = x.detach().clone().requires_grad_()
        value = objective(image).sum()
        if value.requires_grad:
            value.backward()
    return attack(objective, x, generator=generator)


def mode_changed(attack, objective, x, generator):
    if isinstance(objective, nn.Module):
        objective.train()
    return attack(objective, x, generator=generator)


def parameters_frozen(attack, objective, x, generator):
    if isinstance(objective, nn.Module):
        objective.requires_grad_(False)
    return attack(objective, x, generator=generator)


def reseeded(attack, objective, x, generator):
    torch.manual_seed(0)
    return attack(objective, x, generator=generator)


def grad_mode_left_on(attack, objective, x, generator):
    before = torch.is_grad_enabled()
    torch.set_grad_enabled(True)
    result = attack(objective, x, generator=generator)
    torch.set_grad_enabled(before)
    return result


def written_into_the_argument(attack, objective, x, generator):
    with torch.no_grad():
        return x.copy_(attack(objective, x, generator=generator))


def shared_when_unchanged(attack, objective, x, generator):
    result = attack(objective, x, generator=generator)
    return x.detach() if torch.equal(result, x) else result


def one_call_more(attack, objective, x, generator):
    with torch.no_grad():
        objective(x)
    return attack(objective, x, generator=generator)


def nan_ignored(attack, objective, x, generator):
    try:
        return attack(objective, x, generator=generator)
    except ValueError:
        return x.clone()


def needs_grad_mode(attack, objective, x, generator):
    if not torch.is_grad_enabled():
        return x.clone()
    return attack(objective, x, generator=generator)


def sample_by_sample(attack, objective, x, generator):
    return torch.cat([attack(objective, row, generator=generator) for row in x.split(1)])


DEFECTS = {
    "rounded out of the ball": restated(step=naive_ball),
    "ball around the last iterate": restated(step=around_the_last_iterate),
    "projected only at the end": restated(step=no_projection, finish=lambda ball, p, x: ball.project(p).to(x.dtype)),
    "never projected": restated(step=no_projection),
    "L2 length of the whole batch": restated(step=whole_batch_length),
    "L2 projection of the whole batch": restated(step=whole_batch_projection),
    "gradient instead of its direction": restated(step=lambda ball, p, g, s: ball.project(p + s.step_size * g)),
    "step downhill": restated(step=lambda ball, p, g, s: step(ball, p, -g, s)),
    "step half as long": restated(step=lambda ball, p, g, s: ball.step(p, g, s.step_size / 2)),
    "gradient of the mean": restated(gradient=lambda value, image: torch.autograd.grad(value.mean(), image)[0]),
    "images kept in float32": restated(finish=lambda ball, p, x: p.float()),
    "noise shared by the batch": restated(start=start_shared),
    "start outside the bounds": restated(start=start_outside_bounds),
    "normal noise": restated(start=start_normal),
    "start always at random": instead(random_start=True),
    "start never at random": instead(random_start=False),
    "minimize ignored": instead(minimize=False),
    "restarts ignored": instead(restarts=None),
    "strongest iterate instead of the last": lambda **s: PGDAttack(**s | {"restarts": s.get("restarts") or 1}),
    "a step too many": lambda **s: PGDAttack(**s | {"steps": s["steps"] + 1}),
    "a step too few": lambda **s: PGDAttack(**s | {"steps": max(0, s["steps"] - 1)}),
    "weakest iterate kept": lambda **s: PGDAttack(
        **s | {"minimize": bool(s.get("restarts")) ^ s.get("minimize", False)}
    ),
    "batch judged by its mean": around(lambda attack, f, x, g: attack(lambda x: f(x).mean(), x, generator=g)),
    "coupled batch split": around(sample_by_sample),
    "gradients left in parameters": around(backward_through_parameters),
    "model put into training mode": around(mode_changed),
    "parameters left frozen": around(parameters_frozen),
    "global generator seeded": around(reseeded),
    "generator ignored": around(lambda attack, f, x, g: attack(f, x)),
    "grad mode left on after an error": around(grad_mode_left_on),
    "grad mode of the caller needed": around(needs_grad_mode),
    "written into the argument": around(written_into_the_argument),
    "result shares memory": around(shared_when_unchanged),
    "result requires a gradient": around(lambda attack, f, x, g: attack(f, x, generator=g).requires_grad_()),
    "memory format lost": around(lambda attack, f, x, g: attack(f, x, generator=g).contiguous()),
    "strides misread": around(
        lambda attack, f, x, g: attack(f, x.as_strided(x.shape, torch.empty(x.shape).stride()), generator=g)
    ),
    "a call too many": around(one_call_more),
    "nan ignored": around(nan_ignored),
}


def breaks(implementation, invariant, case):
    grad = torch.is_grad_enabled()
    try:
        invariant(implementation, case)
    except AssertionError:
        return True
    finally:
        torch.set_grad_enabled(grad)
    return False


@pytest.mark.parametrize("name", DEFECTS)
def test_defect_is_caught(name):
    assert any(breaks(DEFECTS[name], invariant, case) for case in CASES for invariant in INVARIANTS)


@pytest.mark.parametrize("invariant", INVARIANTS, ids=lambda invariant: invariant.__name__)
def test_right_implementation_is_not(invariant):
    assert not [case for case in CASES if breaks(PGDAttack, invariant, case)]


def test_restated_attack_is_right_but_for_restarts_and_checks():
    lacking = ("strongest_iterate", "number_of_calls", "nan_is_not")
    rest = [invariant for invariant in INVARIANTS if not any(part in invariant.__name__ for part in lacking)]
    assert len(rest) == len(INVARIANTS) - 5
    assert not [
        (invariant.__name__, case) for invariant in rest for case in CASES if breaks(restated(), invariant, case)
    ]
