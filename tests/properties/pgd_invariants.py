"""Invariants of PGD, as functions that raise AssertionError where an implementation breaks one.

An implementation is called with the settings of ``PGDAttack`` and returns an attack.
"""

import math
import random
from fractions import Fraction
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from advcontrast.functional import linf_box

F64 = 1e-9  # for what is equal but for the order of float64 sums
F32 = 4e-5  # the same in float32
INFINITE = (-math.inf, math.inf)


class Case(NamedTuple):
    """One attack: ``samples`` images, a ball of radius ``eps``, steps of ``ratio * eps``."""

    norm: str
    eps: float
    ratio: float
    steps: int
    samples: int
    grid: bool
    bounds: tuple[float, float]
    dtype: torch.dtype
    seed: int

    def generator(self):
        return torch.Generator().manual_seed(self.seed)

    def images(self):
        low, high = self.bounds
        x = torch.rand(self.samples, 2, 3, 4, generator=self.generator(), dtype=torch.float64)
        if self.grid:
            x = (x * 255).round() / 255
        return (low + (high - low) * x).to(self.dtype)

    def settings(self, **changes):
        own = {"norm": self.norm, "eps": self.eps, "step_size": self.ratio * self.eps or 0.1, "steps": self.steps}
        return own | {"bounds": self.bounds} | changes

    def objective(self):
        """Return a smooth function of each sample that is not monotone along the path of an attack."""
        weights = torch.randn(24, 5, generator=self.generator(), dtype=torch.float64).to(self.dtype)
        return lambda x: (2 * (x.flatten(1) @ weights)).sin().sum(1)

    def model(self):
        """Return a network with batch norm and dropout whose outputs are one number a sample."""
        with torch.random.fork_rng():
            torch.manual_seed(self.seed)
            net = nn.Sequential(nn.Conv2d(2, 3, 2), nn.BatchNorm2d(3), nn.Tanh(), nn.Flatten(), nn.Linear(18, 1))
        return nn.Sequential(*net, nn.Dropout(0.5), nn.Flatten(0)).to(self.dtype).eval()


def distance_is_at_most(eps, norm, ours, x):
    """Compare with ``eps`` in rational numbers."""
    for row, centre in zip(ours.flatten(1).tolist(), x.flatten(1).tolist(), strict=True):
        differences = [abs(Fraction(a) - Fraction(b)) for a, b in zip(row, centre, strict=True)]
        if norm == "linf":
            assert max(differences) <= Fraction(eps), "outside the cube"
        else:
            assert sum(d * d for d in differences) <= Fraction(eps) ** 2, "outside the sphere"


def flag_state(model):
    return [(module.training, [p.requires_grad for p in module.parameters()]) for module in model.modules()]


def keeps_the_ball_exactly(attack, case):
    x = case.images()
    for changes in ({}, {"steps": 0}, {"restarts": 2}):
        ours = attack(**case.settings(**changes))(case.objective(), x, generator=case.generator())
        distance_is_at_most(case.eps, case.norm, ours, x)
        if case.norm == "linf":
            assert (ours - x).abs().max() <= case.eps
            assert (ours - x).abs().max().item() <= case.eps


def keeps_the_bounds_exactly(attack, case):
    low, high = case.bounds
    for steps in (0, case.steps):
        ours = attack(**case.settings(steps=steps))(case.objective(), case.images(), generator=case.generator())
        assert low <= ours.min()
        assert ours.max() <= high


def radius_zero_changes_nothing(attack, case):
    x = case.images()
    assert torch.equal(attack(**case.settings(eps=0.0))(case.objective(), x, generator=case.generator()), x)


def no_step_without_start_changes_nothing(attack, case):
    x = case.images()
    assert torch.equal(attack(**case.settings(steps=0, random_start=False))(case.objective(), x), x)


def model_is_left_alone(attack, case):
    model = case.model()
    first = next(model.parameters())
    first.requires_grad_(False)
    last = list(model.parameters())[-1]
    last.grad = torch.ones_like(last)
    before, flags = {key: value.clone() for key, value in model.state_dict().items()}, flag_state(model)
    attack(**case.settings())(model, case.images(), generator=case.generator())
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key]), key
    assert flag_state(model) == flags
    assert torch.equal(last.grad, torch.ones_like(last))
    assert all(p.grad is None for p in model.parameters() if p is not last)


