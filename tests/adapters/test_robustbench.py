"""Exports for robustbench are plain classifiers, which robustbench takes."""

import copy
import dataclasses
import json
import pickle
import re
import warnings

import pytest
import torch
from torch import nn

from advcontrast import PGDAttack, bn_branch, convert_to_dual_bn
from advcontrast.adapters.robustbench import export_plain, robustbench_model_info
from advcontrast.evaluation import Accuracy, ResultCard
from advcontrast.models import Normalize, resnet18
from advcontrast.norm import DualNorm

ABOUT = {
    "link": "https://arxiv.org/abs/2010.13337",
    "name": "Robust Pre-Training by Adversarial Contrastive Learning",
    "authors": "Ziyu Jiang, Tianlong Chen, Ting Chen, Zhangyang Wang",
    "dataset": "cifar10",
    "venue": "NeurIPS 2020",
    "architecture": "ResNet-18",
    "additional_data": False,
}


def network():
    model = convert_to_dual_bn(resnet18(10, width=2))
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if ".adv." in name and tensor.is_floating_point():
                tensor.mul_(1.2)
    return model


def images(count=4):
    return torch.rand(count, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("branch", ["clean", "adv"])
def test_the_logits_are_those_of_the_branch(branch):
    model = network().eval()
    plain = export_plain(model, images(), branch=branch)
    with bn_branch(model, branch):
        assert torch.equal(plain(images()), model(images()))


def test_no_dual_norm_is_left_and_nothing_trains():
    plain = export_plain(network().train(), images(), branch="adv")
    assert not any(isinstance(module, DualNorm) or module.training for module in plain.modules())


def test_the_model_is_left_as_it_was():
    model = network().train()
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    export_plain(model, images(), branch="adv")
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)


def test_a_network_that_draws_leaves_random_numbers_as_they_were():
    state = torch.get_rng_state()
    with pytest.raises(ValueError, match="expected the same logits twice"):
        export_plain(Returns(lambda x: classes(x) + torch.rand(4, 10)), images())
    assert torch.equal(torch.get_rng_state(), state)


def test_it_has_the_names_of_the_plain_network():
    plain = export_plain(network(), images(), branch="adv")
    resnet18(10, width=2).load_state_dict(plain.state_dict())


def test_it_can_be_pickled():
    plain = export_plain(network(), images(), branch="adv")
    assert torch.equal(pickle.loads(pickle.dumps(plain))(images()), plain(images()))


def test_a_normalisation_goes_in_front():
    model, constants = resnet18(10, width=2, normalize=None).eval(), ((0.5,) * 3, (0.25,) * 3)
    plain = export_plain(model, images(), normalize=constants)
    assert torch.equal(plain(images()), model(Normalize(*constants)(images())))
    assert not plain.training


