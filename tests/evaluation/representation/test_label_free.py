"""Robustness without labels: closed forms, all batches together, and a training that does not change."""

import math
import re
from dataclasses import asdict

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from advcontrast import PGDAttack, bn_branch, convert_to_dual_bn
from advcontrast.engine import fit
from advcontrast.evaluation.representation.label_free import LabelFreeRobustness, label_free_robustness
from advcontrast.functional import alignment
from advcontrast.functional.representation import (
    breakaway_risk,
    effective_rank,
    margin_ratio,
    nearest_neighbour_accuracy,
    uniformity,
)
from tests.engine import learners

ATTACK = PGDAttack(eps=0.1, step_size=0.05, steps=3)
RANGES = {
    "distance": (0, math.inf),
    "breakaway_risk": (0, 1),
    "nearest_neighbour_accuracy": (0, 1),
    "overlap_risk": (0, 1),
    "margin": (-math.inf, math.inf),
    "alignment": (0, 4),
    "uniformity_clean": (-8, 0),
    "uniformity_adv": (-8, 0),
    "effective_rank_clean": (1, 5),
    "effective_rank_adv": (1, 5),
}


def encoder():
    torch.manual_seed(3)
    model = nn.Sequential(
        nn.Flatten(), nn.Linear(12, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Tanh(), nn.Linear(8, 5)
    )
    model[2].running_mean.normal_()
    return model


def images(n=40, seed=5):
    return torch.rand(n, 3, 2, 2, generator=torch.Generator().manual_seed(seed))


def batches(size=16, n=40):
    return list(images(n).split(size))


def unmoved(objective, x, *, generator):
    return x


def record(calls):
    """Return an attack that does nothing but keep what it was called with."""

    def attack(objective, x, *, generator):
        calls.append((objective, x.clone()))
        return x

    return attack


def test_identity_moves_by_the_radius_in_every_pixel():
    inner = 0.2 + 0.6 * images()
    result = label_free_robustness(nn.Flatten(), [inner])
    assert result.distance == pytest.approx(8 / 255 * math.sqrt(12), rel=1e-5)


def test_identity_moves_by_the_radius_of_an_l2_ball():
    inner = 0.4 + 0.2 * images()
    attack = PGDAttack(eps=0.25, step_size=0.125, steps=5, norm="l2")
    assert label_free_robustness(nn.Flatten(), [inner], attack).distance == pytest.approx(0.25, rel=1e-4)


def test_identity_leaves_a_margin_between_images_far_apart():
    # Every pixel comes nearer by eps, if the two images differ by more than that.
    x = torch.tensor([[0.1, 0.9, 0.2], [0.6, 0.3, 0.8]])
    gap, moved = [0.5, 0.6, 0.6], 0.1 * math.sqrt(3)
    left = math.sqrt(sum((side - 0.1) ** 2 for side in gap)) - moved
    result = label_free_robustness(nn.Flatten(), [x], PGDAttack(eps=0.1, step_size=0.05, steps=6))
    assert result.margin == pytest.approx(left / math.hypot(*gap), rel=1e-5)
    assert result.overlap_risk == 0


def test_identity_overlaps_within_the_radius():
    x = 0.5 + 0.02 * torch.randn(16, 2, generator=torch.Generator().manual_seed(0))
    result = label_free_robustness(nn.Flatten(), [x], PGDAttack(eps=0.1, step_size=0.01, steps=20))
    assert result.overlap_risk == 1
    assert result.margin < -0.4
    assert result.breakaway_risk > 0


def test_encoder_of_one_point_is_robust_and_gives_itself_away():
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 5))
    model[1].weight.data.zero_()
    result = asdict(label_free_robustness(model, batches()))
    expected = {"distance": 0, "breakaway_risk": 0, "nearest_neighbour_accuracy": 1, "overlap_risk": 0, "margin": 1}
    spread = {"uniformity_clean": 0, "uniformity_adv": 0, "effective_rank_clean": 1, "effective_rank_adv": 1}
    assert result == pytest.approx({**expected, "alignment": 0, **spread}, abs=1e-10)


