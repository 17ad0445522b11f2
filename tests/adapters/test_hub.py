"""An encoder that is saved for the hub is rebuilt by it, to the bit and without pickle, and describes itself."""

import copy
import json
import re
import sys

import pytest
import torch
import yaml
from torch import nn

from advcontrast import PGDAttack, bn_branch, convert_to_dual_bn
from advcontrast.evaluation import Accuracy, ResultCard
from advcontrast.models import backbone, cifar_stem, resnet18

huggingface_hub = pytest.importorskip("huggingface_hub")
pytest.importorskip("safetensors")

from advcontrast.adapters.hub import HubEncoder  # noqa: E402 (needs huggingface_hub)


def trained(name="resnet18", **settings):
    """Return a converted encoder of which all tensors differ from what another one would have."""
    encoder, _ = backbone(name, **settings)
    convert_to_dual_bn(encoder)
    with torch.no_grad():
        for tensor in encoder.state_dict().values():
            if tensor.is_floating_point():
                tensor.mul_(1 + 0.1 * torch.rand_like(tensor))
    return encoder.eval()


def images(side=32):
    return torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(0))


def result():
    verdicts = {
        "TA": [Accuracy(torch.tensor([True, True, True, False]))],
        "RA": [Accuracy(torch.tensor([True, False, False, False]))],
    }
    return ResultCard.from_verdicts(
        "DS, fine-tuned",
        verdicts,
        seeds=[7],
        data="four images",
        fingerprint="ab" * 32,
        branch="adv",
        attacks={"RA": PGDAttack(steps=20)},
        settings={"epochs": 25},
    )


def saved(folder, encoder=None, card=None, **settings):
    hub = HubEncoder.from_encoder(trained(width=2) if encoder is None else encoder, "resnet18", branch="adv", width=2)
    hub.save_pretrained(folder, model_card_kwargs={"result": card, **settings})
    return huggingface_hub.ModelCard.load(folder / "README.md")


@pytest.mark.parametrize("branch", ["clean", "adv"])
@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("resnet18", {"width": 2}),
        ("wide_resnet34_10", {"width": 1}),
        ("torchvision/resnet18", {"small_images": False}),
        ("timm/test_resnet", {}),
    ],
)
@pytest.mark.sample(3)
def test_a_branch_comes_back_to_the_bit(name, settings, branch, tmp_path):
    if name.startswith("timm"):
        pytest.importorskip("timm")
    encoder, x = trained(name, **settings), images()
    HubEncoder.from_encoder(encoder, name, branch=branch, **settings).save_pretrained(tmp_path)
    with bn_branch(encoder, branch):
        assert torch.equal(HubEncoder.from_pretrained(tmp_path)(x), encoder(x))


def test_an_encoder_with_single_norms_comes_back(tmp_path):
    encoder, x = resnet18(0, width=2).eval(), images()
    HubEncoder.from_encoder(encoder, "resnet18", width=2).save_pretrained(tmp_path)
    assert torch.equal(HubEncoder.from_pretrained(tmp_path)(x), encoder(x))


def test_its_normalisation_comes_back(tmp_path):
    encoder, x = resnet18(0, width=2, normalize=((0.1, 0.2, 0.3), (0.4, 0.5, 0.7))).eval(), images()
    HubEncoder.from_encoder(encoder, "resnet18", width=2).save_pretrained(tmp_path)
    assert torch.equal(HubEncoder.from_pretrained(tmp_path)(x), encoder(x))


def test_a_loaded_encoder_can_be_saved_again(tmp_path):
    saved(tmp_path / "a")
    HubEncoder.from_pretrained(tmp_path / "a").save_pretrained(tmp_path / "b")
    assert (tmp_path / "a" / "config.json").read_text() == (tmp_path / "b" / "config.json").read_text()


def test_a_loaded_encoder_is_in_eval_mode_and_has_its_features(tmp_path):
    saved(tmp_path)
    hub = HubEncoder.from_pretrained(tmp_path)
    assert (hub.training, hub.num_features) == (False, 16)


def test_weights_in_channels_last_are_saved(tmp_path):
    encoder = trained(width=2)
    saved(tmp_path, copy.deepcopy(encoder).to(memory_format=torch.channels_last))
    with bn_branch(encoder, "adv"):
        torch.testing.assert_close(HubEncoder.from_pretrained(tmp_path)(images()), encoder(images()))


