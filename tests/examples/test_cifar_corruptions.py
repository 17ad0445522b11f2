"""The test on corruptions reads the files of CIFAR-10-C."""

import hashlib

import numpy as np
import pytest

from advcontrast.data import CIFAR10_C, cifar_c
from tests.examples.cifar import FEW, TINY, card, inside, training


def test_files_of_cifar_10_c_are_evaluated_at_all_severities(tmp_path, monkeypatch):
    monkeypatch.setattr(cifar_c, "_IMAGES", 4)
    random = np.random.default_rng(0)
    for name in CIFAR10_C:
        np.save(tmp_path / f"{name}.npy", random.integers(0, 256, (20, 32, 32, 3), dtype=np.uint8))
    np.save(tmp_path / "labels.npy", np.arange(20) % 10)
    sums = {path.stem: hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest() for path in tmp_path.iterdir()}
    monkeypatch.setattr(cifar_c, "_MD5", sums)
    assert inside("finetune", *TINY, "--train", "standard", "--out", tmp_path / "c") == 0
    flags = ("--model", tmp_path / "c" / "final.safetensors", "--cifar10c", tmp_path, "--out", tmp_path / "out")
    assert inside("corruptions", *FEW, *flags) == 0
    results = card(tmp_path / "out").corruptions
    assert set(results) == set(CIFAR10_C)
    assert training(tmp_path / "out")["mean"] == pytest.approx(sum(results.values()) / 19)
    # 20 images a corruption.
    assert all(20 * value == pytest.approx(round(20 * value)) for value in results.values())
