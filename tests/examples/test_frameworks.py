"""The examples for Lightning and accelerate, as a reader starts them."""

import re
import runpy
import sys
from pathlib import Path

import pytest
import torch
from torchvision.models import resnet18

from advcontrast import convert_to_dual_bn
from tests.processes import run

EXAMPLES = Path(__file__).parents[2] / "examples"
TINY = ("--images", "16", "--batch-size", "8")
pytestmark = pytest.mark.nightly
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")


@pytest.fixture(scope="module")
def lightning():
    try:
        import lightning.pytorch as pl
    except ImportError:
        pl = pytest.importorskip("pytorch_lightning", reason="neither lightning nor pytorch-lightning is installed")
    return pl


@pytest.mark.distributed
@pytest.mark.parametrize("devices", [1, 2])
def test_lightning_trains_and_validates(lightning, tmp_path, devices):
    start = [] if devices == 1 else TORCHRUN
    done = run(*start, EXAMPLES / "lightning_acl.py", *TINY, "--devices", devices, "--out", tmp_path, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "'val_loss': " in done.stdout
    assert "'train_loss_adv': " in done.stdout
    assert list(tmp_path.rglob("*.ckpt"))


@pytest.mark.filterwarnings("ignore")
def test_validation_gives_the_same_loss_in_inference_mode(lightning, tmp_path, monkeypatch):
    """Attacks of this library leave inference mode by themselves; the example need not rely on it."""
    real, found, modes = lightning.Trainer, [], []

    def trainer(**settings):
        assert settings.pop("inference_mode") is False
        found.append(real(**settings, inference_mode=modes[-1], accelerator="cpu", enable_progress_bar=False))
        return found[-1]

    monkeypatch.setattr(lightning, "Trainer", trainer)
    for inference_mode in (True, False):
        modes.append(inference_mode)
        words = ["lightning_acl.py", *TINY, "--out", str(tmp_path / str(inference_mode))]
        monkeypatch.setattr(sys, "argv", words)
        runpy.run_path(str(EXAMPLES / "lightning_acl.py"), run_name="__main__")
    first, second = (float(one.callback_metrics["val_loss"]) for one in found)
    assert first == second


@pytest.mark.distributed
@pytest.mark.parametrize("processes", [1, 2])
def test_accelerate_trains_and_writes_the_weights(tmp_path, processes):
    pytest.importorskip("accelerate", reason="accelerate is not installed")
    start = [] if processes == 1 else TORCHRUN
    script = EXAMPLES / "accelerate_acl.py"
    done = run(*start, script, *TINY, "--epochs", 2, "--out", tmp_path / "weights.pt", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    lines = re.findall(r"^epoch (\d): loss \d+\.\d{4} over (\d) processes$", done.stdout, re.MULTILINE)
    assert lines == [("1", str(processes)), ("2", str(processes))]
    weights = torch.load(tmp_path / "weights.pt", weights_only=True)
    fresh = convert_to_dual_bn(resnet18(num_classes=64))
    fresh.load_state_dict(weights)
    assert int(fresh.bn1.clean.num_batches_tracked) == (2 * 2 if processes == 1 else 2 * 1)