def test_the_folder_holds_no_pickle(tmp_path):
    saved(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["README.md", "config.json", "model.safetensors"]


def test_the_encoder_is_left_as_it_was():
    encoder = trained(width=2).train()
    before = copy.deepcopy(encoder.state_dict())
    HubEncoder.from_encoder(encoder, "resnet18", branch="adv", width=2)
    assert encoder.training
    assert all(torch.equal(value, before[name]) for name, value in encoder.state_dict().items())


def test_the_copy_is_in_eval_mode():
    assert not HubEncoder.from_encoder(resnet18(0, width=2).train(), "resnet18", width=2).training


def test_the_encoder_is_copied():
    encoder = resnet18(0, width=2)
    hub = HubEncoder.from_encoder(encoder, "resnet18", width=2)
    assert hub.encoder.conv1.weight.data_ptr() != encoder.conv1.weight.data_ptr()


def test_weights_that_lack_a_tensor_are_refused(tmp_path):
    from safetensors.torch import load_file, save_file

    saved(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["encoder.bn1.weight"]
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(RuntimeError, match=r"encoder\.bn1\.weight"):
        HubEncoder.from_pretrained(tmp_path)


@pytest.mark.parametrize("name", ["encoder.bn1.running_mean", "encoder.bn1.num_batches_tracked"])
def test_weights_that_lack_a_buffer_are_refused(tmp_path, name):
    from safetensors.torch import load_file, save_file

    saved(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors[name]
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(RuntimeError, match=re.escape(name)):
        HubEncoder.from_pretrained(tmp_path)


def test_weights_in_another_dtype_are_refused(tmp_path):
    from safetensors.torch import load_file, save_file

    saved(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["encoder.bn1.weight"] = tensors["encoder.bn1.weight"].half()
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(RuntimeError, match=r"HubEncoder\.from_pretrained: .* another dtype for encoder\.bn1\.weight"):
        HubEncoder.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"branch": "clean"}, ValueError, "expected branch to be 'adv'"),
        ({"branch": "other"}, ValueError, "expected branch to be 'adv'"),
        ({"branch": None}, ValueError, "expected branch to be 'adv'"),
        ({"name": "resnet34"}, ValueError, "expected name to be 'resnet18'"),
        ({"normalize": ((0.5,) * 3,) * 2}, ValueError, "expected normalize to be [[0.485, 0.456, 0.406], [0.229, "),
        ({"width": 4}, ValueError, "expected width to be 2"),
        (
            {"small_images": False},
            TypeError,
            "expected settings among ['branch', 'name', 'normalize', 'width']",
        ),
        (
            {"dtype": torch.float16},
            TypeError,
            "expected settings among ['branch', 'name', 'normalize', 'width']",
        ),
        ({"strict": False}, ValueError, "expected strict to be True"),
        (
            {"config": {"name": "resnet34"}},
            ValueError,
            "expected name to be 'resnet34'",
        ),
        ({"map_location": "gpu"}, TypeError, "expected device to be a device or its name"),
    ],
)
def test_settings_other_than_those_that_were_saved_are_refused(tmp_path, settings, error, message):
    saved(tmp_path)
    with pytest.raises(error, match=f"^{re.escape('HubEncoder.from_pretrained: ' + message)}"):
        HubEncoder.from_pretrained(tmp_path, **settings)


