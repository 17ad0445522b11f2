"""timm loads bit-identical networks from the folders, or nothing is saved."""

import copy
import json
import re
import sys

import pytest
import torch
from torch import nn

from advcontrast import bn_branch, convert_to_dual_bn
from advcontrast.models import Normalize, cifar_stem, resnet18, simclr_head

timm = pytest.importorskip("timm")
pytest.importorskip("safetensors")

from advcontrast.adapters.timm import from_timm, save_timm  # noqa: E402 (needs timm)

# The smallest of each family; "ln" has no batch norms.
MORE = ("resnetv2_18", "mobilenetv3_small_050", "regnetx_002", "ghostnet_050", "repvgg_a0", "lcnet_035")
MORE += ("efficientvit_b0", "densenet121", "convnext_atto", "vit_tiny_patch16_224", "swin_tiny_patch4_window7_224")
FAMILIES = [
    *("resnet10t", "efficientnet_lite0", "test_byobnet", "mobilevit_xxs", "edgenext_xx_small", "test_vit"),
    *(pytest.param(name, marks=pytest.mark.nightly) for name in MORE),
]
NORMS = (nn.modules.batchnorm._BatchNorm, nn.LayerNorm, nn.GroupNorm)


def network(name="test_resnet", **settings):
    """Return a network of timm whose parameters and statistics are drawn, so that none equals that of another one."""
    model = timm.create_model(name, **settings)
    with torch.no_grad():
        for tensor in model.state_dict().values():
            if tensor.is_floating_point():
                tensor.mul_(1 + 0.1 * torch.rand_like(tensor))
    return model


