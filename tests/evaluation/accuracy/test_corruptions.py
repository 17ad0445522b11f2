"""Accuracy under corruptions is the mean of what each of them leaves."""

import re

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from advcontrast.augment import CORRUPTIONS, Corruption
from advcontrast.data import CIFAR10_C, CIFAR10_C_MAIN
from advcontrast.evaluation import Accuracy, CorruptionAccuracy, accuracy, corruption_accuracy
from advcontrast.evaluation.accuracy import corrupted


class Colours(nn.Module):
    """Takes the strongest colour for the class."""

    def forward(self, x):
        return x.mean((2, 3))


def images(n=24):
    generator = torch.Generator().manual_seed(0)
    x = nn.functional.interpolate(torch.rand(n, 3, 2, 2, generator=generator), 8, mode="bilinear")
    y = x.mean((2, 3)).argmax(1)
    y[::4] = (y[::4] + 1) % 3
    return x, y


def batches(size=10):
    x, y = images()
    return list(zip(x.split(size), y.split(size), strict=True))


def verdict(right, of=4):
    return Accuracy(torch.arange(of) < right)


def made_up(names):
    """Return a result in which the corruptions have 0, 1, 2, ... of 95 right, less 2 to 0 for severities 1 to 5."""
    return CorruptionAccuracy(
        {name: {severity: verdict(10 + i - severity, 95) for severity in range(1, 6)} for i, name in enumerate(names)}
    )


def test_accuracy_of_a_corruption_is_the_mean_over_its_severities():
    found = CorruptionAccuracy({"fog": {1: verdict(4), 3: verdict(3), 5: verdict(0)}, "snow": {2: verdict(1)}})
    assert found.by_corruption == pytest.approx({"fog": 7 / 12, "snow": 1 / 4}, abs=1e-15)


def test_mean_counts_every_corruption_once():
    found = CorruptionAccuracy({"fog": {1: verdict(4), 3: verdict(3), 5: verdict(0)}, "snow": {2: verdict(1)}})
    assert found.mean == pytest.approx((7 / 12 + 1 / 4) / 2, abs=1e-15)


def test_mean_all_and_mean_main_are_those_of_19_and_15_corruptions():
    found = made_up(CIFAR10_C)
    assert CIFAR10_C[:15] == CIFAR10_C_MAIN
    assert found.mean_all == found.mean == pytest.approx((7 + 9) / 95, abs=1e-15)
    assert found.mean_main == pytest.approx((7 + 7) / 95, abs=1e-15)


def test_the_15_are_enough_for_their_mean_in_any_order():
    assert made_up(CIFAR10_C_MAIN[::-1]).mean_main == pytest.approx((7 + 7) / 95, abs=1e-15)


@pytest.mark.parametrize("owner", ["mean_all", "mean_main"])
def test_means_of_cifar_10_c_need_all_its_files(owner):
    names = CIFAR10_C if owner == "mean_all" else CIFAR10_C_MAIN
    message = f"CorruptionAccuracy.{owner}: expected {len(names)} corruptions at 5 severities each"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        getattr(made_up([name for name in CIFAR10_C if name not in ("fog", "snow")]), owner)


@pytest.mark.parametrize("owner", ["mean_all", "mean_main"])
def test_means_of_cifar_10_c_need_all_severities(owner):
    some = {name: {s: found for s, found in own.items() if s != 2} for name, own in made_up(CIFAR10_C).verdicts.items()}
    with pytest.raises(ValueError, match="corruptions at 5 severities each"):
        getattr(CorruptionAccuracy(some), owner)


def test_computed_corruptions_have_names_of_cifar_10_c_but_are_never_all_of_them():
    assert set(CORRUPTIONS) < set(CIFAR10_C)
    assert not set(CORRUPTIONS) >= set(CIFAR10_C_MAIN)


def test_repr_shows_the_mean():
    assert repr(made_up(CIFAR10_C)) == "CorruptionAccuracy(19 corruptions, 16.84%)"


def test_every_condition_is_evaluated_as_by_accuracy():
    conditions = [("fog", 2, batches()), ("snow", 1, batches()[:1]), ("fog", 5, iter(batches()[1:]))]
    found = corruption_accuracy(Colours(), iter(conditions)).verdicts
    assert {name: list(own) for name, own in found.items()} == {"fog": [2, 5], "snow": [1]}
    right = accuracy(Colours(), batches()).correct
    assert torch.equal(found["fog"][2].correct, right)
    assert torch.equal(found["snow"][1].correct, right[:10])
    assert torch.equal(found["fog"][5].correct, right[10:])


def test_computed_corruptions_are_those_of_the_transforms():
    triples = corrupted(batches(), names=("contrast", "fog"), severities=(5, 2), seed=7)
    order = []
    for name, severity, corrupt in triples:
        order.append((name, severity))
        generator = torch.Generator().manual_seed(7)
        expected = [(Corruption(name, severity=severity)(x, generator=generator), y) for x, y in batches()]
        for (x, y), (right_x, right_y) in zip(corrupt, expected, strict=True):
            assert torch.equal(x, right_x)
            assert torch.equal(y, right_y)
    assert order == [("contrast", 5), ("contrast", 2), ("fog", 5), ("fog", 2)]