def test_attack_that_does_nothing_finds_a_robust_encoder():
    result = label_free_robustness(encoder(), batches(), unmoved)
    assert (result.distance, result.breakaway_risk, result.overlap_risk, result.alignment) == (0, 0, 0, 0)
    assert result.nearest_neighbour_accuracy == 1
    assert result.margin == pytest.approx(1, rel=1e-12)
    assert result.uniformity_adv == result.uniformity_clean
    assert result.effective_rank_adv == result.effective_rank_clean


def test_measures_are_those_of_the_features_of_all_batches_together():
    model, x = encoder(), images()

    def negative(objective, x, *, generator):
        return 1 - x

    result = label_free_robustness(model, batches(), negative)
    with torch.no_grad():
        clean, adv = model.eval()(x), model(1 - x)
    assert result.distance == pytest.approx((adv - clean).norm(dim=1).mean().item(), rel=1e-5)
    assert result.breakaway_risk == pytest.approx(breakaway_risk(clean, adv).item(), rel=1e-12)
    assert result.nearest_neighbour_accuracy == nearest_neighbour_accuracy(clean, adv).item()
    assert result.alignment == pytest.approx(alignment(clean, adv).item(), rel=1e-5)
    assert result.uniformity_clean == pytest.approx(uniformity(clean).item(), rel=1e-5)
    assert result.uniformity_adv == pytest.approx(uniformity(adv).item(), rel=1e-5)
    assert result.effective_rank_clean == pytest.approx(effective_rank(clean).item(), rel=1e-5)
    assert result.effective_rank_adv == pytest.approx(effective_rank(adv).item(), rel=1e-5)


def test_risk_counts_every_batch_and_not_the_last_alone():
    x = torch.tensor([[0.0], [0.25], [0.5], [1.0]])
    result = label_free_robustness(nn.Flatten(), x.split(2), lambda objective, x, generator: x.flip(0) % 1)
    # 0 and 0.25 change places; 0.5 is driven to 0, past 0.25, and 1 to 0.5, next to 0.25 and to 0.5.
    first, last = 1 + 1, 2 + 2
    assert result.breakaway_risk == pytest.approx((first + last) / 12, rel=1e-12)
    assert result.nearest_neighbour_accuracy == 0


