"""Auto-PGD: the algorithm against a slow restatement, what it does for classifiers, and what it refuses."""

import copy
import dataclasses
import math
import pickle
import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from advcontrast.attacks import ClassificationObjective, PGDAttack, apgd
from advcontrast.attacks.apgd import APGDAttack, Iterate
from advcontrast.functional import linf_box
from advcontrast.functional.margin import dlr, targeted_dlr
from tests.properties import pgd_invariants as invariants

NORMS = ["linf", "l2"]
LOSSES = ["ce", "dlr", "dlr-targeted"]
EPS = {"linf": 0.1, "l2": 0.3}
INFINITE = (-math.inf, math.inf)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def images(*shape, seed=1, dtype=torch.float64):
    return torch.rand(shape or (24, 1, 2, 3), generator=seeded(seed), dtype=dtype)


def linear(x):
    return x.flatten(1).sum(1)


def bumpy(x):
    return (9 * x.flatten(1)).sin().sum(1) + (4 * x.flatten(1).sum(1)).cos()


class Quadratic(nn.Module):
    """A classifier whose logits of one image are the same bit by bit whatever else is in the batch."""

    def __init__(self, classes=5, seed=7):
        super().__init__()
        self.weights = nn.Parameter(torch.randn(2, 6, classes, generator=seeded(seed), dtype=torch.float64))
        self.seen = []

    def forward(self, x):
        self.seen.append(x.detach().clone())
        pixels = (x.flatten(1).double() - 0.5)[..., None].unbind(1)
        return sum(t * w + 3 * t * t.abs() * v for t, w, v in zip(pixels, *self.weights, strict=True))


def task(classes=5, wrong=3):
    """Return a classifier, images and labels, of which a few are wrong."""
    model, x = Quadratic(classes).eval(), images()
    with torch.no_grad():
        y = model(x).argmax(1)
    y[:wrong] = (y[:wrong] + 1) % classes
    model.seen.clear()
    return model, x, y


def fooled(model, x, y):
    with torch.no_grad():
        return model(x).argmax(1) != y


def losses(loss, model, y, target=None):
    """Return a loss as a plain function, that an attack cannot take for a classification."""
    return {
        "ce": lambda x: F.cross_entropy(model(x), y, reduction="none"),
        "dlr": lambda x: dlr(model(x), y),
        "dlr-targeted": lambda x: targeted_dlr(model(x), y, target),
    }[loss]


def ranked(model, x, y):
    """Return the wrong classes of each image, the most likely one first."""
    with torch.no_grad():
        rows = model(x).tolist()
    return [sorted((c for c in range(len(row)) if c != z), key=lambda c, row=row: -row[c]) for row, z in zip(rows, y)]  # noqa: B905


def trails(model, x, y, attack, loss="ce", seed=0):
    """Return all points that the attack visits in turn where nobody ever leaves, [K, N, ...]."""
    generator, seen = seeded(seed), []
    order = torch.tensor(ranked(model, x, y))[:, : attack.targets].T
    for target in order if loss == "dlr-targeted" else [None]:
        model.seen.clear()
        plain = dataclasses.replace(attack, loss="ce")
        plain(losses(loss, model, y, target), x, generator=generator)
        seen += model.seen
    model.seen.clear()
    return torch.stack(seen)


# The algorithm.