def test_settings_that_were_saved_may_be_passed(tmp_path):
    saved(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    hub = HubEncoder.from_pretrained(tmp_path, strict=True, config=config, **config)
    assert (hub.config["branch"], hub.config["width"]) == ("adv", 2)


@pytest.mark.parametrize("config", [None, "{}", '{"epochs": 100}'])
def test_a_folder_without_the_config_of_an_encoder_is_refused(tmp_path, config):
    saved(tmp_path)
    (tmp_path / "config.json").unlink()
    if config is not None:
        (tmp_path / "config.json").write_text(config)
    with pytest.raises(
        ValueError, match=r"^HubEncoder\.from_pretrained: expected a config\.json with the name of an enc"
    ):
        HubEncoder.from_pretrained(tmp_path)


def test_the_encoder_is_loaded_on_the_requested_device(tmp_path):
    saved(tmp_path)
    assert HubEncoder.from_pretrained(tmp_path, map_location="meta").encoder.conv1.weight.device.type == "meta"


def a_hub():
    return HubEncoder.from_encoder(trained(width=2), "resnet18", branch="adv", width=2)


def with_a_head():
    hub = a_hub()
    hub.encoder.fc = nn.Linear(16, 10)
    return hub


def with_a_part_beside():
    hub = a_hub()
    hub.head = nn.Linear(16, 10)
    return hub


REFUSED = {
    "config": (a_hub, {"config": {"epochs": 100}}, ValueError, "expected config to be None or {'name': 'resnet18', "),
    "branch": (
        a_hub,
        {"config": {"name": "resnet18", "branch": "clean"}},
        ValueError,
        "expected config to be None or ",
    ),
    "half": (lambda: a_hub().half(), {}, ValueError, "expected encoder.conv1.weight in torch.float32"),
    "head": (with_a_head, {}, ValueError, "expected the encoder that its config builds"),
    "beside": (
        with_a_part_beside,
        {},
        ValueError,
        "expected the encoder that its config builds",
    ),
    "dual": (
        lambda: convert_to_dual_bn(a_hub()),
        {},
        ValueError,
        "expected the encoder that its config builds",
    ),
    "metadata": (
        a_hub,
        {"model_card_kwargs": {"license": object()}},
        ValueError,
        "expected metadata that a model card",
    ),
    "result": (a_hub, {"model_card_kwargs": {"result": {}}}, TypeError, "expected result to be"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_an_encoder_that_could_not_be_loaded_is_refused_before_anything_is_written(tmp_path, monkeypatch, case):
    make, settings, error, message = REFUSED[case]
    hub = make()
    with pytest.raises(error, match=rf"^HubEncoder(\.save_pretrained)?: {re.escape(message)}"):
        hub.save_pretrained(tmp_path / "new", **settings)
    assert not (tmp_path / "new").exists()
    monkeypatch.setattr("huggingface_hub.HfApi.create_repo", lambda *_, **__: pytest.fail("made a repository"))
    with pytest.raises(error, match=rf"^HubEncoder(\.push_to_hub)?: {re.escape(message)}"):
        hub.push_to_hub("someone/encoder", **settings)


def test_a_branch_is_not_chosen_when_it_is_saved(tmp_path):
    with pytest.raises(TypeError, match=r"^HubEncoder\.save_pretrained: .*push_to_hub=True"):
        a_hub().save_pretrained(tmp_path / "new", branch="clean")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
@pytest.mark.parametrize("content", [b"", b'{"name": ', b"\xff\xfe"])
def test_a_damaged_file_is_refused_with_its_folder(tmp_path, name, content):
    saved(tmp_path)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=rf"^HubEncoder\.from_pretrained: .*{re.escape(str(tmp_path))}"):
        HubEncoder.from_pretrained(tmp_path)


def test_folders_may_be_below_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    a_hub().save_pretrained("~/encoder")
    assert (tmp_path / "encoder" / "config.json").is_file()
    assert HubEncoder.from_pretrained("~/encoder").num_features == 16


def test_its_own_config_may_be_passed(tmp_path):
    hub = a_hub()
    hub.save_pretrained(tmp_path, config=hub.config)
    assert torch.equal(HubEncoder.from_pretrained(tmp_path)(images()), hub(images()))


def test_pushing_uploads_what_can_be_loaded(tmp_path, monkeypatch):
    class Repository:
        repo_id = "someone/encoder"

    def upload(self, *, folder_path, **settings):
        loaded.append((HubEncoder.from_pretrained(folder_path)(images()), settings["repo_id"]))

    loaded, hub = [], a_hub()
    monkeypatch.setattr("huggingface_hub.HfApi.create_repo", lambda *_, **__: Repository)
    monkeypatch.setattr("huggingface_hub.HfApi.upload_folder", upload)
    hub.save_pretrained(tmp_path / "encoder", push_to_hub=True, repo_id="someone/encoder")
    hub.push_to_hub("someone/encoder")
    assert [repository for _, repository in loaded] == ["someone/encoder"] * 2
    assert all(torch.equal(features, hub(images())) for features, _ in loaded)


def test_a_card_of_another_encoder_is_not_kept(tmp_path):
    saved(tmp_path)
    clean = HubEncoder.from_encoder(trained(width=2), "resnet18", branch="clean", width=2)
    with pytest.raises(
        ValueError, match=r"^HubEncoder\.save_pretrained: expected '.*README\.md' to be of this encoder"
    ):
        clean.save_pretrained(tmp_path)
    assert HubEncoder.from_pretrained(tmp_path).config["branch"] == "adv"


def test_a_card_of_this_encoder_and_one_by_hand_are_kept(tmp_path):
    saved(tmp_path)
    (tmp_path / "README.md").write_text("by hand: " + (tmp_path / "README.md").read_text())
    again = HubEncoder.from_pretrained(tmp_path)
    again.save_pretrained(tmp_path)
    assert (tmp_path / "README.md").read_text().startswith("by hand")
    (tmp_path / "README.md").write_text("mine")
    again.save_pretrained(tmp_path)
    assert (tmp_path / "README.md").read_text() == "mine"


def test_figures_of_another_branch_are_refused():
    hub = HubEncoder.from_encoder(trained(width=2), "resnet18", branch="clean", width=2)
    with pytest.raises(ValueError, match=r"^HubEncoder: expected result of branch 'clean'"):
        hub.generate_model_card(result=result())


def test_the_card_says_what_it_is_in_its_front_matter(tmp_path):
    data = saved(tmp_path).data
    assert (data.library_name, data.pipeline_tag) == ("advcontrast", "image-feature-extraction")


def test_the_licence_is_left_to_the_user(tmp_path):
    assert "license" not in saved(tmp_path).data.to_dict()


def test_metadata_of_the_user_is_added_to_the_front_matter(tmp_path):
    data = saved(tmp_path, license="mit", datasets=["cifar10"]).data
    assert (data.license, data.datasets) == ("mit", ["cifar10"])


def test_the_front_matter_is_yaml(tmp_path):
    saved(tmp_path)
    _, front, _ = (tmp_path / "README.md").read_text().split("---\n", 2)
    assert yaml.safe_load(front)["library_name"] == "advcontrast"


def test_the_card_without_figures_claims_none(tmp_path):
    text = saved(tmp_path).text
    assert "No figures were given with it." in text
    assert "Results" not in text


def test_the_card_names_branch_and_features(tmp_path):
    text = saved(tmp_path).text
    assert "# resnet18, branch 'adv'" in text
    assert "to 16 features" in text


def test_the_card_shows_the_figures(tmp_path):
    text = saved(tmp_path, card=result()).text
    assert "- RA: 25.00 %\n- TA: 75.00 %\n" in text


def test_the_card_shows_the_settings(tmp_path):
    text = saved(tmp_path, card=result()).text
    details = json.loads(re.search(r"```json\n(.*?)```", text, re.DOTALL)[1])
    assert details["attacks"]["RA"]["steps"] == 20
    assert (details["data"], details["fingerprint"], details["seeds"]) == ("four images", "ab" * 32, [7])


def test_the_example_of_the_card_runs(tmp_path):
    text = saved(tmp_path).text
    example = re.search(r"```python\n(.*?)```", text, re.DOTALL)[1]
    names = {"images": images()}
    exec(example.replace('"name of the repository, or a folder"', repr(str(tmp_path))), names)
    assert names["features"].shape == (2, 16)


def test_the_call_of_the_card_makes_such_an_encoder(tmp_path):
    text = saved(tmp_path).text
    made = eval(re.search(r"`(HubEncoder\(.*\))`", text)[1])
    assert made.config == json.loads((tmp_path / "config.json").read_text(), object_hook=_tuples)


def _tuples(entries):
    return {k: tuple(map(tuple, v)) if k == "normalize" else v for k, v in entries.items()}


@pytest.mark.parametrize(
    ("encoder", "settings", "error", "message"),
    [
        (
            lambda: resnet18(0, width=2, normalize=None),
            {"width": 2},
            ValueError,
            "HubEncoder.from_encoder: expected the network of backbone('resnet18') with the settings",
        ),
        (
            lambda: resnet18(0, width=2),
            {},
            ValueError,
            "HubEncoder.from_encoder: expected the network of backbone('resnet18')",
        ),
        (
            lambda: resnet18(10, width=2),
            {"width": 2},
            ValueError,
            "HubEncoder.from_encoder: expected the network of backbone(",
        ),
        (
            lambda: nn.Sequential(resnet18(0, width=2), nn.ReLU()),
            {"width": 2},
            ValueError,
            "HubEncoder.from_encoder: expected",
        ),
        (
            lambda: trained(width=2),
            {"width": 2},
            ValueError,
            "HubEncoder.from_encoder: expected branch to be one of 'clean', 'adv'",
        ),
        (
            lambda: resnet18(0, width=2),
            {"width": 2, "branch": "adv"},
            ValueError,
            "HubEncoder.from_encoder: expected branch to be None",
        ),
        (
            lambda: trained(width=2),
            {"width": 2, "branch": "pgd"},
            ValueError,
            "export_branch: expected branch to be one",
        ),
        (lambda: "resnet18", {}, TypeError, "HubEncoder.from_encoder: expected model to be an nn.Module"),
        (lambda: resnet18(0, width=2), {"width": 0}, ValueError, "ResNet: expected width to be an int >= 1"),
    ],
)
def test_other_networks_are_refused(encoder, settings, error, message):
    with pytest.raises(error, match=f"^{re.escape(message)}"):
        HubEncoder.from_encoder(encoder(), "resnet18", **settings)


def test_a_padding_that_no_name_tells_is_refused():
    encoder = resnet18(0, width=2)
    encoder.conv1.padding = (2, 2)
    with pytest.raises(ValueError, match=r"padding=\(2, 2\), bias=False\) instead of "):
        HubEncoder.from_encoder(encoder, "resnet18", width=2)


def test_another_stem_is_refused():
    encoder, _ = backbone("torchvision/resnet18", small_images=False)
    cifar_stem(encoder[1])
    with pytest.raises(ValueError, match="kernel_size"):
        HubEncoder.from_encoder(encoder, "torchvision/resnet18", small_images=False)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"name": "resnet1"}, ValueError, "backbone: expected the name of a network of "),
        ({"name": None}, TypeError, "backbone: expected name to be"),
        ({"width": 0}, ValueError, "ResNet: expected width to be an int >= 1"),
        (
            {"branch": 1},
            TypeError,
            "HubEncoder: expected branch to be",
        ),
        ({"normalize": 3}, TypeError, "HubEncoder: expected normalize to "),
        ({"normalize": "abc"}, TypeError, "HubEncoder: expected normalize to "),
        (
            {"normalize": [[0.5] * 3]},
            ValueError,
            "HubEncoder: expected normalize to ",
        ),
        ({"normalize": [[0.5], [0.5]]}, ValueError, "HubEncoder: expected normalize for in_channels=3"),
    ],
)
def test_wrong_arguments(arguments, error, message):
    with pytest.raises(error, match=f"^{re.escape(message)}"):
        HubEncoder(**{"name": "resnet18", "width": 2} | arguments)