def test_margin_is_the_median_over_all_pairs():
    calls, x = [], images()

    def negative(objective, x, *, generator):
        calls.append(x.clone())
        return (1 - x) / 2

    result = label_free_robustness(nn.Flatten(), [*x.split(16)], negative)
    ratios = []
    for one in calls[1::2]:
        other = one.roll(len(one) // 2, 0)
        ratios.append(margin_ratio(*(z.flatten(1) for z in (one, other, (1 - one) / 2, (1 - other) / 2))))
    ratios = torch.cat(ratios)
    assert len(ratios) == 40
    assert result.margin == pytest.approx(ratios.median().item(), rel=1e-6)
    assert 0 < result.overlap_risk < 1
    assert result.overlap_risk == (ratios < 0).double().mean().item()


def test_first_attack_sees_the_squared_distance_to_the_image():
    calls, model, x = [], encoder(), images(6)
    label_free_robustness(model, [x], record(calls))
    objective, attacked = calls[0]
    assert torch.equal(attacked, x)
    moved = model.eval()(1 - x) - model(x)
    torch.testing.assert_close(objective(1 - x), moved.square().sum(1))


def test_second_attack_sees_the_negative_squared_distance_to_the_partner():
    calls, model = [], encoder()
    label_free_robustness(model, [images(6)], record(calls))
    objective, one = calls[1]
    z = model.eval()(one)
    torch.testing.assert_close(objective(one), -(z - z.roll(3, 0)).square().sum(1))


def test_every_image_is_drawn_to_another_one():
    calls, x = [], images(6)
    label_free_robustness(nn.Flatten(), [x], record(calls))
    objective, one = calls[1]
    assert torch.equal(one.flatten(1).sort(0).values, x.flatten(1).sort(0).values)
    assert (objective(one) < 0).all()


def test_one_image_of_an_odd_batch_and_one_alone_are_not_drawn():
    calls = []
    label_free_robustness(nn.Flatten(), images(6).split(5), record(calls))
    assert [len(x) for _, x in calls] == [5, 4, 1]


def test_partners_are_drawn_at_random():
    seen = []
    for seed in (1, 2):
        calls = []
        label_free_robustness(encoder(), [images(20)], record(calls), generator=torch.Generator().manual_seed(seed))
        seen.append(calls[1][1])
    assert not torch.equal(*seen)


def test_cost_is_that_of_the_docstring():
    passes = []
    model = encoder()
    model.register_forward_hook(lambda _, __, out: passes.append((len(out), out.requires_grad)))
    label_free_robustness(model, batches(10))
    assert sum(n for n, _ in passes) == 40 * 23
    assert sum(n for n, backward in passes if backward) == 40 * 20


def test_default_attack_is_ten_steps_of_the_usual_ball():
    expected = PGDAttack(eps=8 / 255, step_size=2 / 255, steps=10)
    assert label_free_robustness(encoder(), batches()) == label_free_robustness(encoder(), batches(), expected)


def test_wider_balls_move_more():
    distances = [
        label_free_robustness(encoder(), batches(), PGDAttack(eps=eps, step_size=eps / 4, steps=8)).distance
        for eps in (0.02, 0.05, 0.1)
    ]
    assert distances == sorted(distances)
    assert distances[2] > 3 * distances[0]


def test_attack_beats_noise():
    def noise(objective, x, *, generator):
        return (x + 0.1 * (2 * torch.rand(x.shape, generator=generator) - 1)).clamp(0, 1)

    random, pgd = (label_free_robustness(encoder(), batches(), attack) for attack in (noise, ATTACK))
    assert pgd.distance > 1.5 * random.distance
    assert pgd.breakaway_risk > random.breakaway_risk
    assert pgd.margin < random.margin


@pytest.mark.parametrize("name", RANGES)
def test_measures_are_floats_in_their_range(name):
    value = asdict(label_free_robustness(encoder(), batches(), ATTACK))[name]
    low, high = RANGES[name]
    assert type(value) is float
    assert low <= value <= high


def test_measures_are_all_there():
    assert list(RANGES) == list(asdict(label_free_robustness(encoder(), batches(), unmoved)))


def test_copies_of_images_in_other_batches_do_not_make_a_robust_encoder_look_broken():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 64), nn.ReLU(), nn.Linear(64, 16))
    x = images(8)
    attack = PGDAttack(eps=1e-4, step_size=5e-5, steps=3)
    result = label_free_robustness(model, [x, x[:5], x[2:]], attack)
    assert result.breakaway_risk == 0
    assert result.nearest_neighbour_accuracy == 1
    assert result.overlap_risk == 0


def test_pairs_of_images_and_anything_will_do():
    model, x = encoder(), batches()
    expected = label_free_robustness(model, x, ATTACK)
    assert label_free_robustness(model, [(part, "anything") for part in x], ATTACK) == expected
    assert label_free_robustness(model, [[part, None] for part in x], ATTACK) == expected


def test_batches_are_walked_once():
    model = encoder()
    assert label_free_robustness(model, iter(batches()), ATTACK) == label_free_robustness(model, batches(), ATTACK)


def test_empty_batches_are_passed_over():
    model, x = encoder(), batches()
    assert label_free_robustness(model, [x[0][:0], *x], ATTACK) == label_free_robustness(model, x, ATTACK)


def test_double_precision_is_kept():
    inner = 0.2 + 0.6 * images().double()
    assert label_free_robustness(nn.Flatten(), [inner]).distance == pytest.approx(8 / 255 * math.sqrt(12), rel=1e-12)


def test_distances_of_features_in_half_precision_are_taken_in_float32():
    calls = []
    label_free_robustness(Makes(torch.Tensor.bfloat16), [images()], record(calls))
    assert [objective(x).dtype for objective, x in calls] == [torch.float32] * 2


def test_autocast_around_the_call_is_used_and_survived():
    result = label_free_robustness(encoder(), batches(), ATTACK)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = label_free_robustness(encoder(), batches(), ATTACK)
    assert rounded != result
    assert rounded.distance == pytest.approx(result.distance, rel=0.05)