def restated(x, start, value, slope, eps, steps, norm):
    """Return the points that Algorithm 1 of the paper visits, and why it halved, from lists of floats."""

    def project(point):
        if norm == "l2":
            length = math.dist(point, x)
            point = [c + (p - c) * min(1, eps / length) for p, c in zip(point, x, strict=True)] if length else point
        else:
            point = [min(max(p, c - eps), c + eps) for p, c in zip(point, x, strict=True)]
        return [min(max(p, 0.0), 1.0) for p in point]

    def uphill(point):
        g = slope(point)
        d = [math.copysign(1, v) for v in g] if norm == "linf" else [v / math.hypot(*g) for v in g]
        return project([p + size * v for p, v in zip(point, d, strict=True)])

    fractions = [0, 22]
    while fractions[-1] < 100:
        fractions.append(fractions[-1] + max(fractions[-1] - fractions[-2] - 3, 6))
    checks = sorted({math.ceil(percent * steps / 100 - 1e-9) for percent in fractions})
    size, points, reasons = 2 * eps, [start], []
    previous = here = best = start
    f_here = best_at_check = value(start)
    rises, last, halved = 0, 0, False
    for k in range(1, steps + 1):
        z = uphill(here)
        a = 0.75 if k > 1 else 1.0
        ahead = project([h + a * (u - h) + (1 - a) * (h - p) for h, u, p in zip(here, z, previous, strict=True)])
        previous, here = here, ahead
        points.append(here)
        rises, f_here = rises + (value(here) > f_here), value(here)
        best = here if f_here > value(best) else best
        if k in checks:
            few, stuck = rises < 0.75 * (k - last), not halved and value(best) == best_at_check
            halved = few or stuck
            reasons += ["few"] * few + ["stuck"] * (stuck and not few)
            if halved:
                size, here, f_here = size / 2, best, value(best)
            best_at_check, last, rises = value(best), k, 0
    return points, best, reasons


A, B = [3.0, -5.0, 7.0], [11.0, 4.0, -6.0]


def wavy(x):
    """Return a function of points of three coordinates with many maxima."""
    rows = x.flatten(1)
    return (rows @ torch.tensor(A, dtype=x.dtype)).sin() + (rows @ torch.tensor(B, dtype=x.dtype)).cos() + rows[:, 0]


def wavy_value(p):
    a, b = (sum(u * v for u, v in zip(w, p, strict=True)) for w in (A, B))
    return math.sin(a) + math.cos(b) + p[0]


def wavy_slope(p):
    a, b = (sum(u * v for u, v in zip(w, p, strict=True)) for w in (A, B))
    return [u * math.cos(a) - v * math.sin(b) + (i == 0) for i, (u, v) in enumerate(zip(A, B, strict=True))]


def compared(norm, steps, seed, eps=0.3):
    """Return the points and the best one of the attack, of the restatement, and the reasons of the latter."""
    x, seen = images(1, 3, seed=seed), []

    def objective(x):
        seen.append(x.detach().clone())
        return wavy(x)

    ours = APGDAttack(eps=eps, steps=steps, norm=norm)(objective, x, generator=seeded(seed))
    expected = restated(x[0].tolist(), seen[0][0].tolist(), wavy_value, wavy_slope, eps, steps, norm)
    return torch.cat(seen), ours[0], *expected


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("steps", [0, 1, 2, 7, 10, 33, 100])
@pytest.mark.parametrize("seed", [0, 1, 4, 8])
def test_every_point_is_that_of_the_paper(norm, steps, seed):
    points, ours, expected, best, _ = compared(norm, steps, seed)
    assert points.shape == (steps + 1, 3)
    torch.testing.assert_close(points, torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-7)
    torch.testing.assert_close(ours, torch.tensor(best, dtype=torch.float64), rtol=0, atol=1e-7)


@pytest.mark.parametrize("norm", NORMS)
def test_both_conditions_were_met_on_the_way(norm):
    assert {reason for seed in (4, 8) for reason in compared(norm, 100, seed)[4]} == {"few", "stuck"}


@pytest.mark.parametrize(
    ("steps", "expected"),
    [(100, {22, 41, 57, 70, 80, 87, 93, 99}), (20, {5, 9, 12, 14, 16, 18, 19, 20}), (1, {1}), (0, {0})],
)
def test_checkpoints_are_those_of_the_paper(steps, expected):
    assert apgd._checkpoints(steps) == expected


def test_first_step_is_two_radii_long():
    x, seen = torch.full((1, 2), 0.5, dtype=torch.float64), []

    def objective(x):
        seen.append(x.detach().clone())
        return linear(x)

    APGDAttack(eps=0.125, steps=1, bounds=INFINITE)(objective, x, generator=seeded())
    assert seen[1].tolist() == [[0.625, 0.625]]