def exceptions_leave_everything_alone(attack, case):
    for kind in (ValueError, KeyboardInterrupt):
        for fatal in range(1, case.steps + 1):
            model, calls = case.model(), []

            def objective(x, model=model, calls=calls, fatal=fatal, kind=kind):
                calls.append(x)
                if len(calls) == fatal:
                    raise kind
                return model(x)

            flags = flag_state(model)
            with torch.no_grad():
                try:
                    attack(**case.settings())(objective, case.images(), generator=case.generator())
                except kind:
                    enabled, inference = torch.is_grad_enabled(), torch.is_inference_mode_enabled()
                    torch.set_grad_enabled(False)
                    assert not enabled
                    assert not inference
                else:
                    raise AssertionError("swallowed an exception")
            assert flag_state(model) == flags
            assert all(p.grad is None for p in model.parameters())


def global_random_state_is_left_alone(attack, case):
    for settings in ({}, {"random_start": False}, {"restarts": 2}):
        torch.rand(1)
        before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1]
        attack(**case.settings(**settings))(case.objective(), case.images(), generator=case.generator())
        assert torch.equal(torch.get_rng_state(), before[0])
        assert random.getstate() == before[1]
        assert np.array_equal(np.random.get_state()[1], before[2])


def generator_decides_alone(attack, case):
    results = []
    for _ in range(2):
        torch.rand(1)
        results.append(attack(**case.settings())(case.objective(), case.images(), generator=case.generator()))
    assert torch.equal(*results)


def different_generators_differ(attack, case):
    one, other = (
        attack(**case.settings(steps=0))(case.objective(), case.images(), generator=case.generator().manual_seed(seed))
        for seed in (1, 2)
    )
    assert not torch.equal(one, other)


def argument_and_result_are_separate(attack, case):
    for settings in ({}, {"eps": 0.0}, {"steps": 0, "random_start": False}):
        x = case.images().requires_grad_()
        before = x.detach().clone()
        ours = attack(**case.settings(**settings))(case.objective(), x, generator=case.generator())
        assert torch.equal(x, before)
        assert x.grad is None
        assert not ours.requires_grad
        assert ours.data_ptr() != x.data_ptr()
        assert (ours.shape, ours.dtype, ours.device) == (x.shape, x.dtype, x.device)


def memory_format_is_kept(attack, case):
    x = case.images().contiguous(memory_format=torch.channels_last)
    for settings in ({}, {"restarts": 2}):
        ours = attack(**case.settings(**settings))(case.objective(), x, generator=case.generator())
        assert ours.stride() == x.stride()


def strides_do_not_matter(attack, case):
    x = case.images().double()
    strided = [
        x.contiguous(memory_format=torch.channels_last),
        x.transpose(2, 3).contiguous().transpose(2, 3),
        x.repeat_interleave(2, 3)[..., ::2],
    ]
    objective = case._replace(dtype=torch.float64).objective()
    ran = attack(**case.settings(random_start=False))
    expected = ran(objective, x)
    for same in strided:
        torch.testing.assert_close(ran(objective, same).contiguous(), expected, rtol=0, atol=F64)
    one = ran(objective, x[:1].expand(3, -1, -1, -1))
    torch.testing.assert_close(one, ran(objective, x[:1].repeat(3, 1, 1, 1)), rtol=0, atol=F64)


def strongest_iterate_grows_with_the_steps(attack, case):
    objective, x = case.objective(), case.images()
    value = objective(x)
    for steps in range(4):
        settings = case.settings(steps=steps, restarts=1, random_start=False)
        grown = objective(attack(**settings)(objective, x))
        assert (grown >= value).all()
        value = grown


def linear_objective_has_a_closed_form(attack, case):
    x = case.images()
    weights = torch.randn(24, generator=case.generator(), dtype=torch.float64).to(case.dtype)

    def linear(x):
        return x.flatten(1) @ weights

    if case.norm == "linf":
        steps = math.ceil(2 / case.ratio)
        lower, upper = linf_box(x, case.eps, case.bounds)
        corner = upper.where(weights.view(2, 3, 4) > 0, lower)
        assert torch.equal(attack(**case.settings(steps=steps))(linear, x, generator=case.generator()), corner)
        lowest = attack(**case.settings(steps=steps, minimize=True))(linear, x, generator=case.generator())
        assert torch.equal(lowest, lower.where(weights.view(2, 3, 4) > 0, upper))
    else:
        settings = case.settings(steps=math.ceil(1 / case.ratio) + 1, bounds=INFINITE, random_start=False)
        expected = x + case.eps * (weights / weights.norm()).view(2, 3, 4)
        tolerance = F32 if case.dtype == torch.float32 else F64
        torch.testing.assert_close(attack(**settings)(linear, x), expected, rtol=0, atol=tolerance)