def test_branch_is_the_one_around_the_call():
    model = convert_to_dual_bn(encoder())
    model[2].adv.weight.data.mul_(3)
    clean = label_free_robustness(model, batches(), ATTACK)
    with bn_branch(model, "adv"):
        adv = label_free_robustness(model, batches(), ATTACK)
    assert clean == label_free_robustness(encoder(), batches(), ATTACK)
    assert adv.distance > 1.2 * clean.distance


def test_same_seed_is_used_by_default():
    zero = torch.Generator().manual_seed(0)
    expected = label_free_robustness(encoder(), batches(), ATTACK, generator=zero)
    assert label_free_robustness(encoder(), batches(), ATTACK) == expected


def test_everything_is_drawn_from_the_generator_that_was_passed():
    generator = torch.Generator().manual_seed(1)
    before = generator.get_state()
    label_free_robustness(encoder(), batches(), unmoved, generator=generator)
    pairs = generator.get_state()
    assert not torch.equal(pairs, before)
    generator.set_state(before)
    label_free_robustness(encoder(), batches(), ATTACK, generator=generator)
    assert not torch.equal(generator.get_state(), pairs)


def test_global_random_state_is_untouched():
    loader = DataLoader(TensorDataset(images(), torch.zeros(40)), batch_size=16, shuffle=True)
    model, before = encoder(), torch.get_rng_state()
    label_free_robustness(model, loader, ATTACK)
    assert torch.equal(torch.get_rng_state(), before)


def test_works_under_no_grad():
    expected = label_free_robustness(encoder(), batches(), ATTACK)
    with torch.no_grad():
        assert label_free_robustness(encoder(), batches(), ATTACK) == expected


def partly_frozen():
    model = encoder().train()
    model[2].eval()
    model[1].weight.requires_grad_(False)
    return model


def state_of(model):
    modes = [module.training for module in model.modules()]
    flags = [(parameter.requires_grad, parameter.grad) for parameter in model.parameters()]
    return modes, flags, {name: value.clone() for name, value in model.state_dict().items()}


def broken(objective, x, *, generator):
    objective(x)
    raise ZeroDivisionError


@pytest.mark.parametrize("attack", [ATTACK, broken], ids=["good", "broken"])
def test_model_is_left_as_it_was(attack):
    model = partly_frozen()
    modes, flags, values = state_of(model)
    if attack is broken:
        with pytest.raises(ZeroDivisionError):
            label_free_robustness(model, batches(), attack)
    else:
        label_free_robustness(model, batches(), attack)
    assert state_of(model)[:2] == (modes, flags)
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in values.items())


def test_images_are_left_as_they_were_by_an_attack_that_works_in_place():
    x = images()
    label_free_robustness(encoder(), [x], lambda objective, x, generator: x.zero_())
    assert torch.equal(x, images())


def test_encoder_is_in_eval_mode_and_frozen_for_the_call():
    model, modes = partly_frozen(), []
    model.register_forward_hook(lambda *_: modes.extend(part.training for part in model.modules()))
    model.register_forward_hook(lambda *_: modes.extend(weight.requires_grad for weight in model.parameters()))
    label_free_robustness(model, batches(), ATTACK)
    assert modes
    assert not any(modes)


def pretrain(evaluate=None):
    learner = learners.acl()
    torch.manual_seed(0)
    settings = {"epochs": 2, "batch_size": 8, "optimizer": learners.sgd(learner)}
    rows = fit(learner, learners.images(), evaluate=evaluate and evaluate(learner), **settings)
    return learner, rows


def measured(learner):
    x = learners.images(7, seed=1).float() / 255

    def evaluate(epoch):
        with bn_branch(learner.model, "adv"):
            return asdict(label_free_robustness(learner.model, [x], PGDAttack(steps=2)))

    return evaluate


def test_pretraining_reports_the_measures_of_every_epoch():
    _, rows = pretrain(measured)
    assert all(RANGES.keys() <= row.keys() for row in rows)
    assert rows[0]["distance"] != rows[1]["distance"]


