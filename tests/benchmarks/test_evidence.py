"""The experiments on Fashion-MNIST run on a few images, and their tables hold what they found."""

import sys

import pytest
import torch

from benchmarks.evidence import cheaper, dial, fashion


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


def test_branches_are_interpolated(few, tmp_path, monkeypatch):
    monkeypatch.setattr(dial, "PLACES", (0.0, 1.0))
    out = tmp_path / "dial.md"
    monkeypatch.setattr(sys, "argv", ["dial", "--seeds", "1", "--epochs", "1", "--limit", "125", "--out", str(out)])
    dial.main()
    lines = out.read_text().splitlines()
    assert lines[2].startswith("`python -m benchmarks.evidence.dial --seeds 1")
    assert [line.split("|")[1].strip() for line in lines[-2:]] == ["0", "1"]