def separable_objective_may_be_split(attack, case):
    case = case._replace(dtype=torch.float64)
    x, ran = case.images(), attack(**case.settings(random_start=False))
    alone = torch.cat([ran(case.objective(), row) for row in x.split(1)])
    torch.testing.assert_close(alone, ran(case.objective(), x), rtol=0, atol=F64)


def batch_may_be_permuted(attack, case):
    case = case._replace(dtype=torch.float64)
    x, order = case.images(), torch.randperm(case.samples, generator=case.generator())
    ran = attack(**case.settings(random_start=False))
    torch.testing.assert_close(ran(case.objective(), x[order]), ran(case.objective(), x)[order], rtol=0, atol=F64)


def surrounding_grad_mode_does_not_matter(attack, case):
    x, objective, ran = case.images(), case.objective(), attack(**case.settings())
    expected = ran(objective, x, generator=case.generator())
    for context in (torch.no_grad, torch.inference_mode):
        with context():
            ours = ran(objective, x.clone(), generator=case.generator())
        assert torch.equal(ours, expected)
        assert not ours.is_inference()


def start_is_uniform_in_the_ball(attack, case):
    samples = 200
    x = torch.zeros(samples, 2, 3, 4, dtype=torch.float64)
    settings = case.settings(eps=0.5, steps=0, bounds=(-9.0, 9.0))
    noise = attack(**settings)(lambda x: x.sum(), x, generator=case.generator()).flatten(1)
    if case.norm == "linf":
        values = noise.flatten() + 0.5
    else:
        values = (noise.norm(dim=1) / 0.5) ** 24
        assert (noise.mean(0).abs() < 0.05).all()
    values = values.sort().values
    steps = torch.arange(1, len(values) + 1, dtype=torch.float64) / len(values)
    assert (values - steps).abs().max() < 1.95 / math.sqrt(len(values)) + 1 / len(values)
    assert len(noise.unique(dim=0)) == samples
    assert (noise.std(1) > 0.01).all()


def equals_a_straight_loop(attack, case):
    case = case._replace(dtype=torch.float64)
    x, objective, size = case.images(), case.objective(), case.ratio * case.eps
    point = x.clone()
    for _ in range(case.steps):
        point.requires_grad_()
        (slope,) = torch.autograd.grad(objective(point).sum(), point)
        if case.norm == "linf":
            delta = (point.detach() + size * slope.sign() - x).clamp(-case.eps, case.eps)
        else:
            rows = [row * (size / row.norm()) for row in slope]
            delta = point.detach() + torch.stack(rows) - x
            delta = torch.stack([row * min(1, case.eps / row.norm().item()) for row in delta])
        point = (x + delta).clamp(*case.bounds)
    ours = attack(**case.settings(random_start=False))(objective, x)
    torch.testing.assert_close(ours, point, rtol=0, atol=F64)


def recorded(objective, seen):
    def record(x):
        value = objective(x)
        seen.append((value.detach(), x.detach().clone()))
        return value

    return record


def restarts_keep_the_strongest_iterate_of_each_sample(attack, case):
    for sign, minimize in ((1, False), (-1, True)):
        seen, x = [], case.images()
        settings = case.settings(restarts=2, minimize=minimize)
        ours = attack(**settings)(recorded(case.objective(), seen), x, generator=case.generator())
        assert len(seen) == 2 * (case.steps + 1)
        values = sign * torch.stack([value for value, _ in seen])
        images = torch.stack([image for _, image in seen])
        for i, best in enumerate(values.argmax(0)):
            assert torch.equal(ours[i], images[best, i])


def restarts_keep_the_strongest_iterate_of_a_coupled_batch(attack, case):
    seen, x, objective = [], case.images(), case.objective()
    coupled = recorded(lambda x: objective(x).mean(), seen)
    ours = attack(**case.settings(restarts=2))(coupled, x, generator=case.generator())
    best = max(range(len(seen)), key=lambda i: seen[i][0].item())
    assert torch.equal(ours, seen[best][1])