def test_standing_still_is_no_rise():
    point = torch.zeros(1, 2, dtype=torch.float64)
    run = apgd._Run(Iterate(point, torch.tensor([0.0]), point), 1.0)
    for gain in (1.0, 1.0, 1.0, 1.0):
        run.move(Iterate(point, torch.tensor([gain]), point))
    run.checkpoint()
    assert run.size.item() == 0.5


# The returned images.


@pytest.mark.parametrize("steps", [1, 10])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_linear_objective_ends_at_the_corner(dtype, steps):
    x = (torch.arange(256, dtype=dtype) / 255).view(4, 64)
    weights = torch.randn(64, generator=seeded(), dtype=dtype)
    lower, upper = linf_box(x, 8 / 255)
    ours = APGDAttack(steps=steps)(lambda x: x @ weights, x, generator=seeded())
    assert torch.equal(ours, upper.where(weights > 0, lower))


def test_linear_objective_ends_on_the_sphere():
    weights = torch.randn(24, generator=seeded(), dtype=torch.float64)
    attack = APGDAttack(eps=0.5, steps=60, norm="l2", bounds=INFINITE)
    ours = attack(lambda x: x @ weights, torch.zeros(3, 24, dtype=torch.float64), generator=seeded())
    torch.testing.assert_close(ours, (0.5 * weights / weights.norm()).expand(3, -1), rtol=0, atol=1e-3)


@pytest.mark.parametrize("norm", NORMS)
def test_strongest_visited_point_of_each_sample_is_returned(norm):
    seen = []

    def objective(x):
        seen.append((x.detach().clone(), bumpy(x).detach()))
        return bumpy(x)

    ours = APGDAttack(eps=EPS[norm], steps=12, norm=norm, restarts=2)(objective, images(), generator=seeded())
    points, values = (torch.stack(part) for part in zip(*seen, strict=True))
    assert len(points) == 2 * (12 + 1)
    assert torch.equal(ours, points[values.argmax(0), torch.arange(24)])


@pytest.mark.parametrize("norm", NORMS)
def test_more_restarts_are_never_weaker(norm):
    best = torch.full((24,), -math.inf, dtype=torch.float64)
    for restarts in (1, 2, 4):
        attack = APGDAttack(eps=EPS[norm], steps=6, norm=norm, restarts=restarts)
        value = bumpy(attack(bumpy, images(), generator=seeded()))
        assert (value >= best).all()
        best = value


@pytest.mark.parametrize("loss", ["ce", "dlr"])
def test_more_restarts_fool_no_fewer(loss):
    model, x, y = task()
    found = [
        fooled(
            model,
            APGDAttack(eps=0.03, steps=4, loss=loss, restarts=n)(ClassificationObjective(model, y), x, generator=g),
            y,
        )
        for n, g in ((1, seeded()), (6, seeded()))
    ]
    assert (found[1] | ~found[0]).all()


def test_more_targets_fool_no_fewer():
    model, x, y = task(classes=8)
    attacks = (APGDAttack(eps=0.1, steps=2, loss="dlr-targeted", targets=n) for n in (1, 4))
    few, many = (fooled(model, a(ClassificationObjective(model, y), x, generator=seeded()), y) for a in attacks)
    assert (many | ~few).all()
    assert many.sum() > few.sum()


@pytest.mark.parametrize("norm", NORMS)
def test_representations_are_driven_away(norm):
    torch.manual_seed(0)
    encoder, x = nn.Sequential(nn.Flatten(), nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 8)), images(dtype=torch.float32)
    with torch.no_grad():
        clean = encoder(x)

    def distance(x):
        return (encoder(x) - clean).norm(dim=1)

    ours = APGDAttack(eps=EPS[norm], steps=20, norm=norm)(distance, x, generator=seeded())
    start = APGDAttack(eps=EPS[norm], steps=0, norm=norm)(distance, x, generator=seeded())
    reference = PGDAttack(eps=EPS[norm], step_size=EPS[norm] / 4, steps=20, norm=norm)(distance, x, generator=seeded())
    with torch.no_grad():
        assert (distance(ours) > distance(start)).all()
        assert distance(ours).mean() >= 0.95 * distance(reference).mean()


