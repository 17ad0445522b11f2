"""Unforeseen attack robustness: the published numbers, the arithmetic, the targets, and the traces not left."""

import dataclasses
import math
import re

import pytest
import torch
from torch import nn

from advcontrast.attacks import PGDAttack
from advcontrast.evaluation import accuracy
from advcontrast.evaluation.uar import CALIBRATIONS, UAR, calibrated_attacks, uar
from advcontrast.evaluation.uar.elastic import ElasticAttack
from advcontrast.evaluation.uar.frank_wolfe import FrankWolfeAttack
from advcontrast.evaluation.uar.jpeg import JPEGAttack

NAMES = ["pgd_linf", "pgd_l2", "fw_l1", "jpeg_linf", "jpeg_l2", "jpeg_l1", "elastic"]
# The tables of the authors' README for CIFAR-10, and of their calibration file for jpeg_l2.
SIZES = {
    "pgd_linf": (1, 2, 4, 8, 16, 32),
    "pgd_l2": (40, 80, 160, 320, 640, 2560),
    "fw_l1": (195, 390, 780, 1560, 6240, 24960),
    "jpeg_linf": (0.03125, 0.0625, 0.125, 0.25, 0.5, 1),
    "jpeg_l2": (0.25, 0.5, 1, 2, 4, 8),
    "jpeg_l1": (2, 8, 64, 256, 512, 1024),
    "elastic": (0.125, 0.25, 0.5, 1, 2, 8),
}
ROUNDED = {
    "pgd_linf": (91.0, 87.8, 81.6, 71.3, 46.5, 23.1),
    "pgd_l2": (90.1, 86.4, 79.6, 67.3, 49.9, 17.3),
    "fw_l1": (92.2, 90.0, 83.2, 73.8, 47.4, 35.3),
    "jpeg_linf": (89.7, 87.0, 83.1, 78.6, 69.7, 35.4),
    "jpeg_l2": (92.2, 91.0, 88.4, 85.8, 81.3, 72.0),
    "jpeg_l1": (91.4, 88.1, 80.2, 68.9, 56.3, 37.7),
    "elastic": (87.4, 81.3, 72.1, 58.2, 45.4, 27.8),
}
UNITS = {"pgd_linf": 1 / 255, "pgd_l2": 1 / 255, "fw_l1": 1 / 255, "elastic": 31 / 32}


class Brightness(nn.Module):
    """Tells bright images from dark ones, by a margin of the mean."""

    def forward(self, x):
        margin = x.flatten(1).mean(1) - 0.5
        return torch.stack([20 * margin, -20 * margin], 1)


def classifier(classes=4):
    """Random weights, that the smaller sizes of each attack change the outcome of for some images."""
    torch.manual_seed(3)
    model = nn.Sequential(nn.Flatten(), nn.Linear(3072, classes), nn.BatchNorm1d(classes), nn.Dropout(0.5))
    nn.init.normal_(model[1].weight, std=0.02)
    model[2].running_mean.copy_(model[1].weight.detach().sum(1) / 2)
    return model


