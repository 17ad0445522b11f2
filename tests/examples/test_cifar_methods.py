"""Every method of pre-training runs by its name, and what it writes can be fine-tuned."""

import pytest
import torch
from safetensors.torch import load_file

from advcontrast.evaluation import ResultCard
from tests.examples.cifar import TINY, inside, module


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    out = tmp_path_factory.mktemp("teacher")
    assert inside("pretrain", *TINY, "--mode", "S2S", "--out", out) == 0
    return out / "final.safetensors"


SAMPLE = ("advcl", "dynacl")
METHODS = [
    pytest.param(name, marks=() if name in SAMPLE else pytest.mark.nightly)
    for name in module("_common.methods").METHODS
    if name != "acl"
]


@pytest.mark.parametrize("name", METHODS)
def test_a_method_trains_an_encoder(name, teacher, tmp_path):
    assert inside("pretrain", *TINY, "--method", name, "--teacher", teacher, "--out", tmp_path / "run") == 0
    card = ResultCard.read(tmp_path / "run" / "card.json")
    assert card.settings["flags"]["preset"] == f"{name}-paper"
    encoder = tmp_path / "run" / "final.safetensors"
    assert inside("linear", *TINY, "--encoder", encoder, "--out", tmp_path / "linear") == 0


@pytest.mark.nightly
def test_dynaclpp_adapts_the_encoder_of_dynacl(tmp_path):
    weights = []
    for name in ("dynacl", "dynaclpp"):
        assert inside("pretrain", *TINY, "--method", name, "--out", tmp_path / name) == 0
        weights.append(load_file(tmp_path / name / "final.safetensors"))
    assert weights[0].keys() == weights[1].keys()
    same = {name for name, weight in weights[0].items() if torch.equal(weight, weights[1][name])}
    assert any(name.startswith("head.") for name in same)
    assert "encoder.conv1.weight" not in same


def test_a_method_without_its_teacher_is_refused(tmp_path, capsys):
    assert inside("pretrain", *TINY, "--method", "deacl", "--out", tmp_path) == 2
    assert "pretrain.py: --teacher: expected the final.safetensors" in capsys.readouterr().err


@pytest.mark.nightly
def test_a_coreset_takes_the_steps_that_its_schedule_expects(tmp_path):
    out = tmp_path / "run"
    flags = ("--method", "rcs", "--epochs", "10", "--limit", "300", "--batch-size", "20", "--out", out)
    assert inside("pretrain", *TINY, *flags) == 0
    rows = [line.split(",") for line in (out / "metrics.csv").read_text().splitlines()]
    steps = [int(row[rows[0].index("step")]) for row in rows[1:]]
    whole = steps[0]
    assert steps == [whole + i * (steps[1] - whole) for i in range(10)]
    assert 1 < steps[1] - whole < whole / 4
    assert float(rows[-1][rows[0].index("lr")]) == 0


def test_a_coreset_spends_the_passes_that_it_is_given_on_more_epochs(tmp_path):
    flags = ("--limit", "300", "--batch-size", "20", "--attack-steps", "1", "--passes", "20", "--apgd", "1")
    cards = {}
    for method in ("acl", "rcs"):
        assert inside("pretrain", *TINY, "--method", method, *flags, "--out", tmp_path / method) == 0
        cards[method] = ResultCard.read(tmp_path / method / "card.json")
        epochs = len((tmp_path / method / "metrics.csv").read_text().splitlines()) - 1
        assert epochs == round(20 / cards[method].settings["training"]["cost"])
    cost = [card.settings["training"]["cost"] for card in cards.values()]
    assert cost[1] == pytest.approx(0.31 * cost[0])
    assert cards["rcs"].attacks["APGD"]["steps"] == 1


def test_a_coreset_of_images_that_are_not_known_is_refused(tmp_path, capsys):
    assert inside("pretrain", *TINY, "--method", "rcs", "--stream", "images", "--out", tmp_path) == 2
    assert "pretrain.py: --method: expected a method that trains on all images" in capsys.readouterr().err