def test_a_result_that_is_no_card_is_refused(tmp_path):
    message = "HubEncoder: expected result to be"
    with pytest.raises(TypeError, match=f"^{message}"):
        HubEncoder("resnet18", width=2).generate_model_card(result={"TA": 1.0})


@pytest.mark.parametrize("library", ["huggingface_hub", "safetensors"])
def test_without_the_library_the_error_says_what_to_install(monkeypatch, library):
    monkeypatch.setitem(sys.modules, library, None)
    monkeypatch.delitem(sys.modules, "advcontrast.adapters.hub")
    message = "adapters.hub: expected huggingface_hub and safetensors"
    with pytest.raises(ImportError, match=f"^{message}"):
        import advcontrast.adapters.hub  # noqa: F401


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_weights_that_would_be_rounded_or_widened_are_refused(dtype):
    with pytest.raises(ValueError, match=r"^HubEncoder\.from_encoder: expected conv1\.weight in torch\.float32"):
        HubEncoder.from_encoder(resnet18(0, width=2).to(dtype), "resnet18", width=2)


@pytest.mark.parametrize("branch", [None, "adv"])
def test_an_encoder_without_values_is_refused(branch):
    encoder = (resnet18(0, width=2) if branch is None else trained(width=2)).to("meta")
    message = "HubEncoder.from_encoder: expected model to hold values"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        HubEncoder.from_encoder(encoder, "resnet18", branch=branch, width=2)


def test_values_are_copied_and_loaded_whatever_device_is_the_default(tmp_path):
    encoder, x = resnet18(0, width=2).eval(), images()
    with torch.device("meta"):
        HubEncoder.from_encoder(encoder, "resnet18", width=2).save_pretrained(tmp_path)
        again = HubEncoder.from_pretrained(tmp_path)
    assert torch.equal(again(x), encoder(x))


def test_no_random_number_is_used_up(tmp_path):
    encoder = trained(width=2)
    before = torch.get_rng_state()
    saved(tmp_path, encoder)
    HubEncoder.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"^HubEncoder\.from_encoder: expected the network of backbone"):
        HubEncoder.from_encoder(encoder, "resnet18", branch="adv", width=4)
    with pytest.raises(TypeError, match="expected normalize to be"):
        HubEncoder("resnet18", normalize=3)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    "metadata", [{"license": object()}, {"license": (1, 2)}, {"datasets": (i for i in "ab")}, {"eval_results": [1]}]
)
def test_metadata_that_no_card_can_hold_is_refused(metadata):
    message = r"^HubEncoder: expected metadata that a model card can hold"
    with pytest.raises(ValueError, match=message):
        HubEncoder("resnet18", width=2).generate_model_card(**metadata)
