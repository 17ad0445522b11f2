"""The experiments on Fashion-MNIST run on a few images, and their tables hold what they found."""

import sys

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from benchmarks.evidence import allocator, cheaper, dial, fashion, radius, weights
from tests.examples.cifar import RESNET, TINY, inside

pytestmark = pytest.mark.nightly


@pytest.fixture
def few(monkeypatch):
    """Test on 40 images."""
    train, test = fashion.images("train"), fashion.images("test").subset(torch.arange(40))
    monkeypatch.setattr(fashion, "images", {"train": train, "test": test}.get)


def test_cheaper_attacks_are_compared(few, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(cheaper, "LABELLED_STEPS", {"linear": 1, "fine-tuned": 1})
    flags = ["--only", "default", "free", "S2S", "--epochs", "1", "--limit", "250", "--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["cheaper", *flags])
    cheaper.main()
    assert "`python -m benchmarks.evidence.cheaper --only default free" in capsys.readouterr().out
    table = (tmp_path / "results.md").read_text().splitlines()[-3:]
    assert [[cell.strip() for cell in line.split("|")[1:4]] for line in table] == [
        [cheaper.TITLES["default"], "24.2", "1.00"],
        [cheaper.TITLES["free"], "12.1", "0.50"],
        [cheaper.TITLES["S2S"], "6.0", "0.25"],
    ]


def test_settings_of_the_allocator_change_no_weights(tmp_path, monkeypatch):
    out = tmp_path / "allocator.md"
    monkeypatch.setattr(sys, "argv", ["allocator", "--quick", "--out", str(out)])
    allocator.main()
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in out.read_text().splitlines()[-2:]]
    assert [(cell[0], cell[3]) for cell in cells] == [
        ("default", "bit-identical"),
        ("keep freed memory", "bit-identical"),
    ]


def test_branches_are_interpolated(few, tmp_path, monkeypatch):
    monkeypatch.setattr(dial, "PLACES", (0.0, 1.0))
    out = tmp_path / "dial.md"
    monkeypatch.setattr(sys, "argv", ["dial", "--seeds", "1", "--epochs", "1", "--limit", "125", "--out", str(out)])
    dial.main()
    lines = out.read_text().splitlines()
    assert lines[2].startswith("`python -m benchmarks.evidence.dial --seeds 1")
    assert [line.split("|")[1].strip() for line in lines[-2:]] == ["0", "1"]


def test_curves_are_means_over_the_classifiers_of_a_folder(few, tmp_path, monkeypatch, capsys):
    (tmp_path / "models").mkdir()
    for name in radius.ENCODERS:
        for protocol in radius.PROTOCOLS:
            for seed, answer in ((0, 0), (1, 1)):
                model = nn.Sequential(fashion.Encoder(), nn.Linear(128, 10))
                state = {
                    f"{'encoder' if key[0] == '0' else 'head'}{key[1:]}": v for key, v in model.state_dict().items()
                }
                state["head.bias"] = 100.0 * torch.eye(10)[answer]  # always the same class
                save_file(state, tmp_path / "models" / f"seed{seed}-{name}-{protocol}.safetensors")
    monkeypatch.setattr(sys, "argv", ["radius", str(tmp_path), "--image", str(tmp_path / "radius.png")])
    radius.main()
    shares = [100 * (fashion.images("test").y == answer).double().mean() for answer in (0, 1)]
    mean, spread = sum(shares) / 2, torch.stack(shares).std()
    curves = len(radius.ENCODERS) * len(radius.PROTOCOLS)
    assert capsys.readouterr().out.count(f"{mean:.1f} ± {spread:.1f}") == curves * len(radius.EPS)
    assert (tmp_path / "radius.png").read_bytes().startswith(b"\x89PNG")


def test_the_card_of_an_encoder_has_its_flags_and_the_cost_of_its_teacher(tmp_path, monkeypatch):
    monkeypatch.setattr(weights, "FOLDER", tmp_path / "weights")
    teacher, run = tmp_path / "teacher", tmp_path / "run"
    assert inside("pretrain", *TINY, *RESNET, "--mode", "S2S", "--epochs", "2", "--out", teacher) == 0
    flags = ("--method", "deacl", "--teacher", teacher / "final.safetensors", "--out", run)
    assert inside("pretrain", *TINY, *RESNET, *flags) == 0
    for name, folder, cost in (("student", run, "9"), ("own", teacher, "12")):
        monkeypatch.setattr(sys, "argv", ["weights", name, str(folder), "--data", "drawings"])
        weights.main()
        extent = ", after 12 for its teacher" if folder == run else " in all"
        card = (tmp_path / "weights" / f"{name}.md").read_text()
        assert f"the flags below; {cost} forward passes per image{extent}." in card
        own_flags = card.rpartition("Flags: `")[2].rstrip("`\n").split()
        assert inside("pretrain", *own_flags, "--out", tmp_path / f"again-{name}") == 0
