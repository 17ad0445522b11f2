"""The sweep over backbones passes sound networks, names broken ones, and survives those that crash."""

import json
import os
import re
import sys
import time
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import pytest
import timm
import torch
import torchvision
from torch import nn

from advcontrast import convert_to_dual_bn
from benchmarks.evidence.backbones import __main__ as sweep
from benchmarks.evidence.backbones import checks, children, zoo

SHAPES = ((3, 16, 16),)
pytestmark = [
    pytest.mark.nightly,
    pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux"),
]


def check(build, convert=convert_to_dual_bn, **unconverted):
    """Make all checks of one network."""
    architecture = zoo.Architecture("planted", "planted", "planted", build, SHAPES)
    return checks.examine(architecture, convert, checks.CONVERTED, unconverted)


class Small(nn.Module):
    """A sound network; what is planted overrides a part of it."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3, 2), nn.BatchNorm2d(4)
        self.head = nn.Linear(4, 10)

    def features(self, x):
        return self.norm(self.conv(x))

    def forward(self, x):
        return self.head(self.features(x).relu().mean((2, 3)))


class AroundTheNorm(Small):
    """Normalises with the norm for clean images, whatever the branch."""

    def features(self, x):
        return getattr(self.norm, "clean", self.norm)(self.conv(x))


class Cached(Small):
    """Keeps a weight for evaluation and never forgets it."""

    def __init__(self):
        super().__init__()
        self.cache = None

    def forward(self, x):
        if self.training:
            return super().forward(x)
        self.cache = self.head.weight.detach().clone() if self.cache is None else self.cache
        return nn.functional.linear(self.features(x).relu().mean((2, 3)), self.cache, self.head.bias)


class Counting(Small):
    """Counts its forward passes in a parameter, those of an attack too."""

    def __init__(self):
        super().__init__()
        self.passes = nn.Parameter(torch.zeros(()), requires_grad=False)

    def forward(self, x):
        if torch.is_grad_enabled():
            self.passes += 1
        return super().forward(x)


class Random(Small):
    """Draws from a generator that nobody seeds."""

    generator = torch.Generator()

    def forward(self, x):
        return super().forward(x) + torch.rand((), generator=self.generator)


class Dead(Small):
    """Takes no gradient through its norm."""

    def features(self, x):
        return super().features(x).detach() + self.conv(x)


class Infinite(Small):
    def forward(self, x):
        return super().forward(x) / 0


NETWORKS = {
    "shufflenet": partial(torchvision.models.shufflenet_v2_x0_5, num_classes=10),
    "efficientnet": partial(timm.create_model, "test_efficientnet", num_classes=10),
    "repvgg": partial(timm.create_model, "test_byobnet", num_classes=10),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_sound_network_passes_all_checks(name):
    row = check(NETWORKS[name])
    assert (row["status"], row["problems"], row["remarks"]) == ("converted", [], [])


def test_networks_without_batch_norm_pass():
    row = check(
        partial(timm.create_model, "test_convnext", num_classes=10),
        partial(convert_to_dual_bn, norms=sweep.OTHERS),
        **checks.UNCONVERTED,
    )
    assert (row["status"], row["problems"]) == ("converted", [])


@pytest.mark.parametrize(
    ("build", "problem"),
    [
        (AroundTheNorm, "adv branch: MismatchError: state dict of export_branch"),
        (AroundTheNorm, "branches apart: MismatchError: the adv branch has no influence on the outputs"),
        (Cached, "DS step: MismatchError: what the next attack sees"),
        (Counting, "PGD step: MismatchError: state dict after the attack"),
        (Dead, "DS step: MismatchError: no gradients in the clean branch"),
    ],
)
def test_planted_fault_is_named(build, problem):
    row = check(build)
    assert row["status"] == "failed"
    assert problem in "\n".join(row["problems"])


def nudged(model):
    model = convert_to_dual_bn(model)
    with torch.no_grad():
        model.norm.adv.weight[0] *= 1 + 1e-6
    return model


def test_conversion_that_changes_a_bit_is_named():
    clean, adv = check(Small, nudged)["problems"]
    assert clean.startswith("clean branch: MismatchError: idle branch: 1 of 5 tensors differ, by up to")
    assert adv.startswith("adv branch: MismatchError: outputs: 3 of 3 tensors differ")


def test_conversion_of_nothing_is_named():
    problems = check(Small, lambda model: model)["problems"]
    assert "clean branch: MismatchError: nothing was converted" in problems


@pytest.mark.parametrize(
    ("name", "broken", "problem"),
    [
        (
            "export_branch",
            lambda model, branch: model,
            "clean branch: MismatchError: state dict of export_branch: other keys",
        ),
        ("under_attack", lambda model: torch.enable_grad(), "PGD step: MismatchError: state dict after the attack"),
        (
            "bn_branch",
            lambda model, branch: nullcontext(),
            "adv branch: MismatchError: state dict of export_branch: 3 of 9",
        ),
    ],
)
def test_library_function_that_is_broken_is_named(name, broken, problem, monkeypatch):
    monkeypatch.setattr(checks, name, broken)
    problems = check(Small)["problems"]
    assert problem in "\n".join(problems)


@pytest.mark.parametrize(
    ("build", "reason"),
    [
        (Random, "two copies of the network"),
        (Infinite, "not finite for [3, 16, 16]"),
        (partial(nn.Linear, 5, 10), "takes none of the shapes: RuntimeError"),
    ],
)
def test_network_that_cannot_be_examined_is_unfit(build, reason):
    row = check(build)
    assert row["status"] == "unfit"
    assert reason in row["problems"][0]


def test_warning_of_the_conversion_is_a_remark():
    remark = "convert_to_dual_bn: expected a model with batch norms, got none in Sequential"
    row = check(lambda: nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 10)))
    assert any(text.startswith(remark) for text in row["remarks"])


def exhaust(_):
    """Ask for two gigabytes, and touch none of it."""
    return torch.empty(5 * 10**8).numel()


CHILDREN = {
    "returns": (lambda _: {"x": 1}, {"x": 1}),
    "raises": (lambda _: 1 // 0, ("ZeroDivisionError: integer division or modulo by zero", False)),
    "leaves": (lambda _: os._exit(7), ("exited with status 7", False)),
    "crashes": (lambda _: os.kill(os.getpid(), 9), ("killed by SIGKILL", False)),
    "exhausts memory": (exhaust, ("needs more than 1 GB", True)),
    "spins": (lambda _: [None for _ in iter(int, 1)], ("needs more than 1 s", True)),
}


def test_every_end_of_a_child_has_a_name_and_the_others_go_on(monkeypatch):
    monkeypatch.setattr(children, "PATIENCE", 300)  # a busy machine takes long for a second of processor time
    limits = children.Limits(seconds=1, gigabytes=1)
    found = dict(children.each(lambda name: CHILDREN[name][0](name), CHILDREN, jobs=2, limits=limits))
    assert found == {name: expected for name, (_, expected) in CHILDREN.items()}


def test_child_that_hangs_is_ended():
    limits = children.Limits(seconds=0.1, gigabytes=1)
    assert list(children.each(time.sleep, [600], jobs=1, limits=limits)) == [(600, ("no answer within 1 s", True))]


def zoo_of(**builds):
    return [zoo.Architecture("planted", name, name, build, SHAPES) for name, build in builds.items()]


def run_main(monkeypatch, capsys, folder, networks, *flags):
    monkeypatch.setattr(sweep, "architectures", lambda: networks)
    monkeypatch.setattr(sys, "argv", ["backbones", "--out", str(folder), "--gigabytes", "2", *flags])
    sweep.main()
    return capsys.readouterr().out


def test_command_counts_and_names(monkeypatch, capsys, tmp_path):
    networks = zoo_of(sound=Small, broken=AroundTheNorm, random=Random, plain=lambda: nn.Linear(3, 10))
    printed = run_main(monkeypatch, capsys, tmp_path, networks)
    summary, notes = (tmp_path / "batch.md").read_text(), (tmp_path / "batch-notes.md").read_text()
    assert "| planted | 4 | 3 | 2 | 1 | 1 | 1 |" in summary
    assert "| planted | broken | adv branch: MismatchError: state dict" in notes
    assert "| planted | random | MismatchError: two copies of the network" in notes
    assert "sound" not in notes
    assert "| planted | 4 | 3 | 2 | 1 | 1 | 1 |" in printed
    assert f"torch {torch.__version__.split('+')[0]}" in summary
    rows = [json.loads(line) for line in (tmp_path / "batch.jsonl").read_text().splitlines()]
    assert sorted(row["status"] for row in rows) == ["converted", "failed", "unfit"]


def test_rows_are_kept_for_the_same_sources_only(monkeypatch, capsys, tmp_path):
    networks = zoo_of(sound=Small, second=Small)
    assert "planted second: converted" in run_main(monkeypatch, capsys, tmp_path, networks)
    assert "converted" not in run_main(monkeypatch, capsys, tmp_path, networks).partition("##")[0]
    (tmp_path / "batch.jsonl").write_text((tmp_path / "batch.jsonl").read_text().splitlines()[0] + "\n")
    assert run_main(monkeypatch, capsys, tmp_path, networks).count(": converted") == 1
    monkeypatch.setattr(sweep, "sources", lambda: "others")
    assert run_main(monkeypatch, capsys, tmp_path, networks).count(": converted") == 2


def test_smallest_of_a_family_comes_first_and_alone():
    sizes = {"big": 5, "small": 3, "test_tiny": 1, "other": 4, "without": 0}
    known = [zoo.Architecture("s", "o" if name == "other" else "f", name, Small) for name in sizes]
    counted = [
        {"source": "s", "name": name, "parameters": n, "norms": "none" if name == "without" else "batch"}
        for name, n in sizes.items()
    ]
    names = [
        [a.name for a in sweep.select(known, counted, "batch", only=o, family=f)]
        for o, f in (("*", False), ("*", True), ("*t*", False))
    ]
    assert names == [["test_tiny", "small", "other", "big"], ["small", "other"], ["test_tiny", "other"]]


def test_bad_numbers_are_refused(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["backbones", "--jobs", "0"])
    with pytest.raises(SystemExit):
        sweep.main()
    assert re.search("expected --jobs and --seconds of at least 1", capsys.readouterr().err)


def test_catalogue_holds_images_video_and_both_libraries():
    found = {(a.source, a.name): a.family for a in zoo.architectures()}
    assert found["torchvision", "resnet18"] == "resnet"
    assert found["torchvision video", "r3d_18"] == "resnet"
    assert found["torchvision quantizable", "quantized_resnet18"] == "resnet"
    assert found["timm", "repvgg_a0"] == "byobnet"
    assert sum(source == "timm" for source, _ in found) == len(timm.list_models())
