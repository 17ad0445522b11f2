"""The full evaluation of classifiers, on few images."""

import json
from dataclasses import replace

import pytest

from advcontrast.evaluation import ResultCard
from tests.examples.cifar import FEW, TINY, card, inside, process

EVALUATE = (*FEW, "--probe-images", "20", "--preset", "quick")
PNG = b"\x89PNG"


def compare(*flags, home):
    return process("compare", *flags, home=home)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A dual encoder and two classifiers."""
    root = tmp_path_factory.mktemp("runs")
    assert inside("pretrain", *TINY, "--mode", "DS", "--out", root / "DS") == 0
    encoder = root / "DS" / "final.safetensors"
    for seed in (1, 2):
        flags = ("--encoder", encoder, "--seed", seed, "--out", root / f"classifier{seed}")
        assert inside("finetune", *TINY, *flags) == 0
    return root


@pytest.fixture(scope="module")
def evaluated(runs):
    """One result of two seeds, with the picture of both branches, and one of the first seed alone."""
    models = [runs / f"classifier{seed}" / "final.safetensors" for seed in (1, 2)]
    both = ",".join(map(str, models))
    encoder = ("--encoder", runs / "DS" / "final.safetensors")
    assert inside("evaluate", *EVALUATE, "--model", both, *encoder, "--out", runs / "both") == 0
    assert inside("evaluate", *EVALUATE, "--model", models[0], "--out", runs / "alone") == 0
    return runs


@pytest.mark.slow
def test_card_holds_every_part(evaluated):
    found = ResultCard.read(evaluated / "both" / "result.json")
    assert set(found.verdicts) == {"TA", "RA", "APGD"}
    assert found.images == 20
    assert found.seeds == (0, 1)
    assert found.branch == "adv"
    assert found.curves.keys() == {"eps", "steps"}
    assert len(found.corruptions) >= 10
    assert {"breakaway_risk", "branch_gap_features"} <= found.label_free.keys()
    assert {name.partition(":")[0] for name, *_ in found.alarms} <= {"seed 0", "seed 1"}
    assert found.attacks["RA"]["eps"] == 0.1


@pytest.mark.slow
def test_numbers_are_those_of_the_training_script(evaluated):
    found = ResultCard.read(evaluated / "both" / "result.json")
    trained = card(evaluated / "classifier1")
    for metric in ("TA", "RA"):
        assert found.results[metric].accuracies[0] == trained.results[metric].mean


@pytest.mark.slow
def test_pictures_are_drawn(evaluated):
    for name in ("images", "branches"):
        assert (evaluated / "both" / f"{name}.png").read_bytes().startswith(PNG)
    assert not (evaluated / "alone" / "branches.png").exists()


@pytest.mark.slow
def test_finished_evaluation_is_not_run_again(evaluated):
    before = (evaluated / "alone" / "result.json").stat().st_mtime_ns
    model = evaluated / "classifier1" / "final.safetensors"
    assert inside("evaluate", *EVALUATE, "--model", model, "--out", evaluated / "alone") == 0
    assert (evaluated / "alone" / "result.json").stat().st_mtime_ns == before


@pytest.mark.slow
def test_results_are_put_side_by_side(evaluated, tmp_path):
    other = replace(ResultCard.read(evaluated / "alone" / "result.json"), name="other")
    other.write(tmp_path / "other.json")
    done = compare(evaluated / "alone", tmp_path / "other.json", "--out", tmp_path / "out", home=tmp_path)
    assert done.returncode == 0, done.stderr
    text = (tmp_path / "out" / "results.md").read_text()
    assert "| alone |" in text
    assert "| other |" in text
    assert "## Masked gradients" in text
    for name in ("eps", "steps", "corruptions"):
        assert (tmp_path / "out" / f"{name}.png").read_bytes().startswith(PNG)
    assert ResultCard.read(tmp_path / "out" / "cards" / "other.json") == other


@pytest.mark.slow
def test_results_that_cannot_be_compared_end_with_one_line(evaluated, tmp_path):
    done = compare(evaluated / "alone", evaluated / "both", "--out", tmp_path / "out", home=tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith("compare.py: compare_cards: expected ")
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_damaged_card_ends_with_one_line(evaluated, tmp_path):
    document = json.loads((evaluated / "alone" / "result.json").read_text())
    document["name"] = "another"
    (tmp_path / "result.json").write_text(json.dumps(document))
    done = compare(tmp_path, "--out", tmp_path / "out", home=tmp_path)
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ((), "--model: expected the file of a classifier, got nothing. Make one with finetune.py."),
        (("--model", "nowhere"), "--model: expected a final.safetensors, got nowhere "),
    ],
)
def test_wrong_models_end_with_one_line(flags, message, tmp_path):
    done = process("evaluate", *EVALUATE, *flags, "--out", tmp_path / "out", home=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith(f"evaluate.py: {message}")
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "out").exists()