def test_function_of_a_classifier_loses_no_sample():
    model, x, y = task()
    attack = APGDAttack(eps=0.3, steps=5)
    attack(losses("ce", model, y), x, generator=seeded())
    assert [len(batch) for batch in model.seen] == [24] * 6


# Classifiers.


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("loss", LOSSES)
def test_first_fooled_point_is_returned_else_the_strongest_one(loss, norm):
    model, x, y = task()
    attack = APGDAttack(eps=EPS[norm] / 3, steps=9, norm=norm, loss=loss, restarts=2, targets=3)
    points = torch.cat([x[None], trails(model, x, y, attack, loss)])
    verdicts = torch.stack([fooled(model, point, y) for point in points])
    ours = attack(ClassificationObjective(model, y), x, generator=seeded())
    caught = verdicts.any(0)
    assert caught[3:].any()
    assert not caught.all()
    assert torch.equal(ours[caught], points[verdicts.int().argmax(0), torch.arange(24)][caught])
    assert torch.equal(fooled(model, ours, y), caught)
    if loss != "dlr-targeted":
        with torch.no_grad():
            values = torch.stack([losses(loss, model, y)(point) for point in points[1:]])
        strongest = points[1 + values.argmax(0), torch.arange(24)]
        assert torch.equal(ours[~caught], strongest[~caught])


def test_strongest_point_over_all_targets_is_returned():
    model, x, y = task(wrong=0)
    attack = APGDAttack(eps=0.02, steps=5, loss="dlr-targeted", targets=2)
    points = trails(model, x, y, attack, "dlr-targeted").view(2, 6, *x.shape)
    targets = torch.tensor(ranked(model, x, y))[:, :2].T
    with torch.no_grad():
        values = torch.cat(
            [torch.stack([targeted_dlr(model(p), y, t) for p in run]) for run, t in zip(points, targets, strict=True)]
        )
    strongest = points.flatten(0, 1)[values.argmax(0), torch.arange(24)]
    robust = ~torch.stack([fooled(model, p, y) for p in points.flatten(0, 1)]).any(0)
    ours = attack(ClassificationObjective(model, y), x, generator=seeded())
    assert robust.sum() > 5
    assert torch.equal(ours[robust], strongest[robust])


@pytest.mark.parametrize("loss", LOSSES)
def test_misclassified_images_come_back_as_they_are(loss):
    model, x, y = task(wrong=9)
    ours = APGDAttack(loss=loss, steps=3)(ClassificationObjective(model, y), x)
    assert torch.equal(ours[:9], x[:9])
    assert (ours[9:] != x[9:]).flatten(1).any(1).all()


@pytest.mark.parametrize("loss", LOSSES)
def test_fooled_samples_are_not_forwarded_again(loss):
    model, x, y = task()
    attack = APGDAttack(eps=0.05, steps=8, loss=loss, restarts=2, targets=2)
    points = trails(model, x, y, attack, loss)
    verdicts = torch.stack([fooled(model, point, y) for point in [x, *points]])
    left = (verdicts.cumsum(0) == 0).sum(1).tolist()
    model.seen.clear()
    attack(ClassificationObjective(model, y), x, generator=seeded())
    assert [len(batch) for batch in model.seen] == [24, *left[: len(points)]]
    assert left[-1] < left[0] < 24


def test_attack_ends_when_everyone_is_fooled():
    model, x, y = task()
    APGDAttack(eps=1.0, steps=50, restarts=3)(ClassificationObjective(model, y), x, generator=seeded())
    assert len(model.seen) < 40


