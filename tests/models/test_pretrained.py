"""Trained encoders that come with the package."""

import hashlib
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from advcontrast import convert_to_dual_bn, export_branch
from advcontrast.models import Normalize, pretrained, resnet18
from advcontrast.models.pretrained import FOLDER, SHA256, front_of

IMAGES = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
module = sys.modules["advcontrast.models.pretrained"]


def publish(monkeypatch, folder, encoder, branches, **metadata):
    """Write an encoder of width 2 as the package does."""
    weights = {key: value.half() if value.dim() > 1 else value for key, value in encoder.state_dict().items()}
    about = {"width": "2", "branches": branches, **front_of(encoder), **metadata}
    save_file(weights, folder / "tiny.safetensors", about)
    monkeypatch.setattr(module, "FOLDER", folder)
    monkeypatch.setattr(
        module, "SHA256", {"tiny": hashlib.sha256((folder / "tiny.safetensors").read_bytes()).hexdigest()}
    )


@pytest.fixture
def dual(tmp_path, monkeypatch):
    """A dual encoder whose branches differ, published as ``tiny``."""
    encoder = convert_to_dual_bn(resnet18(0, width=2)).eval()
    for name, buffer in encoder.named_buffers():
        if name.endswith("running_mean"):
            buffer.normal_(std=0.1)
    publish(monkeypatch, tmp_path, encoder, "adv clean")
    return encoder


@pytest.mark.parametrize("branch", ["clean", "adv"])
def test_a_branch_is_returned_with_the_weights_rounded_to_half_precision(dual, branch):
    found = pretrained("tiny", branch=branch)
    expected = export_branch(dual, branch).state_dict()
    for name, value in found.state_dict().items():
        assert torch.equal(value, expected[name].half().float() if value.dim() > 1 else expected[name]), name


def test_the_first_branch_of_the_file_is_the_usual_one(dual):
    assert torch.equal(pretrained("tiny")(IMAGES), pretrained("tiny", branch="adv")(IMAGES))


def test_the_encoder_is_plain_in_eval_mode_and_float32(dual):
    found = pretrained("tiny")
    assert not found.training
    assert {type(part) for part in found.modules() if "BatchNorm" in type(part).__name__} == {nn.BatchNorm2d}
    assert {value.dtype for value in found.parameters()} == {torch.float32}


def test_the_random_state_is_kept(dual):
    before = torch.get_rng_state()
    pretrained("tiny")
    assert torch.equal(before, torch.get_rng_state())


def test_an_unknown_branch_is_refused(dual):
    with pytest.raises(ValueError, match=r"pretrained: expected branch .*'adv', 'clean'.*got 'other'"):
        pretrained("tiny", branch="other")


def test_a_branch_of_an_encoder_with_single_norms_is_refused(tmp_path, monkeypatch):
    encoder = resnet18(0, width=2).eval()
    publish(monkeypatch, tmp_path, encoder, "")
    assert pretrained("tiny")(IMAGES).shape == (2, 16)
    with pytest.raises(ValueError, match="pretrained: expected no branch"):
        pretrained("tiny", branch="adv")


def test_an_unknown_name_is_refused():
    with pytest.raises(ValueError, match=r"pretrained: expected name .*got 'resnet18'"):
        pretrained("resnet18")


@pytest.mark.parametrize(("name", "branch"), [(3, None), ("tiny", 0)])
def test_arguments_of_another_kind_are_refused(name, branch):
    with pytest.raises(TypeError, match="pretrained: expected"):
        pretrained(name, branch=branch)


def test_a_missing_file_is_refused(dual, tmp_path):
    (tmp_path / "tiny.safetensors").unlink()
    with pytest.raises(RuntimeError, match=r"pretrained: expected .*, got no file\. Install"):
        pretrained("tiny")


def test_a_changed_file_is_refused(dual, tmp_path):
    content = bytearray((tmp_path / "tiny.safetensors").read_bytes())
    content[-1] ^= 1
    (tmp_path / "tiny.safetensors").write_bytes(content)
    with pytest.raises(RuntimeError, match=r"pretrained: expected .*SHA-256"):
        pretrained("tiny")


@pytest.mark.parametrize(("part", "value"), [("stem", "kernel (7, 7)"), ("normalisation", "mean=(0.5,), std=(0.5,)")])
def test_weights_of_another_network_are_refused(tmp_path, monkeypatch, part, value):
    publish(monkeypatch, tmp_path, resnet18(0, width=2), "", **{part: value})
    with pytest.raises(RuntimeError, match=f"pretrained: expected .*{part}"):
        pretrained("tiny")


def test_stem_and_normalisation_are_described():
    usual = front_of(resnet18(0, width=2))
    changed = resnet18(0, width=2, normalize=((0.5,) * 3, (0.5,) * 3))
    changed.conv1.stride = (2, 2)
    assert all(usual[part] != value for part, value in front_of(changed).items())
    assert isinstance(changed.normalize, Normalize)


def test_without_safetensors_its_installation_is_named(dual, monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors", None)
    with pytest.raises(ImportError, match="pip install safetensors"):
        pretrained("tiny")


def test_every_published_encoder_has_weights_and_a_card_and_no_file_is_left_over():
    names = {path.stem for path in FOLDER.iterdir()}
    assert names == set(SHA256)
    for name in SHA256:
        assert name in (FOLDER / f"{name}.md").read_text()
        assert name in pretrained.__doc__


def test_all_weights_together_have_at_most_5_megabytes():
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) <= 5_000_000


@pytest.mark.parametrize("name", sorted(SHA256))
def test_published_encoders_load(name):
    features = pretrained(name)(torch.rand(2, 3, 32, 32))
    assert features.shape == (2, 128)
    assert features.isfinite().all()
    assert load_file(FOLDER / f"{name}.safetensors")["conv1.weight"].dtype == torch.float16
