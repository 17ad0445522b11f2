"""The quickstart runs as a user would run it, on few images."""

import json
import os
import runpy
import signal
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from advcontrast.evaluation import ResultCard
from tests.examples.cifar import inside
from tests.processes import Popen, run

SCRIPT = Path(__file__).parents[2] / "examples" / "quickstart.py"
QUICK = ["--epochs", "1", "--steps", "2", "--limit", "80", "--batch-size", "40", "--labels", "20"]


def environment(home):
    return {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"} | {"HOME": str(home)}


def quickstart(*flags, home):
    done = run(SCRIPT, *flags, env=environment(home))
    assert done.returncode == 0, done.stderr
    return done.stdout, done.stderr


def write_image_folder(root, classes=2, each=12):
    from PIL import Image

    random = np.random.default_rng(0)
    for split in ("train", "test"):
        for name in range(classes):
            folder = root / split / f"class {name}"
            folder.mkdir(parents=True)
            for i in range(each):
                pixels = random.integers(0, 256, (36, 48, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{i}.png")


def check_results(out, seeds):
    results = json.loads((out / "results.json").read_text())
    assert set(results) == {"RI", "S2S", "DS", "RoCL"}
    for protocols in results.values():
        assert set(protocols) == {"finetune", "linear"}
        for metrics in protocols.values():
            assert len(metrics["ta"]) == len(metrics["ra"]) == seeds
            assert all(0 <= ra <= 1 for ra in metrics["ta"] + metrics["ra"])
    for plot in ("results.png", "images.png"):
        assert (out / plot).read_bytes().startswith(b"\x89PNG")
    card = ResultCard.read(out / "card.json")
    assert card.settings["flags"]["seeds"] == len(card.seeds) == seeds
    for name, protocols in results.items():
        for protocol, metrics in protocols.items():
            for metric, values in metrics.items():
                assert list(card.results[f"{name} {protocol} {metric.upper()}"].accuracies) == values
            assert card.attacks[f"{name} {protocol} RA"]["steps"] == 20
    stored = {path.name for path in (out / "models").iterdir()}
    assert stored == {
        f"seed{seed}-{name}-{protocol}.safetensors"
        for seed in range(seeds)
        for name in results
        for protocol in ("finetune", "linear")
    }


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    """A run in one process at a time."""
    out = tmp_path_factory.mktemp("quickstart") / "one"
    quickstart(*QUICK, "--jobs", "1", "--out", str(out), home=out.parent)
    return out


@pytest.mark.slow
@pytest.mark.nightly
def test_it_writes_results_plots_and_classifiers(one):
    check_results(one, seeds=1)


@pytest.mark.slow
@pytest.mark.nightly
def test_its_classifiers_bring_their_images(one, tmp_path):
    model = one / "models" / "seed0-DS-finetune.safetensors"
    flags = ("--test-limit", "20", "--probe-images", "8", "--preset", "quick", "--model", model)
    assert inside("evaluate", *flags, "--out", tmp_path / "out") == 0
    found = ResultCard.read(tmp_path / "out" / "result.json")
    assert found.images == 20
    assert found.attacks["RA"]["eps"] == 0.1
    assert "saturate" not in found.corruptions


@pytest.mark.nightly
@pytest.mark.slow
def test_the_number_of_processes_changes_no_result(one, tmp_path):
    several = tmp_path / "new" / "several"
    output, errors = quickstart(*QUICK, "--seeds", "2", "--jobs", "3", "--out", str(several), home=tmp_path)
    check_results(several, seeds=2)
    assert "| ACL (DS) |" in output
    assert all(f"seed {seed}, {name}" in errors for seed in (0, 1) for name in ("RI", "S2S", "DS", "RoCL"))
    settings = ResultCard.read(several / "card.json").settings
    assert (settings["jobs"], settings["threads"]) == (3, "1")
    assert settings["seconds"] > 0

    first, alone = (json.loads((out / "results.json").read_text()) for out in (several, one))
    cut = {name: {p: {m: v[:1] for m, v in e.items()} for p, e in entry.items()} for name, entry in first.items()}
    assert cut == alone
    for path in (one / "models").iterdir():
        torch.testing.assert_close(load_file(path), load_file(several / "models" / path.name), rtol=0, atol=0)


@pytest.mark.slow
def test_runs_on_a_folder_of_images(tmp_path):
    write_image_folder(tmp_path)
    flags = ["--data", "folder", str(tmp_path), "--epochs", "1", "--steps", "2", "--batch-size", "8", "--labels", "5"]
    output, _ = quickstart(*flags, "--out", str(tmp_path / "out"), home=tmp_path)
    check_results(tmp_path / "out", seeds=1)
    assert "\n4 labels, " in output  # two of each class


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="needs process groups")
@pytest.mark.parametrize("line", ["results will be in", "pre-training"])
def test_ctrl_c_ends_it_without_a_traceback(tmp_path, line):
    with Popen(SCRIPT, "--out", tmp_path, env=environment(tmp_path), start_new_session=True) as process:
        wait_until(lambda: line in process.errors())
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to all processes of the group
        wait_until(lambda: group_has_ended(process.pid))
        _, errors = process.communicate()
    assert process.returncode == 130
    assert "Traceback" not in errors


def wait_until(condition, seconds=300):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def group_has_ended(group):
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return True
    return False


def test_classes_that_differ_between_train_and_test_are_refused(tmp_path, monkeypatch):
    write_image_folder(tmp_path)
    (tmp_path / "test" / "class 1").rename(tmp_path / "test" / "class 2")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.syspath_prepend(SCRIPT.parent)
    monkeypatch.setattr(sys, "argv", ["quickstart.py", "--data", "folder", str(tmp_path)])
    with pytest.raises(SystemExit, match="expected the same classes in train and test"):
        runpy.run_path(str(SCRIPT), run_name="__main__")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--data", "imagenet"], "quickstart: expected --data embedded or cifar10"),
        (["--data", "folder"], "quickstart: expected --data embedded or cifar10"),
        (["--data", "folder", "nowhere"], "quickstart: image_folder: expected a folder at"),
        (["--jobs", "-1"], "quickstart: expected --jobs of at least 0, got -1"),
        (["--epochs", "0"], "quickstart: expected --epochs of at least 1, got 0"),
        (["--labels", "5"], "quickstart: expected --labels from 10 to"),
        (["--labels", "100000"], "quickstart: expected --labels from 10 to"),
        (["--batch-size", "6000"], "quickstart: expected --batch-size from 2 to 5000"),
        (["--device", "nowhere"], "quickstart: ImageSet: expected device"),
    ],
)
def test_a_wrong_flag_ends_with_one_line(flags, message, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(SCRIPT.parent)
    monkeypatch.setattr(sys, "argv", ["quickstart.py", *flags, "--out", str(tmp_path / "out")])
    with pytest.raises(SystemExit, match=message) as stop:
        runpy.run_path(str(SCRIPT), run_name="__main__")
    assert len(str(stop.value).splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_made_ends_it_with_one_line(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.syspath_prepend(SCRIPT.parent)
    monkeypatch.setattr(sys, "argv", ["quickstart.py", "--out", str(tmp_path / "file" / "out")])
    with pytest.raises(SystemExit, match=r"quickstart: .*Not a directory"):
        runpy.run_path(str(SCRIPT), run_name="__main__")