def test_nothing_but_the_images_is_forwarded_when_all_are_wrong():
    model, x, y = task(wrong=24)
    assert torch.equal(APGDAttack(restarts=2)(ClassificationObjective(model, y), x), x)
    assert [len(batch) for batch in model.seen] == [24]


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("norm", NORMS)
def test_leaving_at_checkpoints_only_changes_nothing(loss, norm, monkeypatch):
    model, x, y = task()
    attack = APGDAttack(eps=EPS[norm] / 3, steps=20, norm=norm, loss=loss, restarts=2, targets=2)
    expected = attack(ClassificationObjective(model, y), x, generator=seeded())
    at_once = [len(batch) for batch in model.seen]
    model.seen.clear()
    monkeypatch.setattr(apgd, "readable", lambda _: False)
    assert torch.equal(attack(ClassificationObjective(model, y), x, generator=seeded()), expected)
    later = [len(batch) for batch in model.seen]
    assert sum(later) > sum(at_once)
    assert later[7] < later[6] == later[1]


@pytest.mark.parametrize("loss", LOSSES)
def test_no_sample_depends_on_the_others(loss):
    model, x, y = task(wrong=0)
    attack = APGDAttack(eps=0.02, steps=12, loss=loss, restarts=2, targets=3)
    expected = attack(ClassificationObjective(model, y), x, generator=seeded())
    kept = torch.arange(24) % 3 == 0
    changed = torch.where(kept, y, (y + 1) % 5)
    assert torch.equal(attack(ClassificationObjective(model, changed), x, generator=seeded())[kept], expected[kept])
    swapped = torch.where(kept.view(-1, 1, 1, 1), x, 1 - x)
    assert torch.equal(attack(ClassificationObjective(model, y), swapped, generator=seeded())[kept], expected[kept])


def test_function_couples_no_samples():
    x = images()
    swapped = torch.cat([x[:12], 1 - x[12:]])
    attack = APGDAttack(eps=0.1, steps=20)
    ours = [attack(lambda x: (x**3 - x**2).flatten(1).sum(1), both, generator=seeded()) for both in (x, swapped)]
    assert torch.equal(ours[0][:12], ours[1][:12])


def test_targets_are_tried_from_the_most_likely_class_downwards(monkeypatch):
    model, x, y = task(wrong=0)
    tried = []

    def spy(logits, y, target):
        tried.append(target.tolist())
        return targeted_dlr(logits, y, target)

    monkeypatch.setattr(apgd, "targeted_dlr", spy)
    APGDAttack(eps=0, steps=1, loss="dlr-targeted", restarts=2, targets=3)(ClassificationObjective(model, y), x)
    expected = [[row[k] for row in ranked(model, x, y)] for k in range(3)]
    assert tried == [targets for targets in expected for _ in range(4)]


def test_no_more_targets_than_wrong_classes():
    model, x, y = task(wrong=0)
    APGDAttack(eps=0, steps=2, loss="dlr-targeted")(ClassificationObjective(model, y), x)
    assert len(model.seen) == 1 + 4 * 3


def test_tied_classes_do_not_make_the_class_its_own_target():
    x, y = torch.full((3, 4), 0.5), torch.zeros(3, dtype=torch.int64)
    ours = APGDAttack(eps=0.25, steps=3, loss="dlr-targeted")(ClassificationObjective(nn.Flatten().eval(), y), x)
    assert (nn.Flatten()(ours).argmax(1) != 0).all()


@pytest.mark.parametrize("loss", LOSSES)
def test_classifier_of_float32_images(loss):
    model, x, y = task(wrong=0)
    ours = APGDAttack(eps=0.1, steps=5, loss=loss)(ClassificationObjective(model, y), x.float(), generator=seeded())
    assert ours.dtype == torch.float32
    invariants.distance_is_at_most(0.1, "linf", ours, x.float())
    assert fooled(model, ours, y).any()


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("loss", LOSSES)
def test_classifier_under_any_grad_mode(context, loss):
    model, x, y = task()
    attack = APGDAttack(eps=0.03, steps=5, loss=loss, targets=2)
    expected = attack(ClassificationObjective(model, y), x, generator=seeded())
    with context():
        ours = attack(ClassificationObjective(model, y.clone()), x.clone(), generator=seeded())
    assert torch.equal(ours, expected)
    assert not ours.is_inference()


@pytest.mark.parametrize(
    "objective", [linear, ClassificationObjective(nn.Flatten().eval(), torch.zeros(0, dtype=torch.int64))]
)
@pytest.mark.parametrize("norm", NORMS)
def test_empty_batches_come_back(objective, norm):
    assert APGDAttack(norm=norm)(objective, torch.zeros(0, 3, 4, 4)).shape == (0, 3, 4, 4)