def batches(n=24, size=10):
    generator = torch.Generator().manual_seed(5)
    x = torch.rand(n, 3, 8, 8, generator=generator).repeat_interleave(4, 2).repeat_interleave(4, 3)
    with torch.no_grad():
        y = classifier().eval()(x).argmax(1)
    y[::6] = (y[::6] + 1) % 4
    return list(zip(x.split(size), y.split(size), strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_sizes_are_the_published_ones(name):
    assert CALIBRATIONS[name].published == SIZES[name]


@pytest.mark.parametrize("name", NAMES)
def test_sizes_are_converted_to_the_units_of_the_attacks(name):
    expected = [size * UNITS.get(name, 1) for size in SIZES[name]]
    assert CALIBRATIONS[name].eps == pytest.approx(expected, rel=1e-12)


def test_l1_sizes_are_those_per_pixel_of_the_program():
    mean = (0.0634766, 0.1269531, 0.2539063, 0.5078125, 2.03125, 8.125)
    assert CALIBRATIONS["fw_l1"].eps == pytest.approx([3072 / 255 * size for size in mean], rel=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_accuracies_of_trained_networks_are_the_published_ones(name):
    assert CALIBRATIONS[name].ata == pytest.approx([share / 100 for share in ROUNDED[name]], abs=0.000501)


def test_families_are_those_calibrated_for_cifar():
    assert list(CALIBRATIONS) == NAMES


ROOT = math.sqrt(200)
EXPECTED = {
    "pgd_linf": PGDAttack(eps=8 / 255, step_size=8 / 255 / ROOT, steps=200, minimize=True),
    "pgd_l2": PGDAttack(eps=320 / 255, step_size=320 / 255 / ROOT, steps=200, norm="l2", minimize=True),
    "fw_l1": FrankWolfeAttack(eps=1560 / 255, steps=200, minimize=True),
    "jpeg_linf": JPEGAttack(eps=0.25, steps=200, minimize=True),
    "jpeg_l2": JPEGAttack(eps=2, steps=200, norm="l2", minimize=True),
    "jpeg_l1": JPEGAttack(eps=256, steps=200, norm="l1", minimize=True),
    "elastic": ElasticAttack(eps=31 / 32, steps=200, minimize=True),
}


def rounded(attack):
    """The attack, with what depends on the order of divisions rounded."""
    fields = {field: getattr(attack, field) for field in ("eps", "step_size") if getattr(attack, field, None)}
    return dataclasses.replace(attack, **{field: float(f"{value:.12g}") for field, value in fields.items()})


@pytest.mark.parametrize("name", NAMES)
def test_attacks_are_those_of_the_paper(name):
    attacks = calibrated_attacks(name)
    assert len(attacks) == 6
    assert rounded(attacks[3]) == rounded(EXPECTED[name])


def test_number_of_steps_can_be_chosen():
    assert [attack.steps for attack in calibrated_attacks("elastic", steps=7)] == [7] * 6
    assert calibrated_attacks("pgd_l2", steps=4)[0].step_size == pytest.approx(20 / 255)


def test_uar_is_the_ratio_of_the_sums():
    correct = torch.tensor([[right < hits for right in range(10)] for hits in (10, 9, 8, 7, 5, 2)])
    result = UAR("pgd_linf", correct)
    assert result.accuracies == (1.0, 0.9, 0.8, 0.7, 0.5, 0.2)
    assert result.uar == pytest.approx(410 / (90.95 + 87.80 + 81.59 + 71.34 + 46.50 + 23.11))


def test_uar_of_the_trained_networks_is_one():
    correct = torch.zeros(6, 10000, dtype=torch.bool)
    for row, share in zip(correct, CALIBRATIONS["elastic"].ata, strict=True):
        row[: round(10000 * share)] = True
    assert UAR("elastic", correct).uar == pytest.approx(1)


def test_repr_shows_the_numbers():
    correct = torch.tensor([[True, True]] * 4 + [[True, False]] * 2)
    assert repr(UAR("jpeg_l2", correct)) == "UAR(jpeg_l2 97.9 at 1.0000 1.0000 1.0000 1.0000 0.5000 0.5000)"


def test_margin_decides_against_which_sizes_an_image_holds():
    # Pixels of 0.5 + m / 255 stay bright under changes smaller than m / 255.
    x = 0.5 + torch.tensor([0.5, 3.0, 12.0, -12.0]).view(4, 1, 1, 1).expand(4, 3, 32, 32) / 255
    result = uar(Brightness(), [(x, torch.tensor([0, 0, 0, 0]))], "pgd_linf", steps=9)
    assert result.correct.T.int().tolist() == [[0] * 6, [1, 1, 0, 0, 0, 0], [1, 1, 1, 1, 0, 0], [0] * 6]
    assert result.accuracies == (0.5, 0.5, 0.25, 0.25, 0, 0)
    assert result.uar == pytest.approx(1.5 / sum(CALIBRATIONS["pgd_linf"].ata))


@pytest.mark.parametrize("name", NAMES)
def test_robust_images_are_correct_ones(name):
    model = classifier()
    clean = accuracy(model, batches()).correct
    robust = uar(model, batches(), name, steps=2).correct
    assert robust.shape == (6, 24)
    assert robust.dtype == torch.bool
    assert not bool((robust & ~clean).any())
    assert 0 < int(robust.sum()) < 6 * int(clean.sum())


def recorded(monkeypatch, record):
    """Put a harmless attack in the place of the elastic one, and record what it is called with."""

    def attack(**settings):
        def call(objective, x, *, generator):
            record.append((objective, x, generator, settings))
            return x

        return call

    monkeypatch.setitem(CALIBRATIONS, "elastic", dataclasses.replace(CALIBRATIONS["elastic"], attack=attack))


def test_attacks_shrink_the_loss_of_a_wrong_class(monkeypatch):
    calls, model = [], classifier(classes=10)
    recorded(monkeypatch, calls)
    y = torch.randint(10, (500,), generator=torch.Generator().manual_seed(1))
    x = torch.rand(500, 3, 1, 1).expand(-1, -1, 32, 32)
    uar(model, [(x, y)], "elastic", steps=5)
    assert [settings["minimize"] for *_, settings in calls] == [True] * 6
    targets = torch.stack([objective.y for objective, *_ in calls])
    offsets = (targets - y) % 10
    assert 0 not in offsets
    assert targets.min() == 0
    assert targets.max() == 9
    # 3000 draws, 333 expected for each of nine classes.
    assert (offsets.flatten().bincount(minlength=10)[1:] - 333).abs().max() < 80
    assert not torch.equal(targets[0], targets[1])
    loss = nn.functional.cross_entropy(model.eval()(x), targets[0], reduction="none")
    assert torch.equal(calls[0][0](x), loss)


def test_two_classes_leave_one_target(monkeypatch):
    calls = []
    recorded(monkeypatch, calls)
    y = torch.tensor([0, 1, 1])
    uar(Brightness(), [(torch.rand(3, 3, 32, 32), y)], "elastic", steps=5)
    assert all(torch.equal(objective.y, 1 - y) for objective, *_ in calls)


def test_generator_is_the_one_passed_or_seeded_with_zero(monkeypatch):
    first, second = [], []
    recorded(monkeypatch, first)
    model, data, passed = classifier(), batches(), torch.Generator().manual_seed(0)
    torch.manual_seed(1)
    uar(model, data, "elastic", generator=passed)
    recorded(monkeypatch, second)
    torch.manual_seed(2)
    uar(model, data, "elastic")
    assert all(generator is passed for _, _, generator, _ in first)
    assert all(torch.equal(a[0].y, b[0].y) for a, b in zip(first, second, strict=True))


def test_any_iterable_will_do():
    model = classifier()
    once = uar(model, iter(batches()), "fw_l1", steps=1)
    assert torch.equal(once.correct, uar(model, batches(), "fw_l1", steps=1).correct)


def test_verdicts_are_in_the_order_of_the_batches(monkeypatch):
    recorded(monkeypatch, [])
    model = classifier()
    expected = accuracy(model, batches()).correct
    assert torch.equal(uar(model, batches(), "elastic").correct, expected.expand(6, -1))


@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_left_behind(name):
    model = classifier().train()
    model[2].eval()
    model[1].weight.requires_grad_(False)
    modes = [module.training for module in model.modules()]
    flags = [parameter.requires_grad for parameter in model.parameters()]
    state, random_state = {k: v.clone() for k, v in model.state_dict().items()}, torch.get_rng_state()
    uar(model, batches(8), name, steps=1)
    assert torch.equal(torch.get_rng_state(), random_state)
    assert [module.training for module in model.modules()] == modes
    assert [parameter.requires_grad for parameter in model.parameters()] == flags
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


def test_works_under_no_grad():
    with torch.no_grad():
        ours = uar(classifier(), batches(), "elastic", steps=2)
    assert torch.equal(ours.correct, uar(classifier(), batches(), "elastic", steps=2).correct)


X, Y = batches(4)[0]


@pytest.mark.parametrize(
    ("name", "settings", "error", "message"),
    [
        ("fog", {}, ValueError, "name"),
        ("Elastic", {}, ValueError, "name"),
        (3, {}, TypeError, "name"),
        ("elastic", {"steps": 0}, ValueError, "steps"),
        ("elastic", {"steps": 2.5}, TypeError, "steps"),
    ],
)
def test_wrong_settings(name, settings, error, message):
    with pytest.raises(error, match=re.escape(f"calibrated_attacks: expected {message}")):
        uar(classifier(), [(X, Y)], name, **settings)


def test_unknown_results_are_refused():
    with pytest.raises(ValueError, match=re.escape("UAR: expected name")):
        UAR("fog", torch.ones(6, 3, dtype=torch.bool))


@pytest.mark.parametrize("shape", [(5, 10), (7, 10), (6,), (6, 0)])
def test_six_sizes_are_needed(shape):
    message = "UAR: expected correct"
    with pytest.raises(ValueError, match=re.escape(message)):
        UAR("fw_l1", torch.ones(shape, dtype=torch.bool))


class Broken(nn.Module):
    """Has no answer for bright images."""

    def forward(self, x):
        margin = x.flatten(1).mean(1) - 0.5
        return torch.stack([margin, -margin], 1).masked_fill((margin > 0.1)[:, None], math.nan)


def test_non_finite_logits_are_counted_and_refused(monkeypatch):
    recorded(monkeypatch, [])
    x = torch.tensor([0.2, 0.9, 0.3]).view(3, 1, 1, 1).expand(3, 3, 32, 32)
    message = "uar: expected finite logits"
    with pytest.raises(ValueError, match=re.escape(message)):
        uar(Broken(), [(x, torch.tensor([1, 1, 1]))], "elastic")


@pytest.mark.parametrize(
    ("model", "data", "error", "message"),
    [
        (
            classifier(),
            [(torch.zeros(4, 3, 16, 16), Y)],
            ValueError,
            "images",
        ),
        (classifier(), [], ValueError, "batches"),
        (classifier(), [(X + 1, Y)], ValueError, "images"),
        (classifier(), [((255 * X).byte(), Y)], TypeError, "images"),
        (classifier(), [(X, Y + 4)], ValueError, "labels"),
        (classifier(), [(X, Y.int())], TypeError, "labels"),
        (classifier(), [(X, Y[:3])], ValueError, "one label per image"),
        (lambda x: x, [(X, Y)], TypeError, "model"),
        (
            nn.Identity(),
            [(X, Y)],
            ValueError,
            "the output of the model",
        ),
        (nn.Sequential(classifier(), nn.Softmax(1)), [(X, Y)], ValueError, "logits, got probabilities, which sum to 1"),
    ],
)
def test_wrong_models_and_batches(model, data, error, message):
    with pytest.raises(error, match=re.escape(f"uar: expected {message}")):
        uar(model, data, "elastic", steps=1)


def test_wrong_generator():
    message = "uar: expected generator"
    with pytest.raises(TypeError, match=re.escape(message)):
        uar(classifier(), [(X, Y)], "elastic", generator=0)
