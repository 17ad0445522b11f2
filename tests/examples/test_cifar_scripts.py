"""The CIFAR scripts on few images: what they write, how they continue, what they select, which numbers they have."""

import csv
import json
import signal
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from advcontrast import PGDAttack
from advcontrast.data import train_validation_split
from advcontrast.engine import Checkpoint, steps_per_epoch
from advcontrast.evaluation import ResultCard
from advcontrast.models import pretrained, resnet18
from advcontrast.optim import WarmupCosine
from tests.examples.cifar import (
    CIFAR,
    FEW,
    RESNET,
    TINY,
    about,
    card,
    contents,
    flags_of,
    inside,
    interrupted,
    module,
    process,
    training,
    weights,
)

PRETRAIN = (*FEW, *RESNET, "--epochs", "4", "--batch-size", "20", "--attack-steps", "1", "--save-every", "1")
SEMI = (*TINY, "--epochs", "2", "--labels", "0.2", "--teacher-epochs", "3", "--save-every", "1")
SCRIPTS = ("pretrain", "finetune", "linear", "semisupervised", "corruptions")


def rows(out):
    with (out / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def branch_of(out, branch):
    """Return the encoder in a folder with the norms of one branch, under the names that it has without the other."""
    other = {"clean": ".adv.", "adv": ".clean."}[branch]
    ours = {name: w for name, w in weights(out).items() if name.startswith("encoder.") and other not in name}
    return {name.replace(f".{branch}.", "."): w for name, w in ours.items()}


def embedded_labels():
    with np.load(CIFAR.parent / "data" / "fashion-mini.npz") as file:
        return torch.from_numpy(file["train_labels"]).long()


def settings_of(script, *flags):
    """Return the settings that a script makes of its flags."""
    own = module(script)
    presets = getattr(own, "PRESETS", {"default": {"epochs": 1}})
    return module("_common.flags").parse(own.Settings, presets, "", [*flags, "--out", "x"])


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def encoder(tmp_path_factory, home):
    """A dual encoder, pre-trained by a process of its own."""
    out = tmp_path_factory.mktemp("runs") / "new" / "DS"
    done = process("pretrain", *PRETRAIN, "--out", out, home=home)
    assert done.returncode == 0, done.stderr
    return out


@pytest.fixture(scope="module")
def classifier(tmp_path_factory, encoder, home):
    """A classifier, fine-tuned from it by a process of its own."""
    out = tmp_path_factory.mktemp("runs") / "trades"
    done = process("finetune", *TINY, *start_from(encoder), "--epochs", "3", "--out", out, home=home)
    assert done.returncode == 0, done.stderr
    return out


def start_from(out):
    return (*RESNET, "--encoder", str(out / "final.safetensors"))


def test_pretraining_writes_the_files_of_a_run(encoder):
    names = {path.name for path in encoder.iterdir()}
    assert names == {"card.json", "checkpoints", "final.safetensors", "metrics.csv", "run.json", "source", "split.json"}
    assert [row["epoch"] for row in rows(encoder)] == ["1", "2", "3", "4"]
    for script in ("pretrain.py", "_common/flags.py", "baselines/selfie.py"):
        assert (encoder / "source" / script).read_bytes() == (CIFAR / script).read_bytes()


def test_the_card_describes_the_run(encoder):
    found = card(encoder)
    assert found.settings["script"] == "pretrain.py"
    assert {"seed": 1, "mode": "DS", "width": 4, "limit": 60, "epochs": 4}.items() <= found.settings["flags"].items()
    assert found.settings["flags"] == flags_of(encoder)
    assert found.versions["torch"] == torch.__version__
    assert (found.seeds, found.images) == ((1,), 20)
    assert found.attacks["RA"]["steps"] == 20
    assert training(encoder)["loss"] > 0
    assert {len(digest) for digest in found.settings["data"].values()} == {64}  # a SHA-256


def test_pretraining_writes_the_dual_encoder_with_its_head(encoder):
    names = weights(encoder).keys()
    assert {name.partition(".")[0] for name in names} == {"encoder", "head"}
    assert {"encoder.bn1.clean.weight", "encoder.bn1.adv.running_mean"} <= names
    assert about(encoder)["norms"] == "dual"


def test_a_finished_run_is_reported_and_stays_as_it_is(encoder, capsys):
    before = contents(encoder)
    assert inside("pretrain", *PRETRAIN, "--out", encoder) == 0
    assert f"{encoder} is finished: ResultCard('DS' on 20 images" in capsys.readouterr().out
    assert contents(encoder) == before


@pytest.mark.slow
def test_killed_and_ended_pretraining_resumes_to_the_same_weights(encoder, tmp_path, home):
    out, kept = tmp_path / "out", tmp_path / "out" / "checkpoints"
    flags = (*PRETRAIN, "--out", out)
    assert interrupted("pretrain", *flags, home=home, at=kept / "step-00000001") == -signal.SIGKILL
    assert interrupted("pretrain", *flags, home=home, at=kept / "step-00000003", number=signal.SIGTERM) == 0
    assert interrupted("pretrain", *flags, home=home, at=kept / "step-00000007") == -signal.SIGKILL
    assert not (out / "final.safetensors").exists()
    done = process("pretrain", *flags, home=home)
    assert done.returncode == 0, done.stderr
    assert equal(weights(out), weights(encoder))
    assert [row["loss"] for row in rows(out)] == [row["loss"] for row in rows(encoder)]
    assert (out / "final.safetensors").read_bytes() == (encoder / "final.safetensors").read_bytes()


@pytest.mark.slow
@pytest.mark.nightly
def test_semi_supervised_training_killed_in_either_step_resumes_to_the_same_weights(encoder, tmp_path, home):
    flags = (*SEMI, *start_from(encoder))
    assert inside("semisupervised", *flags, "--out", tmp_path / "whole") == 0
    out = tmp_path / "out"
    flags = (*flags, "--out", out)
    teacher = out / "teacher" / "checkpoints" / "step-00000001"
    assert interrupted("semisupervised", *flags, home=home, at=teacher) == -signal.SIGKILL
    # The first checkpoint of step iii; a kill before it starts step iii anew, with the random numbers of the teacher.
    assert interrupted("semisupervised", *flags, home=home, at=out / "teacher" / "logits.safetensors") < 0
    assert interrupted("semisupervised", *flags, home=home, at=out / "checkpoints" / "step-00000003") < 0
    done = process("semisupervised", *flags, home=home)
    assert done.returncode == 0, done.stderr
    assert equal(weights(out), weights(tmp_path / "whole"))
    assert training(out) == training(tmp_path / "whole")
    assert card(out).results == card(tmp_path / "whole").results


def test_sigterm_outside_the_training_loop_ends_with_status_0_and_loses_nothing(tmp_path, monkeypatch):
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(ResultCard, "from_verdicts", lambda *a, **k: signal.raise_signal(signal.SIGTERM))
        before = signal.getsignal(signal.SIGTERM)
        assert inside("finetune", *TINY, "--out", out) == 0
    assert signal.getsignal(signal.SIGTERM) is before
    assert not (out / "card.json").exists()
    assert inside("finetune", *TINY, "--out", out) == 0
    assert (out / "card.json").exists()


@pytest.mark.parametrize(
    ("mode", "dual"), [("S2S", False), ("A2A", False), ("A2S", True), ("DS", True), ("selfie", False)]
)
@pytest.mark.sample(2)
def test_a_mode_has_the_norms_of_the_paper(mode, dual, tmp_path):
    assert inside("pretrain", *TINY, *RESNET, "--mode", mode, "--out", tmp_path) == 0
    assert any(".clean." in name for name in weights(tmp_path)) == dual
    assert any(".adv." in name for name in weights(tmp_path)) == dual
    assert (about(tmp_path)["norms"], about(tmp_path)["mode"]) == ("dual" if dual else "single", mode)


@pytest.mark.filterwarnings("ignore::UserWarning")  # that this is an ablation
@pytest.mark.parametrize(("mode", "norms"), [("DS", "single"), ("A2S", "single"), ("S2S", "dual")])
@pytest.mark.sample(1)
def test_norms_can_be_chosen_against_the_paper(mode, norms, tmp_path):
    assert inside("pretrain", *TINY, "--mode", mode, "--norms", norms, "--out", tmp_path) == 0
    assert any(".adv." in name for name in weights(tmp_path)) == (norms == "dual")
    assert about(tmp_path)["norms"] == norms


@pytest.mark.nightly
def test_the_encoder_of_selfie_can_be_fine_tuned(tmp_path, capsys):
    assert inside("pretrain", *TINY, *RESNET, "--mode", "selfie", "--out", tmp_path / "selfie") == 0
    flags = (*TINY, *start_from(tmp_path / "selfie"), "--train", "standard", "--lr", "1e-30")
    assert inside("finetune", *flags, "--out", tmp_path / "out") == 0
    assert "--branch makes no difference" in capsys.readouterr().out
    before, after = weights(tmp_path / "selfie"), weights(tmp_path / "out")
    assert torch.equal(before["encoder.conv1.weight"], after["encoder.conv1.weight"])  # of which 1e-30 is no part


@pytest.mark.parametrize(
    "arch", [pytest.param("torchvision/shufflenet_v2_x0_5", marks=pytest.mark.nightly), "test_resnet"]
)
def test_networks_of_other_libraries_go_through_both_scripts(arch, tmp_path):
    flags = (*TINY, "--arch", arch)
    assert inside("pretrain", *flags, "--out", tmp_path / "DS") == 0
    encoder = ("--encoder", tmp_path / "DS" / "final.safetensors")
    assert inside("linear", *flags, *encoder, "--out", tmp_path / "linear") == 0
    assert about(tmp_path / "linear")["arch"] == arch


@pytest.mark.parametrize("script", ["finetune", "linear"])
def test_a_classifier_has_ta_and_ra_in_its_card_and_a_curve(script, encoder, tmp_path):
    assert inside(script, *TINY, *start_from(encoder), "--train", "standard", "--out", tmp_path) == 0
    results = card(tmp_path).results
    assert 0 <= results["RA"].mean <= results["TA"].mean <= 1
    assert {"epoch", "loss", "train_ta", "val_ta"} <= rows(tmp_path)[0].keys()
    assert weights(tmp_path)["head.weight"].shape[0] == 10
    assert (tmp_path / "checkpoints").is_dir()


@pytest.mark.parametrize("train", ["standard", "adversarial"])
@pytest.mark.sample(1)
def test_a_linear_classifier_leaves_the_encoder_of_either_branch_as_in_the_file(train, encoder, tmp_path):
    found = {}
    for branch in ("clean", "adv"):
        flags = (*TINY, *start_from(encoder), "--train", train, "--branch", branch, "--epochs", "2")
        assert inside("linear", *flags, "--out", tmp_path / branch) == 0
        found[branch] = weights(tmp_path / branch)
        frozen = {name: w for name, w in found[branch].items() if name.startswith("encoder.")}
        assert equal(frozen, branch_of(encoder, branch))
    assert not torch.equal(found["clean"]["head.weight"], found["adv"]["head.weight"])


@pytest.mark.parametrize(("name", "branch"), [("ds", "clean"), ("ds", "adv"), ("deacl", None), ("s2s", None)])
@pytest.mark.sample(2)
def test_a_linear_classifier_on_an_encoder_of_the_package(name, branch, tmp_path):
    name = f"resnet18w16-cifar10-{name}"
    network = ("--arch", "resnet18", "--width", "16", "--encoder", name, "--branch", branch or "adv")
    flags = (*TINY, *network, "--train", "standard")
    assert inside("linear", *flags, "--out", tmp_path) == 0
    frozen = {key.removeprefix("encoder."): w for key, w in weights(tmp_path).items() if key.startswith("encoder.")}
    assert equal(frozen, pretrained(name, branch=branch).state_dict())


def test_fine_tuning_starts_from_the_encoder_and_moves_it(encoder, tmp_path):
    for branch, other in (("clean", "adv"), ("adv", "clean")):
        flags = (*TINY, *start_from(encoder), "--branch", branch, "--train", "standard", "--lr", "0.01")
        assert inside("finetune", *flags, "--out", tmp_path / branch) == 0
        after = weights(tmp_path / branch)
        near, far = (branch_of(encoder, b)["encoder.bn1.weight"] for b in (branch, other))
        assert 0 < (after["encoder.bn1.weight"] - near).abs().max() < 0.005 < (near - far).abs().max()


def test_the_epoch_with_the_best_robust_accuracy_is_selected(classifier):
    curve = [float(row["val_ra"]) for row in rows(classifier)]
    assert training(classifier) == {"val_ra": max(curve), "epoch": 1 + curve.index(max(curve))}


def test_the_final_weights_are_those_of_the_selected_epoch(classifier):
    _, state = Checkpoint(classifier / "checkpoints").load()
    assert state["best"]["epoch"] == training(classifier)["epoch"]
    best = {name.removeprefix("model."): w for name, w in state["best"]["weights"].items()}
    assert equal(best, weights(classifier))


def test_standard_training_selects_by_standard_accuracy(tmp_path):
    flags = (*TINY, "--epochs", "4", "--train", "standard", "--evaluate-every", "2")
    assert inside("finetune", *flags, "--out", tmp_path) == 0
    curve = {int(row["epoch"]): float(row["val_ta"]) for row in rows(tmp_path) if row["val_ta"]}
    assert list(curve) == [1, 2, 4]
    assert training(tmp_path)["epoch"] == max(curve, key=curve.get)


def test_a_folder_of_images_can_be_trained_on(tmp_path, home):
    random = np.random.default_rng(0)
    for split in ("train", "test"):
        for name in ("cat", "dog"):
            (tmp_path / split / name).mkdir(parents=True)
            for i in range(12):
                pixels = random.integers(0, 256, (36, 48, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / split / name / f"{i}.png")
    flags = ("--data", "folder", "--data-dir", tmp_path, "--width", "4", "--epochs", "1", "--attack-steps", "1")
    done = process("linear", *flags, "--batch-size", "8", "--out", tmp_path / "out", home=home)
    assert done.returncode == 0, done.stderr
    assert about(tmp_path / "out")["classes"] == 2
    assert flags_of(tmp_path / "out")["data"] == "folder"


def test_limit_takes_the_first_images_of_a_seeded_shuffle(tmp_path):
    for limit in (40, 60):
        assert inside("linear", *TINY, "--train", "standard", "--limit", limit, "--out", tmp_path / str(limit)) == 0
        split = json.loads((tmp_path / str(limit) / "split.json").read_text())
        first = torch.randperm(len(embedded_labels()), generator=torch.Generator().manual_seed(1))[:limit]
        train, validation = train_validation_split(limit)
        assert split["train"] == first[train].tolist()
        assert split["validation"] == first[validation].tolist()


def test_the_images_are_those_of_the_split(tmp_path):
    images = module("_common.images").load(settings_of("finetune", *FEW, "--seed", "3"))
    every = module("_common.images").load(settings_of("finetune", "--data", "embedded"))
    for name in ("train", "validation"):
        part = getattr(images, name)
        assert torch.equal(part.x, every.everything.x[images.split[name]])
        assert torch.equal(part.y, embedded_labels()[images.split[name]])
    assert (len(images.train), len(images.validation), len(images.test)) == (54, 6, 20)


def test_another_seed_takes_other_images(tmp_path):
    splits = [module("_common.images").load(settings_of("finetune", *FEW, "--seed", seed)).split for seed in ("1", "2")]
    assert set(splits[0]["train"].tolist()) != set(splits[1]["train"].tolist())


@pytest.fixture(scope="module")
def semi(tmp_path_factory, encoder, home):
    out = tmp_path_factory.mktemp("runs") / "semi"
    done = process("semisupervised", *SEMI, *start_from(encoder), "--out", out, home=home)
    assert done.returncode == 0, done.stderr
    return out


def test_semi_supervised_training_reports_its_pseudo_labels(semi):
    assert {"epoch", "val_ra", "teacher_ta", "pseudo_label_accuracy"} == training(semi).keys()
    assert 0 <= training(semi)["pseudo_label_accuracy"] <= 1
    assert (semi / "teacher" / "metrics.csv").is_file()


def test_the_pseudo_label_accuracy_is_that_of_the_images_without_label(semi):
    from safetensors.torch import load_file

    split = json.loads((semi / "split.json").read_text())
    logits = load_file(semi / "teacher" / "logits.safetensors")["logits"]
    unlabelled = [i for i, image in enumerate(split["train"]) if image not in split["labelled"]]
    truth = embedded_labels()[torch.tensor(split["train"])[unlabelled]]
    right = (logits[unlabelled].argmax(1) == truth).float().mean().item()
    assert training(semi)["pseudo_label_accuracy"] == pytest.approx(right)


def test_the_labelled_images_are_as_many_of_each_class_and_all_for_training(semi):
    split = json.loads((semi / "split.json").read_text())
    counts = embedded_labels()[split["labelled"]].bincount(minlength=10)
    assert counts.tolist() == [1] * 10
    assert set(split["labelled"]) <= set(split["train"])
    assert not set(split["labelled"]) & set(split["validation"])


def test_the_teacher_and_the_student_start_from_the_branches_they_are_told(encoder, tmp_path):
    flags = (*SEMI, *start_from(encoder), "--lr", "1e-6", "--epochs", "1", "--teacher-epochs", "1")
    assert inside("semisupervised", *flags, "--out", tmp_path) == 0
    teacher = Checkpoint(tmp_path / "teacher" / "checkpoints").load()[1]["learner"]["model.encoder.bn1.weight"]
    clean, adv = (branch_of(encoder, branch)["encoder.bn1.weight"] for branch in ("clean", "adv"))
    assert (teacher - clean).abs().max() < 1e-5 < (clean - adv).abs().max()
    assert (weights(tmp_path)["encoder.bn1.weight"] - adv).abs().max() < 1e-5


@pytest.mark.parametrize("method", ["ot", "ft", "uat++"])
@pytest.mark.sample(1)
def test_uat_runs_from_a_random_encoder(method, tmp_path):
    flags = (*SEMI, "--epochs", "1", "--teacher-epochs", "1", "--method", method)
    assert inside("semisupervised", *flags, "--out", tmp_path) == 0
    assert card(tmp_path).settings["flags"]["method"] == method


def test_all_labels_leave_no_pseudo_labels(tmp_path):
    flags = (*SEMI, "--epochs", "1", "--teacher-epochs", "1", "--labels", "1")
    assert inside("semisupervised", *flags, "--out", tmp_path) == 0
    assert training(tmp_path)["pseudo_label_accuracy"] is None


def test_corruptions_are_tested_on_a_classifier(classifier, tmp_path, home):
    flags = ("--model", classifier / "final.safetensors", "--out", tmp_path)
    done = process("corruptions", *FEW, *RESNET, *flags, home=home)
    assert done.returncode == 0, done.stderr
    found = card(tmp_path).corruptions
    assert len(found) == 10
    assert training(tmp_path)["mean"] == pytest.approx(sum(found.values()) / 10)
    assert torch.equal(card(tmp_path).verdicts["TA"][0], card(classifier).verdicts["TA"][0])
    assert equal(weights(tmp_path), weights(classifier))


def test_half_precision_trains(tmp_path):
    assert inside("pretrain", *TINY, "--amp", "bf16", "--out", tmp_path) == 0
    assert training(tmp_path)["loss"] > 0


def test_a_run_may_lie_inside_the_folder_of_the_scripts(tmp_path, monkeypatch):
    run_folder = module("_common.run_folder")
    (tmp_path / "pretrain.py").write_text("pass\n")
    monkeypatch.setattr(run_folder, "SCRIPTS", tmp_path)
    monkeypatch.setattr(sys, "argv", ["pretrain.py"])
    settings = settings_of("pretrain")
    settings.out = str(tmp_path / "runs" / "DS")
    run_folder.begin(settings)
    files = [path.name for path in Path(settings.out, "source").rglob("*") if path.is_file()]
    assert files == ["pretrain.py"]


@pytest.mark.parametrize("script", [*SCRIPTS, "tables"])
def test_help_ends_with_status_0(script, capsys):
    assert inside(script, "--help") == 0
    assert "--data" in capsys.readouterr().out


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_script_has_the_common_flags(script):
    flags = "--data embedded --data-dir d --seed 2 --epochs 3 --batch-size 4 --width 5 --limit 6"
    given = settings_of(script, *flags.split(), "--device", "auto", "--amp", "bf16", "--compile")
    assert (given.data, given.data_dir, given.seed, given.epochs) == ("embedded", "d", 2, 3)
    assert (given.batch_size, given.width, given.limit) == (4, 5, 6)
    assert (given.device, given.amp, given.compile) == ("auto", "bf16", True)


def test_a_flag_overrides_its_preset():
    given = settings_of("pretrain", "--preset", "fast", "--attack-steps", "4")
    assert (given.epochs, given.attack_steps) == (100, 4)


@pytest.mark.parametrize(("flags", "radius"), [("", 8 / 255), ("--data embedded", 0.1), ("--eps 0.05", 0.05)])
def test_the_radius_is_that_of_the_images_unless_it_is_given(flags, radius):
    given = settings_of("finetune", *flags.split())
    attack = module("_common.classifiers").protocol_of(given, "AFF", "trades").attack
    assert (attack.eps, attack.step_size) == (radius, radius / 4)


def test_a_radius_of_0_leaves_the_images_alone(tmp_path):
    assert module("_common.attacks").attack_of(settings_of("pretrain", "--eps", "0"), 100).eps == 0
    assert inside("linear", *TINY, "--train", "adversarial", "--eps", "0", "--out", tmp_path) == 0
    results = card(tmp_path).results
    assert results["RA"] == results["TA"]


def test_pretraining_has_the_numbers_of_the_code():
    given = settings_of("pretrain")
    assert (given.epochs, given.batch_size, given.optimizer, given.lr) == (1000, 512, "lars", 5.0)
    assert (given.temperature, given.head, given.min_area) == (0.5, "acl", 0.1)
    attack = module("_common.attacks").attack_of(given, 100)
    assert (attack.eps, attack.step_size, attack.steps) == pytest.approx((8 / 255, 2 / 255, 5))
    assert settings_of("pretrain", "--preset", "code") == given


def test_the_rate_of_pretraining_rises_for_ten_epochs_and_falls_on_a_cosine():
    given, steps = settings_of("pretrain"), steps_per_epoch(50_000, 512)
    assert steps == 98
    schedule = WarmupCosine(given.epochs * steps, warmup=given.warmup * steps)
    rates = [given.lr * schedule(step) for step in (0, 979, 97_999)]
    assert rates == pytest.approx([5 / 980, 5, 0])


def test_the_optimizers_of_pretraining_decay_like_the_code():
    learner = torch.nn.Linear(2, 2)
    for name, momentum in (("lars", 0.9), ("sgd", 0.9), ("adam", None)):
        given = settings_of("pretrain", "--optimizer", name)
        (group,) = module("pretrain").optimizer_of(given, learner).param_groups
        assert group["weight_decay"] == 1e-6
        assert group.get("momentum") == momentum


def test_pretraining_has_the_numbers_of_the_paper():
    given = settings_of("pretrain", "--preset", "paper")
    assert (given.epochs, given.batch_size, given.attack_steps) == (1000, 512, 5)
    assert (given.head, given.min_area, given.spare_norms) == ("simclr", 0.08, True)


def test_pretraining_crops_as_its_flag_asks_without_a_transform():
    given = settings_of("pretrain", "--preset", "paper")
    images = SimpleNamespace(size=32)
    methods = module("_common.methods")
    learner = methods.METHODS["acl"].build(methods.Parts(given, images, resnet18(0, width=2), 16, PGDAttack(), 100))
    assert repr(learner.augment.augment) == "ContrastivePairAugment(32, strength=1.0, min_area=0.08, transform=None)"


def test_a_method_has_presets_of_its_own():
    given = settings_of("pretrain", "--method", "deacl", "--lr", "0.1")
    assert (given.epochs, given.batch_size, given.lr) == (100, 256, 0.1)
    assert settings_of("pretrain", "--method", "deacl", "--preset", "fast").epochs == 20
    assert settings_of("pretrain", "--method", "acl").epochs == 1000


def test_the_fast_preset_costs_a_tenth():
    code, fast = settings_of("pretrain"), settings_of("pretrain", "--preset", "fast")
    assert fast.epochs * 10 == code.epochs
    assert fast.attack_steps * fast.attack_step == 1.5


@pytest.mark.parametrize(
    ("script", "preset", "epochs", "decays"),
    [
        ("finetune", "paper", 25, "15,20"),
        ("finetune", "code", 100, "39,59"),  # at the start of epochs 40 and 60
        ("linear", "paper", 25, "15,20"),
        ("linear", "code", 25, "14,19"),
    ],
)
def test_supervised_training_has_the_numbers_of_paper_and_code(script, preset, epochs, decays):
    given = settings_of(script, "--preset", preset)
    assert (given.epochs, given.milestones, given.batch_size) == (epochs, decays, 128)
    assert (given.lr, given.weight_decay, given.beta) == (0.1, 2e-4, 6.0)
    attack = module("_common.classifiers").protocol_of(given, "AFF", "trades").attack
    assert (attack.eps, attack.step_size, attack.steps) == pytest.approx((8 / 255, 2 / 255, 10))


def test_semi_supervised_training_has_the_numbers_of_the_code():
    given = settings_of("semisupervised")
    assert (given.epochs, given.milestones, given.lr, given.weight_decay) == (15, "4,9", 0.1, 5e-4)
    assert (given.alpha, given.temperature, given.beta, given.attack_steps) == (0.5, 1.0, 6.0, 10)
    assert (given.teacher_epochs, given.teacher_milestones, given.teacher_branch) == (100, "39,59", "clean")
    assert given.branch == "adv"


def test_unknown_presets_of_one_script_are_not_those_of_another(capsys):
    with pytest.raises(SystemExit):
        settings_of("semisupervised", "--preset", "paper")
    assert "invalid choice: 'paper'" in capsys.readouterr().err