@pytest.mark.parametrize("shape", [(5,), (5, 1), (1, 4), (2, 3, 4, 5, 2)])
@pytest.mark.parametrize("norm", NORMS)
def test_any_number_of_dimensions(shape, norm):
    assert (
        APGDAttack(norm=norm, eps=0.1, steps=3)(lambda x: x.reshape(len(x), -1).sum(1), images(*shape)).shape == shape
    )


def test_images_a_rounding_error_outside_are_clamped():
    ours = APGDAttack(eps=0.0, steps=1)(linear, torch.tensor([[-3e-8, 1 + 2e-7]]))
    assert ours.tolist() == [[0, 1]]


@pytest.mark.parametrize("spoilt", [lambda x: linear(x) * math.nan, lambda x: linear((x - x.detach()).abs().sqrt())])
def test_not_a_number_reaches_the_result_where_values_are_not_read(spoilt, monkeypatch):
    for module in ("advcontrast._checks", "advcontrast.attacks.pgd", "advcontrast.attacks.apgd"):
        monkeypatch.setattr(f"{module}.readable", lambda _: False)
    assert APGDAttack(eps=0.1, steps=4)(spoilt, images()).isnan().flatten(1).any(1).all()


# Another implementation.


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("norm", "loss"), [("linf", "ce"), ("linf", "dlr"), ("linf", "dlr-targeted"), ("l2", "ce")])
def test_as_strong_as_the_reference(norm, loss):
    module = pytest.importorskip("pyautoattack.autopgd_base")
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Flatten(), nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 5)), torch.rand(200, 1, 4, 4)
    y = (x.flatten(1) @ torch.randn(16, 5)).argmax(1)
    optimizer = torch.optim.Adam(model.parameters(), 0.02)
    for _ in range(100):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    model.eval().requires_grad_(False)
    eps, steps = {"linf": 0.03, "l2": 0.1}[norm], 20
    common = {"eps": eps, "n_iter": steps, "norm": norm.capitalize(), "device": "cpu"}
    robust, theirs = 0, 0
    for seed in range(3):
        attack = APGDAttack(eps=eps, steps=steps, norm=norm, loss=loss, targets=4)
        robust += int((~fooled(model, attack(ClassificationObjective(model, y), x, generator=seeded(seed)), y)).sum())
        with torch.random.fork_rng():
            if loss == "dlr-targeted":
                reference = module.APGDAttack_targeted(model, seed=seed, n_target_classes=4, **common)
            else:
                reference = module.APGDAttack(model, seed=seed, loss=loss, **common)
            theirs += int((~fooled(model, reference.perturb(x, y), y)).sum())
    assert 3 * 40 < theirs < 3 * 160
    assert robust <= theirs + 3 * 2


# Invariants that are those of PGD.


def implementation(**settings):
    known = {field.name for field in dataclasses.fields(APGDAttack)}
    changed = settings | {"restarts": settings.get("restarts") or 1}
    return APGDAttack(**{name: value for name, value in changed.items() if name in known})


