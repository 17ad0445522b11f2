"""The quickstart runs as a user would run it, on few images."""

import json
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

SCRIPT = Path(__file__).parents[2] / "examples" / "quickstart.py"
QUICK = ["--epochs", "1", "--steps", "2", "--limit", "80", "--batch-size", "40", "--labels", "20"]


def quickstart(*flags):
    return subprocess.run([sys.executable, SCRIPT, *flags], capture_output=True, text=True, check=False)


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
    assert set(results) == {"RI", "S2S", "DS"}
    for protocols in results.values():
        assert set(protocols) == {"finetune", "linear"}
        for metrics in protocols.values():
            assert len(metrics["ta"]) == len(metrics["ra"]) == seeds
            assert all(0 <= ra <= 1 for ra in metrics["ta"] + metrics["ra"])
    for plot in ("results.png", "images.png"):
        assert (out / plot).read_bytes().startswith(b"\x89PNG")
    assert json.loads((out / "card.json").read_text())["settings"]["seeds"] == seeds
    stored = {path.name for path in (out / "models").iterdir()}
    assert stored == {
        f"seed{seed}-{name}-{protocol}.safetensors"
        for seed in range(seeds)
        for name in results
        for protocol in ("finetune", "linear")
    }


@pytest.mark.slow
def test_runs_on_the_embedded_images_with_two_seeds(tmp_path):
    done = quickstart(*QUICK, "--seeds", "2", "--out", str(tmp_path / "new" / "out"))
    assert done.returncode == 0, done.stderr
    check_results(tmp_path / "new" / "out", seeds=2)
    assert "| ACL (DS) |" in done.stdout
    assert "pre-train DS" in done.stderr


@pytest.mark.slow
def test_runs_on_a_folder_of_images(tmp_path):
    write_image_folder(tmp_path)
    flags = ["--data", "folder", str(tmp_path), "--epochs", "1", "--steps", "2", "--batch-size", "8", "--labels", "4"]
    done = quickstart(*flags, "--out", str(tmp_path / "out"))
    assert done.returncode == 0, done.stderr
    check_results(tmp_path / "out", seeds=1)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--data", "imagenet"], "quickstart: expected --data embedded or cifar10"),
        (["--data", "folder"], "quickstart: expected --data embedded or cifar10"),
        (["--data", "folder", "nowhere"], "quickstart: expected a folder of class folders at nowhere"),
        (["--epochs", "0"], "quickstart: expected --epochs of at least 1, got 0"),
        (["--labels", "5"], "quickstart: expected --labels from 10 to"),
        (["--labels", "100000"], "quickstart: expected --labels from 10 to"),
        (["--batch-size", "6000"], "quickstart: expected --batch-size from 2 to 5000"),
    ],
)
def test_a_wrong_flag_ends_with_one_line(flags, message, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["quickstart.py", *flags, "--out", str(tmp_path / "out")])
    with pytest.raises(SystemExit, match=message) as stop:
        runpy.run_path(str(SCRIPT), run_name="__main__")
    assert len(str(stop.value).splitlines()) == 1
    assert not (tmp_path / "out").exists()
