"""Mistakes of a user end the CIFAR scripts with status 2 and one line, and cost nothing that was there before."""

import json
import os
import shutil
import sys
import urllib.error

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from tests.examples.cifar import FEW, TINY, contents, inside, scripts_importable

AS_PRETRAINED = (*FEW, "--epochs", "2", "--batch-size", "20", "--attack-steps", "1", "--save-every", "1")


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "DS"
    assert inside("pretrain", *AS_PRETRAINED, "--out", out) == 0
    return out


@pytest.fixture
def complaint(capsys):
    """Return a function that runs a script and returns the only line that it says."""

    def complaint(script, *flags):
        capsys.readouterr()
        assert inside(script, *flags) == 2
        said = capsys.readouterr().err
        assert len(said.splitlines()) == 1
        assert said.startswith(f"{script}.py: ")
        return said

    return complaint


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder of two classes of images, and none of the user's own folders touched."""
    with scripts_importable():
        from _common import images

        monkeypatch.setattr(images, "CACHE", tmp_path / "cache")
    for part, split in enumerate(("train", "test")):
        for label, name in enumerate(("cat", "dog")):
            (tmp_path / "data" / split / name).mkdir(parents=True)
            for i in range(11):
                pixels = np.full((32, 32, 3), 60 * part + 30 * label + i, dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / "data" / split / name / f"{i}.png")
    return tmp_path / "data"


def of_folder(folder):
    data = ("--data", "folder", "--data-dir", folder)
    return (*data, "--arch", "quickstart", "--epochs", "1", "--out", folder.parent / "out")


@pytest.mark.parametrize(
    ("script", "flags", "words"),
    [
        ("pretrain", "--epochs 0", "--epochs of at least 1, got 0"),
        ("pretrain", "--epochs -1", "--epochs of at least 1, got -1"),
        ("pretrain", "--epochs many", "argument --epochs: invalid int value: 'many'"),
        ("pretrain", "--epochs 1.5", "argument --epochs: invalid int value"),
        ("pretrain", "--batch-size 0", "--batch-size of at least 2, got 0"),
        ("pretrain", "--batch-size 1", "--batch-size of at least 2, got 1"),
        ("semisupervised", "--batch-size 1", "--batch-size of at least 2, got 1"),
        ("pretrain", "--width -1", "--width of at least 0, got -1"),
        ("pretrain", "--limit -5", "--limit of at least 0, got -5"),
        ("pretrain", "--limit 5", "--limit: expected at least 20 images to split, got 5"),
        ("pretrain", "--limit 1000000", "--limit: expected at most 5000 images, got 1000000"),
        ("pretrain", "--test-limit 1000000", "--test-limit: expected at most"),
        ("pretrain", "--save-every -1", "--save-every of at least 0"),
        ("pretrain", "--seed -1", "--seed of at least 0"),
        ("pretrain", "--seed 99999999999999999999", "--seed below 2^63"),
        ("pretrain", "--eps 8", "got 8. Did you mean 8/255 = 0.0314?"),
        ("pretrain", "--eps -1", "--eps from 0 to 1, the range of the pixels, got -1"),
        ("pretrain", "--eps nan", "--eps from 0 to 1, the range of the pixels, got nan"),
        ("pretrain", "--preset best", "argument --preset: invalid choice: 'best'"),
        ("pretrain", "--data imagenet", "argument --data: invalid choice: 'imagenet'"),
        ("pretrain", "--mode SDS", "argument --mode: invalid choice: 'SDS'"),
        ("pretrain", "--amp fp8", "argument --amp: invalid choice: 'fp8'"),
        ("pretrain", "--wdith 4", "unrecognized arguments: --wdith"),
        ("pretrain", "--device nonsense", "--device: expected a device of this machine, got 'nonsense'"),
        ("pretrain", "--device cuda:99", "--device: expected a device of this machine, got 'cuda:99'"),
        ("pretrain", "--arch resnet81", "'resnet81'. Did you mean"),
        ("pretrain", "--arch timm/resnet81", "'timm/resnet81'"),
        ("pretrain", "--arch torchvision/resnet18 --width 4", "expected no width for torchvision/resnet18, got 4"),
        ("pretrain", "--width 4", "--width: expected no width for quickstart, got 4"),
        ("pretrain", "--arch vgg11", "--arch: expected a network for images of 16 x 16 pixels, got vgg11"),
        ("pretrain", "--mode selfie --arch test_resnet", "expected encoder to be a ResNet"),
        ("pretrain", "--mode selfie --norms dual", "--norms: expected auto or single for Selfie, got dual"),
        ("pretrain", "--lr -1", "--lr of at least 0, got -1"),
        ("pretrain", "--lr nan", "--lr of at least 0, got nan"),
        ("pretrain", "--lr inf", "--lr of at least 0, got inf"),
        ("pretrain", "--warmup -1", "--warmup of at least 0"),
        ("pretrain", "--temperature 0", "expected temperature to be a finite number > 0"),
        ("pretrain", "--strength 2", "expected strength to be a finite number >= 0 and <= 1, got 2.0"),
        ("pretrain", "--min-area 0", "expected min_area to be a finite number > 0"),
        ("pretrain", "--attack-steps -1", "--attack-steps of at least 0"),
        ("pretrain", "--attack-step 0", "expected step_size to be a finite number > 0"),
        ("finetune", "--lr -0.1", "--lr of at least 0, got -0.1"),
        ("finetune", "--weight-decay -1", "--weight-decay of at least 0"),
        ("finetune", "--beta -6", "--beta of at least 0"),
        ("finetune", "--evaluate-every 0", "--evaluate-every of at least 1"),
        ("finetune", "--branch clena", "argument --branch: invalid choice: 'clena'"),
        ("finetune", "--train fast", "argument --train: invalid choice: 'fast'"),
        ("finetune", "--lr 0", "Protocol: expected lr"),
        ("finetune", "--milestones x", "--milestones: expected ascending epochs such as 15,20, got 'x'"),
        ("finetune", "--milestones 3,2", "--milestones: expected ascending epochs such as 15,20, got '3,2'"),
        ("finetune", "--milestones 0", "--milestones: expected ascending epochs such as 15,20, got '0'"),
        ("finetune", "--labels 0", "Protocol: expected labels"),
        ("finetune", "--labels 2", "Protocol: expected labels"),
        ("semisupervised", "--labels 0.0001", "labelled_subset: expected 1 to"),
        ("semisupervised", "--labels ten", "argument --labels: invalid float value: 'ten'"),
        ("semisupervised", "--alpha 2", "Protocol: expected alpha"),
        ("semisupervised", "--temperature 0", "Protocol: expected temperature"),
        ("semisupervised", "--teacher-epochs 0", "--teacher-epochs of at least 1"),
        ("semisupervised", "--teacher-milestones 9-3", "--teacher-milestones: expected ascending epochs"),
        ("semisupervised", "--method fixmatch", "argument --method: invalid choice"),
        ("linear", "--encoder nowhere.safetensors", "--encoder: expected a final.safetensors, got nowhere.safetensors"),
        ("finetune", "--encoder resnet18w16", "or choose resnet18w16-cifar10-ds, "),
        ("linear", "--train trades", "argument --train: invalid choice"),
        ("corruptions", "--model nowhere.safetensors", "--model: expected a final.safetensors, got nowhere"),
    ],
)
@pytest.mark.sample(30)
def test_a_flag(script, flags, words, complaint, tmp_path):
    tiny = FEW if script == "corruptions" else TINY
    assert words in complaint(script, *tiny, "--out", tmp_path / "out", *flags.split())
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("script", ["pretrain", "finetune", "linear", "semisupervised", "corruptions"])
def test_no_folder_for_the_results(script, complaint):
    assert "expected --out DIR" in complaint(script)