CASES = st.builds(
    invariants.Case,
    norm=st.sampled_from(NORMS),
    eps=st.sampled_from([1 / 255, 8 / 255, 0.031, 0.3]),
    ratio=st.just(1.0),
    steps=st.integers(1, 12),
    samples=st.integers(2, 3),
    grid=st.booleans(),
    bounds=st.sampled_from([(0.0, 1.0), (-1.0, 1.0)]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    seed=st.integers(0, 2**20),
)
SHARED = (
    invariants.keeps_the_ball_exactly,
    invariants.keeps_the_bounds_exactly,
    invariants.radius_zero_changes_nothing,
    invariants.model_is_left_alone,
    invariants.exceptions_leave_everything_alone,
    invariants.global_random_state_is_left_alone,
    invariants.generator_decides_alone,
    invariants.different_generators_differ,
    invariants.argument_and_result_are_separate,
    invariants.memory_format_is_kept,
    invariants.surrounding_grad_mode_does_not_matter,
    invariants.frozen_models_can_be_attacked,
    invariants.nan_is_not_passed_on,
)


@pytest.mark.parametrize("invariant", SHARED, ids=lambda invariant: invariant.__name__)
@settings(max_examples=12)
@given(case=CASES)
def test_invariant(invariant, case):
    torch.set_num_threads(1)
    invariant(implementation, case)


@settings(max_examples=20)
@given(case=CASES, loss=st.sampled_from(LOSSES))
def test_attack_on_a_classifier_keeps_ball_bounds_and_model(case, loss):
    torch.set_num_threads(1)
    model = nn.Sequential(nn.Flatten(), nn.Linear(24, 8), nn.BatchNorm1d(8), nn.Linear(8, 5)).to(case.dtype).eval()
    x = case.images()
    before, random_state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    y = model(x).argmax(1)
    ours = implementation(**case.settings(), loss=loss)(
        ClassificationObjective(model, y), x, generator=case.generator()
    )
    invariants.distance_is_at_most(case.eps, case.norm, ours, x)
    low, high = case.bounds
    assert low <= ours.min()
    assert ours.max() <= high
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())
    assert torch.equal(torch.get_rng_state(), random_state)


# Settings and mistakes.


def test_repr_makes_an_equal_attack():
    attack = APGDAttack(eps=0.1, steps=3, norm="l2", loss="dlr-targeted", restarts=4, targets=2, bounds=(-1, 2))
    assert eval(repr(attack)) == attack


@pytest.mark.parametrize("remade", [copy.copy, copy.deepcopy, lambda a: pickle.loads(pickle.dumps(a))])
def test_copies_are_equal(remade):
    assert remade(APGDAttack(eps=0.1)) == APGDAttack(eps=0.1)


def test_defaults_are_those_of_autoattack():
    expected = APGDAttack(eps=8 / 255, steps=100, norm="linf", loss="ce", restarts=1, targets=9, bounds=(0.0, 1.0))
    assert APGDAttack() == expected


def test_settings_are_named():
    with pytest.raises(TypeError, match=r"^APGDAttack: expected settings by name"):
        APGDAttack(8 / 255)


BAD_SETTINGS = [
    ({"eps": -1}, ValueError, "eps to be"),
    ({"eps": math.nan}, ValueError, "eps to be"),
    ({"eps": "8/255"}, TypeError, "eps to be"),
    ({"eps": 8}, ValueError, "eps within"),
    ({"eps": 0.5, "bounds": (0.1, 0.5)}, ValueError, "eps within"),
    ({"steps": -1}, ValueError, "steps to be"),
    ({"steps": 2.5}, TypeError, "steps to be"),
    ({"norm": "l3"}, ValueError, "norm to be"),
    ({"norm": "Linf"}, ValueError, "norm to be"),
    ({"loss": "kl"}, ValueError, "loss to be"),
    ({"loss": "DLR"}, ValueError, "loss to be"),
    ({"loss": F.cross_entropy}, TypeError, "loss to be"),
    ({"restarts": 0}, ValueError, "restarts to be"),
    ({"restarts": None}, TypeError, "restarts to be"),
    ({"targets": 0}, ValueError, "targets to be"),
    ({"targets": [1, 2]}, TypeError, "targets to be"),
    ({"bounds": (1, 0)}, ValueError, "bounds (low, high) with low < high"),
    ({"bounds": [0, 1]}, TypeError, "bounds to be"),
]


@pytest.mark.parametrize(("settings", "error", "message"), BAD_SETTINGS)
def test_wrong_settings(settings, error, message):
    with pytest.raises(error, match=re.escape(f"APGDAttack: expected {message}")):
        APGDAttack(**settings)