def apart(model):
    """Let the branches of a converted network differ."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.mul_(1.01 if ".adv." in name else 1.0)
    return model


def dual(name="test_resnet", **settings):
    return apart(convert_to_dual_bn(from_timm(network(name, **settings)), norms=NORMS))


def loaded(folder):
    return timm.create_model(f"local-dir:{folder}", pretrained=True).eval()


def images(model, *, dtype=torch.float32):
    size = model.pretrained_cfg["input_size"]
    return torch.rand(2, *size, generator=torch.Generator().manual_seed(0)).to(dtype)


@pytest.mark.parametrize("branch", ["clean", "adv"])
@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.sample(4)
def test_a_branch_of_every_family_is_loaded_to_the_bit(name, branch, tmp_path):
    model = dual(name, num_classes=7).eval()
    save_timm(model, tmp_path / "saved", branch=branch)
    x = images(model[1])
    with torch.no_grad(), bn_branch(model, branch):
        expected = model(x)
        assert expected.std() > 0
        assert torch.equal(loaded(tmp_path / "saved")(model[0](x)), expected)


@pytest.mark.parametrize("wrap", [from_timm, lambda model: model], ids=["normalized", "bare"])
def test_a_network_with_single_norms_needs_no_branch(wrap, tmp_path):
    model = network().eval()
    save_timm(wrap(model), tmp_path / "saved")
    x = images(model)
    assert torch.equal(loaded(tmp_path / "saved")(x), model(x))


def test_a_saved_network_loads_through_from_timm(tmp_path):
    model = dual().eval()
    save_timm(model, tmp_path / "saved", branch="adv")
    x = images(model[1])
    with bn_branch(model, "adv"):
        assert torch.equal(from_timm(loaded(tmp_path / "saved"))(x), model(x))


def test_the_folder_holds_a_config_and_safe_weights(tmp_path):
    save_timm(network(), tmp_path / "saved")
    assert sorted(path.name for path in (tmp_path / "saved").iterdir()) == ["config.json", "model.safetensors"]


def test_the_constants_of_the_normalisation_are_in_the_config(tmp_path):
    save_timm(nn.Sequential(Normalize((0.1, 0.2, 0.3), (0.4, 0.5, 0.6)), network()), tmp_path / "saved")
    config = json.loads((tmp_path / "saved" / "config.json").read_text())["pretrained_cfg"]
    assert (config["mean"], config["std"]) == ([0.1, 0.2, 0.3], [0.4, 0.5, 0.6])


def test_a_bare_network_takes_images_as_they_are(tmp_path):
    model = network().eval()
    save_timm(model, tmp_path / "saved")
    again = loaded(tmp_path / "saved")
    assert (again.pretrained_cfg["mean"], again.pretrained_cfg["std"]) == ([0.0] * 3, [1.0] * 3)
    assert torch.equal(from_timm(again)(images(model)), model(images(model)))


def test_from_timm_takes_the_constants_of_the_config():
    model = timm.create_model("mobilevit_xxs")
    assert from_timm(model)[0].values == (model.pretrained_cfg["mean"], model.pretrained_cfg["std"])


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("test_resnet", {"num_classes": 0}),
        ("test_resnet", {"num_classes": 0, "global_pool": ""}),
        ("test_resnet", {"in_chans": 1}),
        ("test_resnet", {"global_pool": "max"}),
        ("test_resnet", {"drop_rate": 0.5}),
        ("test_vit", {"img_size": 64, "num_classes": 3}),
        ("test_vit", {"img_size": (32, 64), "patch_size": 8}),
        ("test_vit", {"global_pool": "avg"}),
        ("resnet10t", {"output_stride": 8}),
    ],
)
@pytest.mark.sample(4)
def test_arguments_of_the_constructor_survive(name, settings, tmp_path):
    model = network(name, **settings).eval()
    save_timm(model, tmp_path / "saved")
    again = loaded(tmp_path / "saved")
    x = images(again)
    assert torch.equal(again(x), model(x))


def test_one_channel_survives_with_its_normalisation(tmp_path):
    model = nn.Sequential(Normalize((0.5,), (0.25,)), network(in_chans=1)).eval()
    save_timm(model, tmp_path / "saved")
    again = loaded(tmp_path / "saved")
    x = torch.rand(2, 1, 64, 64)
    assert torch.equal(from_timm(again)(x), model(x))


def test_a_classifier_changed_by_timm_survives(tmp_path):
    model = network()
    model.reset_classifier(3)
    save_timm(model, tmp_path / "saved")
    assert loaded(tmp_path / "saved").num_classes == 3


def test_channels_last_is_no_obstacle(tmp_path):
    save_timm(network().to(memory_format=torch.channels_last), tmp_path / "saved")
    assert loaded(tmp_path / "saved").conv1[0].weight.is_contiguous()


def test_half_precision_is_kept_in_the_file(tmp_path):
    model = network().to(torch.bfloat16).eval()
    save_timm(model, tmp_path / "saved")
    x = images(model, dtype=torch.bfloat16)
    assert torch.equal(loaded(tmp_path / "saved").to(torch.bfloat16)(x), model(x))


def test_a_network_with_nans_is_saved_as_it_is(tmp_path):
    model = network()
    nn.init.constant_(model.fc.bias, torch.nan)
    save_timm(model, tmp_path / "saved")
    assert loaded(tmp_path / "saved").fc.bias.isnan().all()


def test_the_model_is_left_as_it_was(tmp_path):
    model = dual().train()
    before, modes = copy.deepcopy(model.state_dict()), [module.training for module in model.modules()]
    config = copy.deepcopy(model[1].pretrained_cfg)
    save_timm(model, tmp_path / "saved", branch="adv")
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert [module.training for module in model.modules()] == modes
    assert model[1].pretrained_cfg == config


def test_a_network_with_single_norms_is_left_as_it_was(tmp_path):
    model = nn.Sequential(Normalize((0.5,) * 3, (0.25,) * 3), network()).train()
    mean = model[1].pretrained_cfg["mean"]
    save_timm(model, tmp_path / "saved")
    assert model.training
    assert model[1].pretrained_cfg["mean"] == mean


def test_random_numbers_are_left_as_they_were(tmp_path):
    model = network()
    before = torch.get_rng_state()
    save_timm(model, tmp_path / "saved")
    assert torch.equal(torch.get_rng_state(), before)


def test_an_empty_folder_is_taken(tmp_path):
    save_timm(network(), tmp_path)
    assert (tmp_path / "config.json").exists()


def test_folders_above_are_made(tmp_path):
    save_timm(network(), tmp_path / "a" / "b")
    assert (tmp_path / "a" / "b" / "config.json").exists()


def refused(folder, error, message, model, **settings):
    before = sorted(folder.rglob("*"))
    with pytest.raises(error, match=f"^{re.escape(message)}"):
        save_timm(model, folder / "saved", **settings)
    assert sorted(folder.rglob("*")) == before


def test_a_folder_with_something_in_it_is_refused(tmp_path):
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved" / "notes").write_text("mine")
    refused(tmp_path, FileExistsError, "save_timm: expected folder to be a new one", network())


def test_a_file_is_refused(tmp_path):
    (tmp_path / "saved").write_text("mine")
    refused(tmp_path, FileExistsError, "save_timm: expected folder to be a new one", network())


def test_a_network_with_branches_needs_one(tmp_path):
    message = "save_timm: expected branch to be one of 'clean', 'adv'"
    refused(tmp_path, ValueError, message, dual())


def test_another_branch_is_refused(tmp_path):
    refused(tmp_path, ValueError, "export_branch: expected branch to be one of 'clean', 'adv'", dual(), branch="pgd")


def test_a_branch_of_a_network_without_is_refused(tmp_path):
    message = "save_timm: expected branch to be None"
    refused(tmp_path, ValueError, message, network(), branch="adv")


def with_another(part, replacement):
    def change(model):
        setattr(model, part, replacement)
        return model

    return change


CHANGES = {
    "stem": cifar_stem,
    "head": with_another("fc", simclr_head(512)),
    "no classifier": with_another("fc", nn.Identity()),
    "another classifier": with_another("fc", nn.Linear(512, 10)),
    "no pooling": with_another("maxpool", nn.Identity()),
    "activation": with_another("act1", nn.Tanh()),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.sample(2)
def test_networks_that_timm_cannot_build_are_refused_without_leftovers(change, tmp_path):
    model = CHANGES[change](network("resnet18"))
    refused(tmp_path, ValueError, "save_timm: expected a network that timm can build again", model)


def test_the_remedy_names_the_way_to_change_a_classifier(tmp_path):
    model = network()
    model.fc = nn.Linear(model.num_features, 10)
    with pytest.raises(ValueError, match=r"size mismatch for fc\..*use reset_classifier"):
        save_timm(model, tmp_path / "saved")


@pytest.mark.parametrize(
    "model",
    [
        resnet18(0),
        nn.Sequential(from_timm(network()), nn.Linear(1000, 4)),
        nn.Sequential(nn.ReLU(), network()),
        nn.Sequential(Normalize(), network(), nn.ReLU()),
    ],
    ids=["own", "head", "relu", "three"],
)
def test_other_networks_are_refused(model, tmp_path):
    refused(tmp_path, TypeError, "save_timm: expected a network of timm", model)


@pytest.mark.parametrize("model", [resnet18(0), "resnet18", None])
def test_from_timm_refuses_what_is_not_timms(model):
    with pytest.raises(TypeError, match=r"^from_timm: expected a network of timm, bare or normalized"):
        from_timm(model)


@pytest.mark.parametrize(
    ("model", "folder", "error", "message"),
    [
        ("resnet18", "x", TypeError, "save_timm: expected model to be an nn.Module"),
        (nn.DataParallel(nn.ReLU()), "x", TypeError, "save_timm: expected an unwrapped module"),
        (network(), 3, TypeError, "save_timm: expected folder to be a path"),
        (network(), "", ValueError, "save_timm: expected folder to be a path"),
    ],
)
def test_wrong_arguments(model, folder, error, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error, match=f"^{re.escape(message)}"):
        save_timm(model, folder)
    assert not any(tmp_path.iterdir())


def test_a_crash_while_writing_leaves_nothing(tmp_path, monkeypatch):
    def crash(*_, **__):
        raise OSError("disk full")

    monkeypatch.setattr(timm.models, "save_for_hf", crash)
    with pytest.raises(OSError, match="disk full"):
        save_timm(network(), tmp_path / "saved")
    assert not any(tmp_path.iterdir())


def test_without_timm_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    monkeypatch.delitem(sys.modules, "advcontrast.adapters.timm")
    with pytest.raises(ImportError, match=r"^adapters\.timm: expected timm"):
        import advcontrast.adapters.timm  # noqa: F401


def test_the_config_tells_the_transforms_of_timm_the_size_of_the_images(tmp_path):
    save_timm(network(), tmp_path / "net", size=48)
    config = timm.data.resolve_model_data_config(timm.create_model(f"local-dir:{tmp_path / 'net'}", pretrained=True))
    assert (config["input_size"], config["crop_pct"]) == ((3, 48, 48), 1.0)


def test_the_config_does_not_speak_of_the_weights_that_timm_has(tmp_path):
    model = network()
    model.pretrained_cfg |= {"tag": "a1_in1k", "license": "apache-2.0", "test_input_size": (3, 288, 288)}
    save_timm(model, tmp_path / "net", size=48)
    config = json.loads((tmp_path / "net" / "config.json").read_text())["pretrained_cfg"]
    assert not {"tag", "license", "url", "hf_hub_id", "test_input_size"} & set(config)
    assert model.pretrained_cfg["tag"] == "a1_in1k"


@pytest.mark.parametrize("size", [0, -1])
def test_a_size_below_one_is_refused_before_anything_is_written(tmp_path, size):
    with pytest.raises(ValueError, match=r"^save_timm: expected size to be "):
        save_timm(network(), tmp_path / "net", size=size)
    assert list(tmp_path.iterdir()) == []


def test_a_network_for_grey_images_gets_one_mean_and_one_deviation():
    model = from_timm(timm.create_model("test_resnet", in_chans=1, pretrained_cfg_overlay={"mean": (0.2, 0.3, 0.4)}))
    assert [[round(value, 6) for value in values] for values in model[0].values] == [[0.3], [0.5]]
    assert model(torch.rand(2, 1, 32, 32)).shape == (2, 1000)


def test_networks_that_return_lists_of_features_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"^save_timm: expected a network that timm can build again"):
        save_timm(network(features_only=True), tmp_path / "saved")
    assert list(tmp_path.iterdir()) == []


def test_a_link_is_no_new_folder(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    with pytest.raises(FileExistsError, match=r"^save_timm: expected folder to be a new one"):
        save_timm(network(), tmp_path / "link")


def test_a_network_without_values_is_refused(tmp_path):
    message = "save_timm: expected model to hold values"
    refused(tmp_path, ValueError, message, network().to("meta"))


def test_the_names_of_the_classes_are_in_the_config_that_timm_loads(tmp_path):
    save_timm(dual(num_classes=2), tmp_path / "net", branch="adv", labels=("cat", "dog"))
    assert loaded(tmp_path / "net").pretrained_cfg["label_names"] == ["cat", "dog"]


def test_without_names_the_config_has_none(tmp_path):
    save_timm(network(num_classes=2), tmp_path / "net")
    assert "label_names" not in loaded(tmp_path / "net").pretrained_cfg


def test_names_stay_when_what_was_loaded_is_saved_again_unless_there_are_others(tmp_path):
    save_timm(network(num_classes=2), tmp_path / "a", labels=["cat", "dog"])
    model = loaded(tmp_path / "a")
    model.pretrained_cfg["label_descriptions"] = {"cat": "it purrs"}
    save_timm(model, tmp_path / "b")
    save_timm(model, tmp_path / "c", labels=["sky", "sea"])
    same, other = (loaded(tmp_path / name).pretrained_cfg for name in "bc")
    assert (same["label_names"], same["label_descriptions"]) == (["cat", "dog"], {"cat": "it purrs"})
    assert other["label_names"] == ["sky", "sea"]
    assert "label_descriptions" not in other


@pytest.mark.parametrize(
    ("labels", "error", "message"),
    [
        (("cat",), ValueError, "2 labels"),
        ((), ValueError, "2 labels"),
        ("ab", TypeError, "labels to be"),
        (("cat", 1), TypeError, "each of labels to be"),
        ({"cat": 0, "dog": 1}, TypeError, "labels to be"),
        ((name for name in ("cat", "dog")), TypeError, "labels to be"),
    ],
)
def test_other_names_than_those_of_the_classes_are_refused(tmp_path, labels, error, message):
    refused(tmp_path, error, f"save_timm: expected {message}", network(num_classes=2), labels=labels)