def one_run_returns_the_last_iterate(attack, case):
    x, objective = case.images(), case.objective()
    ran = attack(**case.settings())(objective, x, generator=case.generator())
    seen = []
    attack(**case.settings(steps=case.steps + 1))(recorded(objective, seen), x, generator=case.generator())
    assert torch.equal(ran, seen[-1][1])


def minimize_is_the_mirror(attack, case):
    x, objective = case.images(), case.objective()
    for restarts in (None, 2):
        settings = case.settings(restarts=restarts)
        down = attack(**settings | {"minimize": True})(objective, x, generator=case.generator())
        up = attack(**settings)(lambda x: -objective(x), x, generator=case.generator())
        assert torch.equal(down, up)


def reduction_does_not_matter(attack, case):
    x, objective = case.images().double(), case._replace(dtype=torch.float64).objective()
    ran = attack(**case.settings())
    expected = ran(objective, x, generator=case.generator())
    for reduced in (lambda x: objective(x).mean(), lambda x: objective(x).sum(), lambda x: 1e-6 * objective(x)):
        ours = ran(reduced, x, generator=case.generator())
        torch.testing.assert_close(ours, expected, rtol=0, atol=F64)


def small_gradients_survive_half_precision(attack, case):
    x = case.images()[:1].float().repeat(256, 1, 1, 1)
    weights = 1e-3 * (1 + torch.rand(24, generator=case.generator()))

    def half(x):
        return (x.flatten(1).half() * weights.half()).mean(1).mean()

    ours = attack(**case.settings(steps=1, random_start=False, bounds=INFINITE))(half, x)
    assert (ours > x).all()


def number_of_calls_is_the_number_of_steps(attack, case):
    for restarts, expected in ((None, case.steps), (1, case.steps + 1), (3, 3 * (case.steps + 1))):
        seen = []
        attack(**case.settings(restarts=restarts))(recorded(case.objective(), seen), case.images())
        assert [image.shape for _, image in seen] == expected * [case.images().shape]


def frozen_models_can_be_attacked(attack, case):
    model, x = case.model(), case.images()
    expected = attack(**case.settings())(model, x, generator=case.generator())
    ours = attack(**case.settings())(model.requires_grad_(False), x, generator=case.generator())
    assert torch.equal(ours, expected)


def nan_is_not_passed_on(attack, case):
    objective = case.objective()

    def nan_value(x):
        return objective(x) * math.nan

    def infinite_gradient(x):
        return (x - x.detach()).flatten(1).sqrt().sum(1)

    for spoilt in (nan_value, infinite_gradient):
        try:
            attack(**case.settings())(spoilt, case.images(), generator=case.generator())
        except ValueError:
            continue
        raise AssertionError("a result from NaN")


def zero_gradient_moves_nothing(attack, case):
    x = case.images()
    assert torch.equal(attack(**case.settings(random_start=False))(lambda x: 0 * x.flatten(1).sum(1), x), x)


INVARIANTS = (
    keeps_the_ball_exactly,
    keeps_the_bounds_exactly,
    radius_zero_changes_nothing,
    no_step_without_start_changes_nothing,
    model_is_left_alone,
    exceptions_leave_everything_alone,
    global_random_state_is_left_alone,
    generator_decides_alone,
    different_generators_differ,
    argument_and_result_are_separate,
    memory_format_is_kept,
    strides_do_not_matter,
    strongest_iterate_grows_with_the_steps,
    linear_objective_has_a_closed_form,
    separable_objective_may_be_split,
    batch_may_be_permuted,
    surrounding_grad_mode_does_not_matter,
    start_is_uniform_in_the_ball,
    equals_a_straight_loop,
    restarts_keep_the_strongest_iterate_of_each_sample,
    restarts_keep_the_strongest_iterate_of_a_coupled_batch,
    one_run_returns_the_last_iterate,
    minimize_is_the_mirror,
    reduction_does_not_matter,
    small_gradients_survive_half_precision,
    number_of_calls_is_the_number_of_steps,
    frozen_models_can_be_attacked,
    nan_is_not_passed_on,
    zero_gradient_moves_nothing,
)