GOOD = images(6, 3, dtype=torch.float32)
Y = torch.tensor([0, 1, 2, 0, 1, 2])
BAD_CALLS = [
    (linear, (GOOD * 255).byte(), TypeError, "x to be"),
    (linear, GOOD.half(), TypeError, "x to be"),
    (linear, GOOD.numpy(), TypeError, "x to be"),
    (linear, torch.tensor(0.5), ValueError, "x of shape"),
    (linear, 255 * GOOD.round(), ValueError, "x within"),
    (linear, GOOD / 0, ValueError, "x to be"),
    (None, GOOD, TypeError, "objective to be"),
    (GOOD, GOOD, TypeError, "objective to be"),
    (lambda x: linear(x).mean(), GOOD, ValueError, "objective to return"),
    (lambda x: x, GOOD, ValueError, "objective to return"),
    (lambda x: linear(x)[:5], GOOD, ValueError, "objective to return"),
    (lambda x: None, GOOD, TypeError, "the value of the objective to be"),
    (lambda x: linear(x.detach()), GOOD, ValueError, "objective to depend"),
    (lambda x: linear(x) * math.nan, GOOD, ValueError, "the value of the objective to be"),
    (lambda x: linear((x - x.detach()).sqrt()), GOOD, ValueError, "the gradient of the objective to be"),
    (ClassificationObjective(lambda x: x * math.nan, Y), GOOD, ValueError, "the logits of the images to be"),
    (ClassificationObjective(lambda x: x[:, :1], Y * 0), GOOD, ValueError, "a model of at least 2 classes for 'ce'"),
]


@pytest.mark.parametrize(("objective", "x", "error", "message"), BAD_CALLS)
@pytest.mark.parametrize("norm", NORMS)
def test_wrong_calls(norm, objective, x, error, message):
    with pytest.raises(error, match=re.escape(f"APGDAttack: expected {message}")):
        APGDAttack(norm=norm)(objective, x)


@pytest.mark.parametrize("loss", ["dlr", "dlr-targeted"])
def test_losses_of_a_classifier_need_one(loss):
    message = (
        f"APGDAttack: expected a ClassificationObjective for '{loss}', got function. "
        "Pass ClassificationObjective(model, y), or leave loss at 'ce', which maximises any function."
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        APGDAttack(loss=loss)(linear, GOOD)


@pytest.mark.parametrize(("loss", "least"), [("dlr", 3), ("dlr-targeted", 4)])
def test_too_few_classes(loss, least):
    x = images(6, least - 1)
    message = f"a model of at least {least} classes for '{loss}', got {least - 1}. Choose another loss."
    with pytest.raises(ValueError, match=re.escape(f"APGDAttack: expected {message}")):
        APGDAttack(loss=loss)(ClassificationObjective(nn.Flatten().eval(), Y % 2), x)


def test_logits_that_become_infinite_on_the_way():
    x = torch.full((1, 3), 0.5)
    wall = ClassificationObjective(
        lambda x: x * torch.where(x == 0.5, 1.0, math.nan) + torch.tensor([1.0, 0, 0]), Y[:1]
    )
    message = "APGDAttack: expected the value of the objective to be"
    with pytest.raises(ValueError, match=re.escape(message)):
        APGDAttack()(wall, x)


def test_labels_for_other_images():
    message = "ClassificationObjective: expected the output of the model of shape"
    with pytest.raises(ValueError, match=re.escape(message)):
        APGDAttack()(ClassificationObjective(nn.Flatten().eval(), Y[:5]), GOOD)


def test_model_in_train_mode():
    with pytest.raises(RuntimeError, match=re.escape("ClassificationObjective: expected a model in eval mode")):
        APGDAttack()(ClassificationObjective(nn.Flatten(), Y), GOOD)


@pytest.mark.parametrize(("generator", "got"), [(0, "int"), ("cpu", "str"), (np.random.default_rng(0), "Generator")])
def test_wrong_generator(generator, got):
    message = f"generator to be a torch.Generator on cpu or None, got {got}"
    with pytest.raises(TypeError, match=re.escape(f"APGDAttack: expected {message}")):
        APGDAttack()(linear, GOOD, generator=generator)


def test_wrong_images_are_refused_before_the_objective_is_called():
    calls = []
    with pytest.raises(ValueError, match="x within bounds"):
        APGDAttack()(calls.append, 2 + GOOD)
    assert not calls