def test_all_computed_corruptions_at_all_severities_by_default():
    found = corruption_accuracy(Colours(), corrupted(batches()))
    assert {name: tuple(own) for name, own in found.verdicts.items()} == dict.fromkeys(CORRUPTIONS, (1, 2, 3, 4, 5))
    assert found.by_corruption["contrast"] == 0.75


def test_clean_batches_are_walked_once_and_not_before_they_are_needed():
    walks = []

    def data():
        walks.append("once")
        yield from batches()

    conditions = corrupted(data(), names=("contrast",))
    assert walks == []
    assert len(corruption_accuracy(Colours(), conditions).verdicts["contrast"]) == 5
    assert walks == ["once"]


def test_noise_is_the_same_for_every_model_and_severity_alone():
    noise = {}
    for severities in ((3,), (1, 3)):
        triples = corrupted(batches(), names=("gaussian_noise",), severities=severities)
        noise[severities] = [torch.cat([x for x, _ in corrupt]) for _, severity, corrupt in triples if severity == 3]
        torch.rand(1)
    assert torch.equal(noise[3,][0], noise[1, 3][0])


def state_of(model):
    flags = [(parameter.requires_grad, parameter.grad) for parameter in model.parameters()]
    values = {name: value.clone() for name, value in model.state_dict().items()}
    return [module.training for module in model.modules()], flags, values


def partly_frozen():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten()).train()
    model[2].eval()
    model[1].weight.requires_grad_(False)
    return model


@pytest.mark.parametrize("breaks", [False, True])
def test_model_and_random_state_are_left_as_they_were(breaks):
    model = partly_frozen()
    before, random_state = state_of(model), torch.get_rng_state()

    def conditions():
        loader = DataLoader(TensorDataset(*images()), batch_size=16, shuffle=True)
        yield from corrupted(loader, names=("shot_noise", "contrast"), severities=(1,))
        torch.rand(1)
        if breaks:
            raise ZeroDivisionError

    if breaks:
        with pytest.raises(ZeroDivisionError):
            corruption_accuracy(model, conditions())
    else:
        corruption_accuracy(model, conditions())
    modes, flags, values = state_of(model)
    assert (modes, flags) == before[:2]
    assert all(torch.equal(values[name], value) for name, value in before[2].items())
    assert torch.equal(torch.get_rng_state(), random_state)


B = batches()


@pytest.mark.parametrize(
    ("conditions", "error", "message"),
    [
        (
            [],
            ValueError,
            "expected at least one condition",
        ),
        (B, TypeError, "expected conditions"),
        ("fog", TypeError, "expected conditions"),
        ([(3, 1, B)], TypeError, "expected the name of a corruption"),
        (
            [("fog", 0, B)],
            ValueError,
            "expected the severity of 'fog'",
        ),
        ([("fog", 1.0, B)], TypeError, "expected the severity of 'fog'"),
        (
            [("fog", 1, B), ("snow", 1, B), ("fog", 1, B)],
            ValueError,
            "expected each corruption once at each severity",
        ),
    ],
)
def test_wrong_conditions(conditions, error, message):
    with pytest.raises(error, match=f"^corruption_accuracy: {re.escape(message)}"):
        corruption_accuracy(Colours(), conditions)


def test_wrong_model():
    message = "corruption_accuracy: expected model"
    with pytest.raises(TypeError, match=f"^{re.escape(message)}"):
        corruption_accuracy(lambda x: x, corrupted(batches()))


def test_images_of_a_condition_are_checked():
    message = "accuracy: expected images"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        corruption_accuracy(Colours(), [("fog", 1, [(x + 1, y) for x, y in batches()])])


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"names": ("frost",)}, ValueError, "Corruption: expected name"),
        ({"severities": (1, 6)}, ValueError, "Corruption: expected severity"),
        (
            {"names": ()},
            ValueError,
            "corrupted: expected names",
        ),
        ({"names": "fog"}, TypeError, "corrupted: expected names"),
        ({"severities": ()}, ValueError, "corrupted: expected severities"),
        ({"severities": 3}, TypeError, "corrupted: expected severities"),
        (
            {"seed": -1},
            ValueError,
            "corrupted: expected seed",
        ),
    ],
)
def test_wrong_settings_are_refused_at_once(settings, error, message):
    with pytest.raises(error, match=f"^{re.escape(message)}"):
        corrupted(batches(), **settings)


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        ([], ValueError, "corrupted: expected batches"),
        ([images()[0]], TypeError, "corrupted: expected batches"),
        ([(2 * images()[0], images()[1])], ValueError, "corrupted: expected images"),
    ],
)
def test_wrong_clean_batches_are_refused_when_they_are_walked(data, error, message):
    with pytest.raises(error, match=f"^{re.escape(message)}"):
        next(corrupted(data))