def test_pretraining_is_the_same_bit_for_bit_with_the_measures_and_without():
    plain, plain_rows = pretrain()
    learner, rows = pretrain(measured)
    assert learners.same(learner.state_dict(), plain.state_dict())
    assert [row["loss"] for row in rows] == [row["loss"] for row in plain_rows]


X = torch.linspace(0, 1, 48).view(4, 3, 2, 2)


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        ([], ValueError, "a batch of at least 2 images"),
        ([X[:0]], ValueError, "a batch of at least 2 images"),
        ([X[:1]], ValueError, "a batch of at least 2 images"),
        (X.split(1), ValueError, "a batch of at least 2 images"),
        (X, TypeError, "batches"),
        (None, TypeError, "batches"),
        (
            [(X, X, X)],
            TypeError,
            "batches",
        ),
        ([[]], TypeError, "batches"),
        (
            [(255 * X).byte()],
            TypeError,
            "images",
        ),
        ([X.tolist()], TypeError, "batches"),
        (["ab"], TypeError, "images"),
        ([X + 1], ValueError, "images"),
        ([(X * math.nan, 0)], ValueError, "images"),
        ([X.flatten()], ValueError, "images"),
    ],
)
def test_wrong_batches(data, error, message):
    with pytest.raises(error, match=re.escape(f"label_free_robustness: expected {message}")):
        label_free_robustness(encoder(), data)


class Makes(nn.Module):
    """An encoder that makes something of the flat images."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x.flatten(1))


@pytest.mark.parametrize(
    ("model", "error", "message"),
    [
        (lambda x: x, TypeError, "model"),
        (nn.Identity(), ValueError, "the output of the model"),
        (nn.Flatten(0), ValueError, "the output of the model"),
        (Makes(lambda x: x[:3]), ValueError, "output of the model"),
        (Makes(lambda x: x[:, :0]), ValueError, "output of the model"),
        (
            Makes(lambda x: (x, x)),
            TypeError,
            "output of the model",
        ),
        (
            Makes(torch.Tensor.long),
            TypeError,
            "model",
        ),
        (
            Makes(torch.log),
            ValueError,
            "features",
        ),
    ],
)
def test_wrong_encoders(model, error, message):
    with pytest.raises(error, match=re.escape(message)) as caught:
        label_free_robustness(model, [X])
    assert str(caught.value).startswith("label_free_robustness: expected ")


def test_features_that_are_not_finite_under_attack_only_give_no_number():
    bright = Makes(lambda x: x / (x < 1).all(1, keepdim=True))
    with pytest.raises(ValueError, match="label_free_robustness: expected features"):
        label_free_robustness(bright, [X / 2], lambda objective, x, generator: torch.ones_like(x))


@pytest.mark.parametrize(
    ("attack", "error", "message"),
    [
        (
            "pgd",
            TypeError,
            "attack",
        ),
        (
            lambda objective, x, generator: x[:2],
            ValueError,
            "attack",
        ),
        (lambda objective, x, generator: None, ValueError, "attack"),
    ],
)
def test_wrong_attacks(attack, error, message):
    with pytest.raises(error, match=re.escape(f"label_free_robustness: expected {message}")):
        label_free_robustness(encoder(), [X], attack)


def test_wrong_generator():
    message = "label_free_robustness: expected generator"
    with pytest.raises(TypeError, match=re.escape(message)):
        label_free_robustness(encoder(), [X], ATTACK, generator=0)


def test_repr_reads_as_the_call():
    result = label_free_robustness(encoder(), batches(), unmoved)
    assert eval(repr(result), {"LabelFreeRobustness": LabelFreeRobustness}) == result


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_batches_are_moved_to_the_encoder_and_the_random_state_of_the_device_is_untouched():
    model = encoder().cuda()
    before = torch.cuda.get_rng_state()
    result = label_free_robustness(model, batches(), unmoved)
    assert torch.equal(torch.cuda.get_rng_state(), before)
    assert asdict(result) == pytest.approx(asdict(label_free_robustness(encoder(), batches(), unmoved)), rel=1e-3)