class Returns(nn.Module):
    """A network that returns what a function makes of its images."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def classes(x):
    return x.flatten(1)[:, :10]


@pytest.mark.parametrize(
    ("function", "error", "message"),
    [
        (
            lambda x: x,
            ValueError,
            "export_plain: expected the output of the model of shape [4, C] with C >= 2",
        ),
        (lambda x: (classes(x),), TypeError, "export_plain: expected the output of the model to be a floating point"),
        (lambda x: classes(x)[:2], ValueError, "export_plain: expected the output of the model of shape [4, C]"),
        (
            lambda x: classes(x).softmax(1),
            ValueError,
            "export_plain: expected logits",
        ),
        (
            lambda x: classes(x) + torch.rand(4, 10),
            ValueError,
            "export_plain: expected the same logits twice",
        ),
        (
            lambda x: classes(x) / 0,
            ValueError,
            "export_plain: expected the logits to be finite",
        ),
    ],
)
def test_other_types_than_classifiers_are_refused(function, error, message):
    with pytest.raises(error, match=f"^{re.escape(message)}"):
        export_plain(Returns(function), images())


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"model": None}, TypeError, "export_plain: expected model to be an nn.Module"),
        ({"branch": None}, ValueError, "export_plain: expected branch to be one of 'clean', 'adv'"),
        ({"branch": "pgd"}, ValueError, "export_branch: expected branch to be one of 'clean', 'adv'"),
        ({"images": images() * 255}, ValueError, "export_plain: expected images within bounds [0.0, 1.0]"),
        ({"images": images() - 0.5}, ValueError, "export_plain: expected images within bounds [0.0, 1.0]"),
        ({"images": (images() * 255).byte()}, TypeError, "export_plain: expected images to be a floating point tensor"),
        ({"images": [1]}, TypeError, "export_plain: expected images to be a floating point tensor"),
        (
            {"images": images()[0]},
            ValueError,
            "export_plain: expected images [N, C, H, W]",
        ),
        (
            {"images": images(0)},
            ValueError,
            "export_plain: expected images [N, C, H, W]",
        ),
        ({"images": torch.tensor(0.5)}, ValueError, "export_plain: expected images [N, C, H, W]"),
        ({"images": images() * torch.nan}, ValueError, "export_plain: expected images to be finite"),
        (
            {"model": resnet18(10, width=2, normalize=None), "branch": None, "normalize": ((0.5,) * 3, (0.0,) * 3)},
            ValueError,
            "Normalize: expected each of std to be a finite number > 0",
        ),
    ],
)
def test_wrong_arguments(arguments, error, message):
    given = {"model": network(), "images": images(), "branch": "adv"} | arguments
    with pytest.raises(error, match=f"^{re.escape(message)}"):
        export_plain(given.pop("model"), given.pop("images"), **given)


def card(runs=1):
    verdicts = {"TA": [True, True, True, False], "RA": [True, True, False, False], "AA": [True, False, False, False]}
    return ResultCard.from_verdicts(
        "DS",
        {metric: [Accuracy(torch.tensor(right))] * runs for metric, right in verdicts.items()},
        seeds=list(range(runs)),
        data="four images",
        fingerprint="0" * 64,
        attacks={"RA": PGDAttack(steps=20), "AA": {"version": "standard"}},
    )


def test_the_claim_of_a_card_has_its_figures():
    found = json.loads(robustbench_model_info(card(), eps=8 / 255, **ABOUT))
    figures = {"eps": "8/255", "clean_acc": "75.00", "reported": "25.00", "autoattack_acc": "25.00"}
    assert found == {**ABOUT, **figures, "number_forward_passes": 1}


def test_the_claim_of_figures_has_two_decimals():
    found = json.loads(robustbench_model_info({"TA": 0.82194, "AA": 0.5}, eps=8 / 255, **ABOUT))
    assert (found["clean_acc"], found["autoattack_acc"]) == ("82.19", "50.00")


@pytest.mark.parametrize(
    ("eps", "written"), [(8 / 255, "8/255"), (4 / 255, "4/255"), (0.5, "0.5"), (0.031, "0.031"), (1e-9, "1e-09")]
)
def test_a_radius_is_written_as_robustbench_does(eps, written):
    assert json.loads(robustbench_model_info({"TA": 1, "AA": 1}, eps=eps, **ABOUT))["eps"] == written


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (
            {"figures": card(2)},
            ValueError,
            "robustbench_model_info: expected a card of one run",
        ),
        (
            {"figures": {"TA": 0.5}},
            ValueError,
            "robustbench_model_info: expected figures with TA and AA",
        ),
        (
            {"figures": {}},
            ValueError,
            "robustbench_model_info: expected figures with TA and AA",
        ),
        (
            {"figures": 0.5},
            ValueError,
            "robustbench_model_info: expected figures with TA and AA",
        ),
        (
            {"figures": {"TA": 82, "AA": 50}},
            ValueError,
            "robustbench_model_info: expected TA to be a finite number >= 0 and <= 1",
        ),
        (
            {"figures": {"TA": 0.5, "AA": 0.6}},
            ValueError,
            "robustbench_model_info: expected AA to be a finite number >= 0 and <= 0.5",
        ),
        ({"figures": {"TA": None, "AA": 0.6}}, TypeError, "robustbench_model_info: expected TA to be a finite number"),
        (
            {"eps": 0},
            ValueError,
            "robustbench_model_info: expected eps to be a finite number > 0",
        ),
        (
            {"eps": "8/255"},
            TypeError,
            "robustbench_model_info: expected eps to be a finite number > 0",
        ),
        ({"link": 3}, TypeError, "robustbench_model_info: expected link to be"),
        (
            {"additional_data": "no"},
            TypeError,
            "robustbench_model_info: expected additional_data to be",
        ),
        (
            {"footnote": "x"},
            TypeError,
            "robustbench_model_info: expected link, name, authors, dataset, venue, architecture, additional_data",
        ),
    ],
)
def test_a_claim_that_cannot_be_is_refused(arguments, error, message):
    given = {"figures": {"TA": 0.8, "AA": 0.5}, "eps": 8 / 255} | ABOUT | arguments
    with pytest.raises(error, match=f"^{re.escape(message)}"):
        robustbench_model_info(given.pop("figures"), **given)


@pytest.fixture
def robustbench():
    """Return robustbench, whose imports warn of what they import; not the old copy that torchattacks brings."""
    pytest.importorskip("geotorch")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("robustbench")


def test_robustbench_knows_every_entry_of_the_claim(robustbench):
    known = {field.name for field in dataclasses.fields(robustbench.utils.ModelInfo)}
    assert json.loads(robustbench_model_info(card(), eps=8 / 255, **ABOUT)).keys() <= known


def test_robustbench_finds_the_clean_accuracy(robustbench):
    plain, x = export_plain(network(), images(), branch="adv"), images(8)
    y = plain(x).argmax(1)
    y[:2] = (y[:2] + 1) % 10
    assert robustbench.utils.clean_accuracy(plain, x, y, batch_size=3) == 0.75


@pytest.mark.slow
def test_robustbench_benchmarks_it(robustbench, monkeypatch):
    plain, x = export_plain(network(), images(), branch="adv"), images(2)[:, :, :16, :16]
    y = plain(x).argmax(1)
    y[0] = (y[0] + 1) % 10
    monkeypatch.setattr(robustbench.eval, "load_clean_dataset", lambda *_: (x, y))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of pandas and of the attacks
        found = robustbench.benchmark(plain, n_examples=2, threat_model="Linf", eps=1e-7, batch_size=2)
    assert found == (0.5, 0.5)


@pytest.mark.parametrize(
    ("statistics", "error"),
    [
        (((0.5, 0.5, 0.5),), ValueError),
        ("cifar10", TypeError),
        (((0.5,), (0.5,)), ValueError),
    ],
)
def test_a_normalisation_of_other_form_is_refused(statistics, error):
    with pytest.raises(error, match=r"^export_plain: expected normalize "):
        export_plain(nn.Sequential(nn.Flatten(), nn.Linear(12, 2)), torch.rand(1, 3, 2, 2), normalize=statistics)


def test_images_are_not_normalised_twice():
    text = "export_plain: expected a model without Normalize"
    with pytest.raises(ValueError, match=re.escape(text)):
        export_plain(network(), images(), branch="adv", normalize=((0.5, 0.5, 0.5), (0.2, 0.2, 0.2)))


def test_a_huge_radius_is_written_as_it_is():
    assert json.loads(robustbench_model_info({"TA": 0.8, "AA": 0.5}, eps=1e308, **ABOUT))["eps"] == "1e+308"


def test_a_model_without_values_is_refused():
    with pytest.raises(ValueError, match=r"^export_plain: expected model to hold values"):
        export_plain(network().to("meta"), images(), branch="adv")
