"""The attack on models, losses and inputs as users have them, and what it refuses."""

import copy
import dataclasses
import math
import pickle
import re
from fractions import Fraction

import numpy as np
import pytest
import torch
from torch import nn

from advcontrast import PGDAttack
from advcontrast.functional import kl_divergence, linf_box, nt_xent, trades
from tests.properties.pgd_invariants import distance_is_at_most

EQUAL = {torch.float32: 1e-5, torch.float64: 1e-9}  # absolute, where only the order of sums differs
INFINITE = (-math.inf, math.inf)
HALF = [torch.float16, torch.bfloat16]
NORMS = ["linf", "l2"]


def images(*shape, dtype=torch.float32):
    return torch.rand(shape or (6, 3, 4, 4), generator=torch.Generator().manual_seed(1), dtype=dtype)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def network(dtype=torch.float32):
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Tanh(), nn.Flatten(), nn.Linear(32, 5))
    return net.to(dtype).eval()


def nonlinear(x):
    return (7 * x).sin().flatten(1).sum(1)


def linear(x):
    return x.flatten(1).sum(1)


def contrastive(model, n):
    return lambda x: nt_xent(model(x[:n]), model(x[n:]))


def test_repr_makes_an_equal_attack():
    attack = PGDAttack(eps=0.1, steps=3, norm="l2", bounds=(-1, 2), restarts=4, minimize=True, random_start=False)
    assert eval(repr(attack)) == attack


@pytest.mark.parametrize("remade", [copy.copy, copy.deepcopy, lambda a: pickle.loads(pickle.dumps(a))])
def test_copies_are_equal(remade):
    attack = PGDAttack(eps=0.1, restarts=2)
    assert remade(attack) == attack
    assert hash(remade(attack)) == hash(attack)


def test_settings_are_fixed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        PGDAttack().eps = 1.0


def test_replaced_settings_are_checked():
    with pytest.raises(ValueError, match="eps to be a finite number >= 0"):
        dataclasses.replace(PGDAttack(), eps=-1)


def test_settings_are_named():
    with pytest.raises(TypeError, match=r"^PGDAttack: expected settings by name"):
        PGDAttack(8 / 255)


def test_defaults_are_those_of_the_paper():
    expected = PGDAttack(eps=8 / 255, step_size=2 / 255, steps=5, norm="linf", random_start=True, bounds=(0.0, 1.0))
    assert PGDAttack() == expected
    assert PGDAttack().restarts is None
    assert not PGDAttack().minimize


@pytest.mark.parametrize("eps", [1 / 255, 2 / 255, 4 / 255, 8 / 255, 16 / 255, 0.031, 1e-6])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", ["grid", "tiny", "uniform"])
def test_cube_is_never_left(kind, dtype, eps):
    uniform = 2 * torch.rand(8, 32, generator=seeded(), dtype=dtype) - 1
    x = {"grid": torch.arange(256, dtype=dtype).view(8, 32) / 255, "uniform": uniform, "tiny": uniform**9}[kind]
    ours = PGDAttack(eps=eps, step_size=eps / 2, steps=4, bounds=(-1.0, 1.0))(nonlinear, x, generator=seeded())
    distance_is_at_most(eps, "linf", ours, x)
    assert (ours - x).abs().max() <= eps
    assert (ours - x).abs().max().item() <= eps