@pytest.mark.parametrize("script", ["finetune", "linear", "semisupervised"])
@pytest.mark.parametrize(
    ("encoder", "flags", "words"),
    [
        ("", "--arch resnet18", "expected a network of --arch resnet18 --width 0, got arch quickstart, width 0"),
        (
            "resnet18w16-cifar10-ds",
            "--arch resnet18 --width 8",
            "expected a network of --arch resnet18 --width 8, got arch resnet18, width 16",
        ),
    ],
)
@pytest.mark.sample(3)
def test_an_encoder_of_another_network(script, encoder, flags, words, pretrained, complaint, tmp_path):
    encoder = ("--encoder", encoder or pretrained / "final.safetensors")
    assert words in complaint(script, *TINY, *encoder, *flags.split(), "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_encoder_where_a_classifier_is_asked_for(pretrained, complaint, tmp_path):
    flags = ("--model", pretrained / "final.safetensors", "--out", tmp_path / "out")
    assert "--model: expected the weights of this network" in complaint("corruptions", *FEW, *flags)


def test_a_classifier_of_another_number_of_classes(complaint, tmp_path, folder):
    assert inside("linear", *of_folder(folder), "--train", "standard") == 0
    flags = ("--model", folder.parent / "out" / "final.safetensors", "--out", tmp_path / "c")
    assert "head.weight [2, 128]" in complaint("corruptions", *FEW, *flags)


def test_a_picture_that_calls_itself_weights(complaint, tmp_path):
    Image.new("RGB", (32, 32)).save(tmp_path / "cat.png")
    (tmp_path / "cat.png").rename(tmp_path / "cat.safetensors")
    flags = ("--encoder", tmp_path / "cat.safetensors", "--out", tmp_path / "out")
    assert "--encoder: expected a final.safetensors" in complaint("linear", *TINY, *flags)


@pytest.mark.parametrize("name", ["", "."])
def test_a_folder_that_calls_itself_weights(name, complaint, tmp_path):
    assert "--encoder: expected" in complaint("linear", *TINY, "--encoder", name, "--out", tmp_path / "out")


def test_weights_that_break_off(pretrained, complaint, tmp_path):
    whole = (pretrained / "final.safetensors").read_bytes()
    (tmp_path / "half.safetensors").write_bytes(whole[: len(whole) // 2])
    flags = ("--encoder", tmp_path / "half.safetensors", "--out", tmp_path / "out")
    assert "--encoder: expected a final.safetensors" in complaint("linear", *TINY, *flags)


def test_weights_of_another_program(complaint, tmp_path):
    save_file({"weight": torch.ones(2)}, tmp_path / "other.safetensors")
    flags = ("--encoder", tmp_path / "other.safetensors", "--out", tmp_path / "out")
    assert "got arch unknown, width unknown" in complaint("linear", *TINY, *flags)


def test_corruptions_that_are_not_there(complaint, tmp_path):
    assert inside("finetune", *TINY, "--train", "standard", "--out", tmp_path / "c") == 0
    flags = ("--model", tmp_path / "c" / "final.safetensors", "--cifar10c", tmp_path / "nowhere")
    assert "cifar10_c: expected 20 files" in complaint("corruptions", *FEW, *flags, "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_folder_that_is_missing(complaint, folder):
    shutil.rmtree(folder)
    assert "nothing there" in complaint("finetune", *of_folder(folder))


def test_a_folder_without_test_images(complaint, folder):
    shutil.rmtree(folder / "test")
    assert "nothing there" in complaint("finetune", *of_folder(folder))


def test_images_without_class_folders(complaint, folder):
    shutil.rmtree(folder / "train")
    shutil.copytree(folder / "test" / "cat", folder / "train")
    assert "expected a folder for each class" in complaint("finetune", *of_folder(folder))


def test_an_image_that_is_none(complaint, folder):
    (folder / "train" / "cat" / "3.png").write_bytes(b"\x89PNG and no more")
    assert "expected an image in" in complaint("finetune", *of_folder(folder))


def test_an_image_that_breaks_off(complaint, folder):
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / "train" / "cat" / "3.png")
    whole = (folder / "train" / "cat" / "3.png").read_bytes()
    (folder / "train" / "cat" / "3.png").write_bytes(whole[: len(whole) // 2])
    assert "expected an image in" in complaint("finetune", *of_folder(folder))


def test_a_class_without_images(complaint, folder):
    (folder / "train" / "eel").mkdir()
    assert "expected images in" in complaint("finetune", *of_folder(folder))


def test_a_class_that_only_training_has(complaint, folder):
    shutil.copytree(folder / "train" / "cat", folder / "train" / "eel")
    assert "expected the same classes for training and test, got 3 in train and 2 in test" in complaint(
        "finetune", *of_folder(folder)
    )


def test_a_single_class(complaint, folder):
    for split in ("train", "test"):
        shutil.rmtree(folder / split / "dog")
    assert "expected at least 2 classes, got 1" in complaint("finetune", *of_folder(folder))


def test_too_few_images_to_split(complaint, folder):
    for path in (folder / "train" / "cat").glob("1*.png"):
        path.unlink()
    for path in (folder / "train" / "dog").glob("1*.png"):
        path.unlink()
    assert "expected at least 20 images to split, got 18" in complaint("finetune", *of_folder(folder))


def test_a_download_without_a_network(complaint, tmp_path, monkeypatch):
    def unplugged(*_, **__):
        raise urllib.error.URLError("Network is unreachable")

    monkeypatch.setattr("urllib.request.urlopen", unplugged)
    flags = ("--width", "4", "--data-dir", tmp_path / "data", "--out", tmp_path / "out")
    assert "Network is unreachable" in complaint("pretrain", *flags)


def test_results_where_a_file_is(complaint, tmp_path):
    (tmp_path / "out").write_text("dear diary")
    assert "--out: expected a folder for a run" in complaint("pretrain", *TINY, "--out", tmp_path / "out")
    assert (tmp_path / "out").read_text() == "dear diary"


@pytest.mark.skipif(sys.platform != "linux", reason="needs a folder that nobody can write to")
@pytest.mark.parametrize("out", ["/proc/nowhere", "/proc"])
def test_results_where_nobody_can_write(out, complaint):
    assert "--out: expected a folder for a run" in complaint("pretrain", *TINY, "--out", out)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root can write anywhere")
def test_results_in_a_folder_of_somebody_else(complaint, tmp_path):
    (tmp_path / "out").mkdir(mode=0o555)
    assert "--out: expected a folder for a run" in complaint("pretrain", *TINY, "--out", tmp_path / "out")


@pytest.mark.parametrize("more", [["--epochs", "3"], ["--seed", "2"], ["--limit", "50"], ["--mode", "A2A"]])
def test_other_settings_for_a_run(more, pretrained, complaint):
    before = contents(pretrained)
    assert f"--out: expected the settings of the run in {pretrained}, got {more[0][2:]}" in complaint(
        "pretrain", *AS_PRETRAINED, "--out", pretrained, *more
    )
    assert contents(pretrained) == before


def test_another_script_for_a_run(pretrained, complaint):
    before = contents(pretrained)
    assert "'linear.py' instead of 'pretrain.py'" in complaint("linear", *TINY, "--out", pretrained)
    assert contents(pretrained) == before


def unfinished(pretrained, out):
    """Copy a run as it was before its end."""
    shutil.copytree(pretrained, out)
    (out / "final.safetensors").unlink()
    (out / "card.json").unlink()
    return out


def test_a_run_of_an_earlier_version_cannot_be_resumed(pretrained, complaint, tmp_path):
    out = unfinished(pretrained, tmp_path / "out")
    (out / "run.json").unlink()
    (out / "card.json").write_text(json.dumps({"script": "pretrain.py", "settings": {}, "accuracies": "fractions"}))
    before = contents(out)
    assert f"--out: expected a folder for a run, got {out} " in complaint("pretrain", *AS_PRETRAINED, "--out", out)
    assert contents(out) == before


def test_other_settings_for_an_unfinished_run(pretrained, complaint, tmp_path):
    out = unfinished(pretrained, tmp_path / "out")
    before = contents(out)
    assert "got lr 1.0 instead of 5.0" in complaint("pretrain", *AS_PRETRAINED, "--lr", "1", "--out", out)
    assert contents(out) == before


def test_checkpoints_that_are_all_damaged(pretrained, complaint, tmp_path):
    out = unfinished(pretrained, tmp_path / "out")
    for path in out.glob("checkpoints/step-*/state.pt"):
        path.write_bytes(path.read_bytes()[:-1])
    assert "expected a good checkpoint in" in complaint("pretrain", *AS_PRETRAINED, "--out", out)
    assert len(list(out.glob("checkpoints/step-*/state.pt"))) == 2


def test_one_damaged_checkpoint_costs_a_warning_and_a_step(pretrained, tmp_path):
    out = unfinished(pretrained, tmp_path / "out")
    newest = max(out.glob("checkpoints/step-*"))
    (newest / "state.pt").write_bytes(b"no")
    with pytest.warns(UserWarning, match="Falling back to step 5"):
        assert inside("pretrain", *AS_PRETRAINED, "--out", out) == 0
    assert (out / "final.safetensors").read_bytes() == (pretrained / "final.safetensors").read_bytes()


@pytest.mark.parametrize("name", ["run.json", "card.json"])
@pytest.mark.parametrize("text", ['{"script', "[]", "{}", '{"script": "pretrain.py", "flags": 3}', "\udcff"])
def test_a_damaged_file_of_a_run(name, text, pretrained, complaint, tmp_path):
    out = unfinished(pretrained, tmp_path / "out")
    (out / name).write_bytes(text.encode(errors="surrogateescape"))
    before = contents(out)
    assert f"--out: expected a folder for a run, got {out}" in complaint("pretrain", *AS_PRETRAINED, "--out", out)
    assert contents(out) == before


def test_other_images_for_an_unfinished_run(complaint, folder):
    flags = (*of_folder(folder), "--train", "standard")
    out = folder.parent / "out"
    assert inside("linear", *flags) == 0
    (out / "card.json").unlink()
    checkpoints = contents(out / "checkpoints")
    Image.new("RGB", (32, 32), "red").save(folder / "train" / "cat" / "3.png")
    assert f"--data-dir: expected the images that {out} began with" in complaint("linear", *flags)
    assert contents(out / "checkpoints") == checkpoints


def test_a_rate_that_is_far_too_large(complaint, tmp_path, capsys):
    flags = (*TINY, "--train", "standard", "--epochs", "9", "--lr", "1e30", "--out", tmp_path)
    assert inside("finetune", *flags) == 2
    assert "expected a finite loss" in capsys.readouterr().err.splitlines()[-1]


def test_a_bug_is_no_mistake_of_the_user(tmp_path, monkeypatch):
    with scripts_importable():
        from _common import run_folder

        monkeypatch.setattr(run_folder, "save", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            inside("pretrain", *TINY, "--out", tmp_path)