@pytest.mark.parametrize("eps", [1e-3, 0.03, 0.5, 2.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_sphere_is_never_left(dtype, eps):
    x = 2 * images(8, 3, 6, 6, dtype=dtype) - 1
    settings = {"eps": eps, "step_size": eps, "steps": 4, "norm": "l2", "bounds": (-1.0, 1.0)}
    distance_is_at_most(eps, "l2", PGDAttack(**settings)(nonlinear, x, generator=seeded()), x)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_linear_objective_ends_at_the_corner(dtype):
    x = torch.arange(256, dtype=dtype).view(4, 64) / 255
    weights = torch.randn(64, generator=seeded(), dtype=dtype)
    lower, upper = linf_box(x, 8 / 255)
    ours = PGDAttack(steps=8)(lambda x: (x @ weights).sum(), x, generator=seeded())
    assert torch.equal(ours, upper.where(weights > 0, lower))


@pytest.mark.parametrize(("eps", "steps"), [(8 / 255, 4), (0.03, 3), (0.031, 10), (0.1, 4)])
def test_steps_that_just_reach_the_corner_do_reach_it(eps, steps):
    x = torch.arange(256).view(4, 64) / 255
    ours = PGDAttack(eps=eps, step_size=eps / steps, steps=steps, random_start=False)(linear, x)
    assert torch.equal(ours, linf_box(x, eps)[1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_sphere_is_searched_to_its_edge(dtype):
    x = torch.zeros(3, 24, dtype=dtype)
    attack = PGDAttack(eps=0.5, step_size=0.2, steps=20, norm="l2", bounds=(-1.0, 1.0))
    weights = torch.randn(24, generator=seeded(), dtype=dtype)
    expected = (0.5 * weights / weights.norm()).expand(3, -1)
    torch.testing.assert_close(attack(lambda x: x @ weights, x, generator=seeded()), expected, rtol=0, atol=1e-3)


@pytest.mark.parametrize("norm", NORMS)
def test_no_steps_give_a_point_of_the_ball(norm):
    x = images()
    ours = PGDAttack(steps=0, norm=norm, eps=0.2)(linear, x, generator=seeded())
    distance_is_at_most(0.2, norm, ours, x)
    assert not torch.equal(ours, x)
    assert ours.min() >= 0
    assert ours.max() <= 1


def test_infinite_bounds_bound_nothing():
    x = 100 * torch.randn(4, 16, generator=seeded())
    ours = PGDAttack(eps=2.0, step_size=4.0, steps=1, bounds=INFINITE)(linear, x, generator=seeded())
    assert torch.equal(ours, linf_box(x, 2.0, INFINITE)[1])


@pytest.mark.parametrize("norm", NORMS)
def test_bounds_hold(norm):
    ours = PGDAttack(eps=0.3, step_size=0.3, norm=norm, bounds=(0.2, 0.6))(linear, images() * 0.4 + 0.2)
    assert Fraction(ours.min().item()) >= Fraction(0.2)
    assert Fraction(ours.max().item()) <= Fraction(0.6)


def test_images_a_rounding_error_outside_are_clamped():
    ours = PGDAttack(eps=0.0)(linear, torch.tensor([[-3e-8, 1 + 2e-7]]))
    assert ours.tolist() == [[0, 1]]


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("shape", [(0, 3, 4, 4), (3, 0)])
def test_empty_batches_come_back(norm, shape):
    assert PGDAttack(norm=norm, eps=0.1, restarts=2)(linear, torch.zeros(shape)).shape == shape


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("shape", [(5,), (5, 1), (1, 4), (2, 3, 4, 5, 2)])
def test_any_number_of_dimensions(norm, shape):
    x = images(*shape)
    ours = PGDAttack(norm=norm, eps=0.1, restarts=2)(lambda x: (x**2).reshape(len(x), -1).sum(1), x)
    assert ours.shape == shape
    distance_is_at_most(0.1, norm, ours.view(len(ours), -1), x.view(len(x), -1))


def test_result_is_no_inference_tensor():
    model, x = network(), images()
    expected = PGDAttack()(lambda x: model(x).logsumexp(1), x, generator=seeded())
    with torch.inference_mode():
        ours = PGDAttack()(lambda x: model(x).logsumexp(1), x.clone(), generator=seeded())
    assert torch.equal(ours, expected)
    ours.requires_grad_()


@pytest.mark.parametrize("norm", NORMS)
def test_statistics_of_an_eval_model_stay(norm):
    model = network()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    PGDAttack(norm=norm, eps=0.1)(lambda x: model(x).logsumexp(1), images())
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_training_mode_of_the_caller_is_kept():
    model = network().train()
    PGDAttack()(lambda x: model(x).logsumexp(1), images())
    assert model.training
    assert model[1].num_batches_tracked == 5


def test_without_generator_the_global_one_decides():
    torch.manual_seed(3)
    first = PGDAttack()(linear, images())
    torch.manual_seed(3)
    assert torch.equal(PGDAttack()(linear, images()), first)


@pytest.mark.parametrize("dtype", HALF)
def test_autocast_around_the_call_leaves_float32_images(dtype):
    model, x = network(), images()
    with torch.autocast("cpu", dtype=dtype):
        ours = PGDAttack()(lambda x: model(x).logsumexp(1), x, generator=seeded())
    assert ours.dtype == torch.float32
    distance_is_at_most(8 / 255, "linf", ours, x)
    full = PGDAttack()(lambda x: model(x).logsumexp(1), x, generator=seeded())
    assert (ours - full).abs().mean() < 0.1 * (full - x).abs().mean()


@pytest.mark.parametrize("n", [64, 512])
def test_contrastive_gradient_survives_float16(n):
    model = nn.Sequential(nn.Linear(12, 32), nn.Tanh(), nn.Linear(32, 16))
    x = images(2 * n, 12)
    attack = PGDAttack(steps=1, random_start=False, bounds=INFINITE)
    full = attack(contrastive(model, n), x) - x
    with torch.autocast("cpu", dtype=torch.float16):
        half = attack(contrastive(model, n), x) - x
    assert (half != 0).float().mean() > 0.99
    assert (half.sign() == full.sign()).float().mean() > 0.97


def test_float16_mean_over_many_samples_still_moves_every_pixel():
    x = images(4096, 2)

    def objective(x):
        return (1e-4 * x.half()).mean()

    image = x.clone().requires_grad_()
    assert not torch.autograd.grad(objective(image), image)[0].any()
    assert (PGDAttack(steps=1, random_start=False, bounds=INFINITE)(objective, x) > x).all()


def test_per_sample_and_mean_objective_agree():
    x = images(dtype=torch.float64)
    runs = [PGDAttack()(f, x, generator=seeded()) for f in (nonlinear, lambda x: nonlinear(x).mean())]
    assert torch.equal(*runs)


@pytest.mark.parametrize("norm", NORMS)
def test_contrastive_attack_raises_the_loss_of_the_batch(norm):
    model, x = network(), images(8, 3, 4, 4)
    objective = contrastive(model, 4)
    assert objective(PGDAttack(norm=norm, eps=0.1, step_size=0.05)(objective, x)) > objective(x)


def test_splitting_the_batch_changes_a_contrastive_attack():
    model, x = network(torch.float64), images(8, 3, 4, 4, dtype=torch.float64)
    attack = PGDAttack(random_start=False)
    whole = attack(contrastive(model, 4), x).view(2, 4, 3, 4, 4)
    for rows in (slice(0, 2), slice(2, 4)):
        part = x.view(2, 4, 3, 4, 4)[:, rows].flatten(0, 1)
        alone = attack(contrastive(model, 2), part).view(2, 2, 3, 4, 4)
        assert not torch.allclose(alone, whole[:, rows], rtol=0, atol=1 / 255)


def test_permuting_pairs_permutes_a_contrastive_attack():
    model, x = network(torch.float64), images(8, 3, 4, 4, dtype=torch.float64)
    order = torch.tensor([2, 0, 3, 1])
    both = torch.cat([order, order + 4])
    attack = PGDAttack(random_start=False)
    ours = attack(contrastive(model, 4), x[both])
    torch.testing.assert_close(ours, attack(contrastive(model, 4), x)[both], rtol=0, atol=EQUAL[torch.float64])


@pytest.mark.parametrize("norm", NORMS)
def test_teacher_objective_drives_the_student_away(norm):
    student, teacher, x = network(), network(), images()
    with torch.no_grad():
        target = teacher(x)
    ours = PGDAttack(norm=norm, eps=0.1)(lambda x: kl_divergence(target, student(x)), x, generator=seeded())
    with torch.no_grad():
        assert (kl_divergence(target, student(ours)) > kl_divergence(target, student(x))).all()


def test_divergence_from_itself_needs_the_random_start():
    model, x = network(), images()
    with torch.no_grad():
        clean = model(x)

    def objective(x):
        return kl_divergence(clean, model(x))

    with torch.no_grad():
        stuck = kl_divergence(clean, model(PGDAttack(random_start=False, steps=1)(objective, x))).mean()
        moved = kl_divergence(clean, model(PGDAttack(steps=5)(objective, x))).mean()
    assert moved > 4 * stuck


def test_adversarial_training_step_after_an_attack_has_only_its_own_gradients():
    model, x, y = network(), images(), torch.tensor([0, 1, 2, 3, 4, 0])
    clean = model(x).detach()
    adversarial = PGDAttack()(lambda x: kl_divergence(clean, model(x)), x)
    trades(model(x), model(adversarial), y).backward()
    ours = [parameter.grad.clone() for parameter in model.parameters()]
    model.zero_grad()
    trades(model(x), model(adversarial), y).backward()
    assert all(torch.equal(a, b.grad) for a, b in zip(ours, model.parameters(), strict=True))


@pytest.mark.parametrize("norm", NORMS)
def test_text_embeddings_without_bounds(norm):
    encoder = nn.Sequential(nn.Linear(16, 32), nn.Tanh(), nn.Linear(32, 8))
    x, fixed = 5 * torch.randn(7, 16), torch.randn(7, 8)
    attack = PGDAttack(eps=1.5, step_size=0.5, norm=norm, bounds=INFINITE)
    ours = attack(lambda x: nt_xent(encoder(x), fixed), x, generator=seeded())
    distance_is_at_most(1.5, norm, ours, x)
    assert nt_xent(encoder(ours), fixed) > nt_xent(encoder(x), fixed)


def test_objectives_may_ignore_some_samples():
    x = images()
    ours = PGDAttack(random_start=False)(lambda x: linear(x) * torch.tensor([1, 1, 0, 0, 1, 1]), x)
    assert torch.equal((ours != x).flatten(1).any(1), torch.tensor([True, True, False, False, True, True]))


def test_one_restart_returns_the_start_where_every_step_overshoots():
    x = torch.full((2, 3), 0.5)
    attack = PGDAttack(eps=0.25, step_size=0.25, steps=1, random_start=False, restarts=1)
    assert torch.equal(attack(lambda x: (x == 0.5).float().sum(1) + 0 * linear(x) + 1e-6 * linear(x), x), x)


def test_more_restarts_are_never_weaker():
    x = images(dtype=torch.float64)
    best = torch.full((6,), -math.inf, dtype=torch.float64)
    for restarts in (1, 2, 4):
        value = nonlinear(PGDAttack(restarts=restarts, eps=0.2)(nonlinear, x, generator=seeded()))
        assert (value >= best).all()
        best = value


def test_minimize_lowers_the_loss_of_a_target_class():
    model, x, target = network(), images(), torch.tensor([1, 2, 3, 4, 0, 1])

    def objective(x):
        return nn.functional.cross_entropy(model(x), target, reduction="none")

    assert (objective(PGDAttack(minimize=True, restarts=1)(objective, x)) < objective(x)).all()


GOOD = images()
BAD_SETTINGS = [
    ({"eps": -1}, ValueError, "eps to be"),
    ({"eps": math.nan}, ValueError, "eps to be"),
    ({"eps": math.inf}, ValueError, "eps to be"),
    ({"eps": "8/255"}, TypeError, "eps to be"),
    ({"eps": torch.tensor(0.1)}, TypeError, "eps to be"),
    ({"eps": 8}, ValueError, "eps within"),
    (
        {"eps": 0.5, "bounds": (0.1, 0.5)},
        ValueError,
        "eps within",
    ),
    ({"step_size": 0}, ValueError, "step_size to be"),
    ({"step_size": -0.1}, ValueError, "step_size to be"),
    ({"step_size": math.nan}, ValueError, "step_size to be"),
    ({"step_size": None}, TypeError, "step_size to be"),
    ({"steps": -1}, ValueError, "steps to be"),
    ({"steps": 2.5}, TypeError, "steps to be"),
    ({"steps": True}, TypeError, "steps to be"),
    ({"norm": "l0"}, ValueError, "norm to be"),
    ({"norm": "LINF"}, ValueError, "norm to be"),
    ({"norm": 2}, TypeError, "norm to be"),
    ({"random_start": 1}, TypeError, "random_start to be"),
    ({"minimize": None}, TypeError, "minimize to be"),
    ({"restarts": 0}, ValueError, "restarts to be"),
    ({"restarts": 1.0}, TypeError, "restarts to be"),
    ({"bounds": (1, 0)}, ValueError, "bounds (low, high) with low < high"),
    ({"bounds": (0, 0)}, ValueError, "bounds (low, high) with low < high"),
    ({"bounds": (0, 0.5, 1)}, ValueError, "bounds (low, high) with low < high"),
    ({"bounds": (math.nan, 1)}, ValueError, "each of bounds to be"),
    ({"bounds": ("0", 1)}, TypeError, "each of bounds to be"),
    ({"bounds": [0, 1]}, TypeError, "bounds to be"),
    ({"bounds": None}, TypeError, "bounds to be"),
]


@pytest.mark.parametrize(("settings", "error", "message"), BAD_SETTINGS)
def test_wrong_settings(settings, error, message):
    with pytest.raises(error, match=re.escape(f"PGDAttack: expected {message}")):
        PGDAttack(**settings)


def test_sphere_may_be_wider_than_the_bounds():
    assert PGDAttack(eps=2.0, norm="l2").eps == 2


KIND = "x to be"
RANGE = "x within"
CALLABLE = "objective to be"
SHAPE = "objective to return"
VALUE = "the value of the objective to be"
DETACHED = "objective to depend"
NAN = "the value of the objective to be"
STEEP = "the gradient of the objective to be"
WEIGHT = torch.ones((), requires_grad=True)
BAD_CALLS = [
    (linear, (GOOD * 255).byte(), TypeError, KIND),
    (linear, GOOD.half(), TypeError, KIND),
    (linear, GOOD.bfloat16(), TypeError, KIND),
    (linear, GOOD.numpy(), TypeError, KIND),
    (linear, torch.tensor(0.5), ValueError, "x of shape"),
    (linear, 2 * GOOD.round() - 1, ValueError, RANGE),
    (linear, 255 * GOOD.round(), ValueError, RANGE),
    (linear, GOOD / 0, ValueError, "x to be"),
    (None, GOOD, TypeError, CALLABLE),
    (GOOD, GOOD, TypeError, CALLABLE),
    (lambda x: x, GOOD, ValueError, SHAPE),
    (lambda x: linear(x)[:5], GOOD, ValueError, SHAPE),
    (lambda x: linear(x)[:, None], GOOD, ValueError, SHAPE),
    (lambda x: linear(x).sum().item(), GOOD, TypeError, VALUE),
    (lambda x: linear(x).long(), GOOD, TypeError, VALUE),
    (lambda x: None, GOOD, TypeError, VALUE),
    (lambda x: linear(x.detach()), GOOD, ValueError, DETACHED),
    (lambda x: linear(x.detach()) * WEIGHT, GOOD, ValueError, DETACHED),
    (torch.no_grad()(linear), GOOD, ValueError, DETACHED),
    (lambda x: linear(x) * math.nan, GOOD, ValueError, NAN),
    (lambda x: linear(x) / 0, GOOD, ValueError, NAN),
    (lambda x: linear((x - x.detach()).sqrt()), GOOD, ValueError, STEEP),
]


@pytest.mark.parametrize(("objective", "x", "error", "message"), BAD_CALLS)
@pytest.mark.parametrize("norm", NORMS)
def test_wrong_calls(norm, objective, x, error, message):
    with pytest.raises(error, match=re.escape(f"PGDAttack: expected {message}")):
        PGDAttack(norm=norm, random_start=False)(objective, x)


@pytest.mark.parametrize(
    ("generator", "error", "got"),
    [(0, TypeError, "int"), ("cpu", TypeError, "str"), (np.random.default_rng(0), TypeError, "Generator")],
)
def test_wrong_generator(generator, error, got):
    with pytest.raises(error, match=f"^PGDAttack: expected generator to be .*, got {got}"):
        PGDAttack()(linear, GOOD, generator=generator)


def test_wrong_images_are_refused_before_the_objective_is_called():
    calls = []
    with pytest.raises(ValueError, match="x within bounds"):
        PGDAttack()(calls.append, 2 + GOOD)
    assert not calls


def test_errors_of_the_objective_come_through():
    def objective(x):
        raise KeyError("mine")

    with torch.no_grad(), pytest.raises(KeyError, match="mine"):
        PGDAttack()(objective, GOOD)
    assert torch.is_grad_enabled()


def test_scaling_the_loss_cannot_make_half_precision_overflow():
    x = images(4, 8)
    attack = PGDAttack(eps=0.1, step_size=0.2, steps=1, random_start=False)
    assert torch.equal(attack(lambda x: (x.half() * 100).sum(1) * 30, x), linf_box(x, 0.1)[1])


@pytest.mark.parametrize("dtype", HALF)
def test_the_backward_pass_does_not_run_under_autocast(dtype):
    x, modes = images(4, 8), []
    weights = torch.ones(8, requires_grad=True)

    def objective(x):
        values = x * weights
        values.register_hook(lambda _: modes.append(torch.is_autocast_enabled("cpu")))
        return values.sum(1)

    with torch.autocast("cpu", dtype=dtype):
        PGDAttack(steps=2)(objective, x)
    assert modes == [False, False]


def test_a_ball_as_wide_as_the_bounds_is_allowed_despite_rounding():
    assert PGDAttack(eps=0.4, bounds=(0.2, 0.6)).eps == 0.4
