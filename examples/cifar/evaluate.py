"""Evaluate a classifier to the full: what it gets right, under which attacks, and whether that can be believed.

    python examples/cifar/evaluate.py --model runs/DS-trades/final.safetensors --data cifar10 --out runs/DS-evaluation
    python examples/cifar/evaluate.py --model runs/1/final.safetensors,runs/2/final.safetensors --out runs/evaluation
    python examples/cifar/evaluate.py --model runs/quickstart/models/seed0-DS-finetune.safetensors --out runs/quick

Several models, separated by commas, are seeds of one result. Writes ``result.json``, a card for
``advcontrast.evaluation.ResultCard.read``, and pictures of images and branches to ``--out``. ``compare.py`` makes the
table and the other figures of one or several cards. In the card:

- TA, accuracy on clean images; RA, under PGD-20; APGD, under 50 steps of Auto-PGD on DLR; AA, under AutoAttack (needs
  pyautoattack): all on the same images, with the verdict on each.
- Accuracy against the radius and against the steps of the attack.
- Accuracy under common corruptions: CIFAR-10-C with ``--cifar10c``, otherwise those that can be computed.
- UAR, accuracy under seven unforeseen attacks at their six calibrated sizes (``--uar-steps``, 200 is usual; images of
  32 x 32 pixels).
- How far attacks move the features, which needs no labels.
- Alarms for masked gradients.
- With ``--encoder``, a dual encoder of pretrain.py: how far its branches have grown apart, and a picture of both.

AutoAttack continues where it was when the script is started again; the rest starts anew.

Presets: ``full`` does all but UAR, ``quick`` leaves out AutoAttack too.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from experiment import EVALUATION_BATCH, begin
from flags import Common, flag, start
from subjects import Subject, dual_encoder, subject
from torch import nn

from advcontrast import PGDAttack, bn_branch
from advcontrast.attacks import APGDAttack, ClassificationObjective, under_attack
from advcontrast.augment import CORRUPTIONS
from advcontrast.data import cifar10_c
from advcontrast.evaluation import (
    Accuracy,
    Alarm,
    ResultCard,
    accuracy,
    autoattack,
    branch_gap,
    corruption_accuracy,
    gradient_masking,
    label_free_robustness,
    robust_accuracy,
    robust_curve,
    uar,
)
from advcontrast.evaluation.accuracy import corrupted
from advcontrast.evaluation.cards import CurveRecord, revision
from advcontrast.evaluation.plots import plot_branches, plot_images
from advcontrast.evaluation.uar import CALIBRATIONS

FRACTIONS = (0, 0.25, 0.5, 0.75, 1, 1.5, 2)  # of the radius
STEPS = (0, 1, 2, 5, 10, 20, 50)


@dataclass(kw_only=True)
class Settings(Common):
    """What evaluation can be told beside the common flags; the network is told by its file."""

    model: str = flag("", "final.safetensors of a classifier (required); of several seeds, separated by commas")
    name: str = flag("", "what to call the result; by default the name of --out")
    encoder: str = flag("", "final.safetensors of a dual encoder, for the gap between its branches and their picture")
    autoattack: bool = flag(True, "run AutoAttack")
    cifar10c: str = flag("", "folder of CIFAR-10-C; empty for computed corruptions")
    uar_steps: int = flag(0, "steps of the unforeseen attacks; 0 leaves them out")
    probe_images: int = flag(256, "images for curves, unforeseen attacks, features and alarms")


def main(settings: Settings) -> None:
    """Evaluate, and write what was found."""
    paths = [path for path in settings.model.split(",") if path]
    if not paths:
        raise ValueError("--model: expected the file of a classifier, got nothing. Make one with finetune.py.")
    subjects = [subject(path, settings) for path in paths]
    dual = dual_encoder(settings) if settings.encoder else None
    experiment = begin(settings)
    if experiment is None:
        return
    first = subjects[0]
    pgd = PGDAttack(eps=first.eps, step_size=first.eps / 4 or 1 / 255, steps=20)
    verdicts, attacks = robustness(subjects, settings, pgd, experiment.folder)
    probe = [one.batches(settings.probe_images) for one in subjects]
    features = [asdict(label_free_robustness(one.model[0], x, pgd)) for one, x in zip(subjects, probe, strict=True)]
    gap = {} if dual is None else {f"branch_gap_{name}": v for name, v in asdict(branch_gap(dual, probe[0])).items()}
    card = ResultCard.from_verdicts(
        settings.name or Path(settings.out).name,
        verdicts,
        seeds=range(len(subjects)),
        data=f"{settings.data}, {len(first.images)} images",
        fingerprint=first.images.fingerprint(),
        branch=first.branch,
        device=first.images.x.device,
        revision=revision(Path(__file__).parent),
        attacks=attacks,
        settings={"probe_images": settings.probe_images, "uar_steps": settings.uar_steps},
        curves=curves(subjects, settings, pgd),
        corruptions=mean_of([corruptions(one, settings) for one in subjects]),
        label_free=mean_of(features) | gap,
        alarms=[alarm for seed, one in enumerate(subjects) for alarm in alarms(one, seed, settings, pgd)],
    )
    card.write(experiment.folder / "result.json")
    draw_images(first, pgd, experiment.folder / "images.png")
    if dual is not None:
        draw_branches(dual, first, settings, experiment.folder / "branches.png")
    experiment.record(finished=True, results={metric: found.mean for metric, found in card.results.items()})
    print(card)


def robustness(
    subjects: Sequence[Subject], settings: Settings, pgd: PGDAttack, folder: Path
) -> tuple[dict[str, list[Accuracy]], dict[str, Any]]:
    """Return the verdicts on all images without attack and under attacks, and what these attacks are."""
    apgd = APGDAttack(eps=pgd.eps, steps=50, loss="dlr")
    verdicts = {"TA": [accuracy(one.model, one.batches()) for one in subjects]}
    attacks: dict[str, Any] = {"RA": pgd, "APGD": apgd}
    for metric, attack in attacks.items():
        verdicts[metric] = [robust_accuracy(one.model, one.batches(), attack) for one in subjects]
    if settings.autoattack:
        attacks["AA"] = {"type": "AutoAttack, and PGD as for RA", "version": "standard", "eps": pgd.eps, "norm": "linf"}
        verdicts["AA"] = []
        for seed, (one, ra) in enumerate(zip(subjects, verdicts["RA"], strict=True)):
            found = autoattack(one.model, one.batches(), eps=pgd.eps, folder=folder / "autoattack" / str(seed))
            # An image that either turned is not robust.
            verdicts["AA"].append(Accuracy(found.correct & ra.correct))
    return verdicts, attacks


def curves(subjects: Sequence[Subject], settings: Settings, pgd: PGDAttack) -> dict[str, CurveRecord]:
    """Return accuracies along radius and steps, and at the six sizes of unforeseen attacks, averaged over seeds."""
    probe = [(one.model, one.batches(settings.probe_images)) for one in subjects]
    radii = [fraction * pgd.eps for fraction in FRACTIONS]
    along_eps = [robust_curve(model, batches, pgd, eps=radii) for model, batches in probe]
    along_steps = [robust_curve(model, batches, pgd, steps=STEPS) for model, batches in probe]
    found = {"eps": mean_curve("eps", radii, along_eps), "steps": mean_curve("steps", STEPS, along_steps)}
    if settings.uar_steps:
        for name, calibration in CALIBRATIONS.items():
            runs = [uar(model, batches, name, steps=settings.uar_steps) for model, batches in probe]
            found[name] = mean_curve("eps", calibration.eps, runs)
    return found


def mean_curve(parameter: str, values: Sequence[float], runs: Sequence[Any]) -> CurveRecord:
    """Return the mean of the accuracies of several runs at each value."""
    accuracies = zip(*(run.accuracies for run in runs), strict=True)
    return CurveRecord(parameter, tuple(values), tuple(map(fmean, accuracies)))


def corruptions(one: Subject, settings: Settings) -> Mapping[str, float]:
    """Return the accuracy under each corruption, averaged over severities."""
    if settings.cifar10c:
        files = cifar10_c(settings.cifar10c)
        conditions: Iterable[Any] = ((name, level, part.batches(EVALUATION_BATCH)) for name, level, part in files)
    else:
        gray = one.images.x.shape[1] == 1
        names = [name for name in CORRUPTIONS if not (gray and name == "saturate")]  # gray has no saturation
        conditions = corrupted(one.batches(), names=names, device=one.images.x.device)
    return corruption_accuracy(one.model, conditions).by_corruption


def alarms(one: Subject, seed: int, settings: Settings, pgd: PGDAttack) -> list[Alarm]:
    """Look for masked gradients; a model that is right on less than two images has nothing to mask."""
    probe = one.batches(settings.probe_images)
    if accuracy(one.model, probe).correct.sum() < 2:
        return []
    found = gradient_masking(one.model, probe, pgd, images=settings.probe_images).alarms
    return [replace(alarm, name=f"seed {seed}: {alarm.name}") for alarm in found]


def mean_of(runs: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Return the mean over the runs of each entry."""
    return {name: fmean(run[name] for run in runs) for name in runs[0]}


def draw_images(one: Subject, pgd: PGDAttack, path: Path) -> None:
    """Draw an image of each class, what the attack makes of it, and the difference."""
    chosen = [int((one.images.y == label).nonzero()[0, 0]) for label in one.images.y.unique().tolist()[:8]]
    x, y = next(one.images.subset(torch.tensor(chosen)).batches(len(chosen)))
    with under_attack(one.model), torch.no_grad():
        adv = pgd(ClassificationObjective(one.model, y), x, generator=torch.Generator(x.device).manual_seed(0))
        before, after = one.model(x).argmax(1), one.model(adv).argmax(1)
    classes = one.images.classes
    plot_images(x, adv, y=y, clean_predictions=before, adv_predictions=after, classes=classes).savefig(path, dpi=150)


def draw_branches(dual: nn.Module, one: Subject, settings: Settings, path: Path) -> None:
    """Draw the features of both branches in one plane."""
    batches, found = one.batches(settings.probe_images), {}
    for branch in ("clean", "adv"):
        with bn_branch(dual, branch), torch.no_grad():
            found[branch] = torch.cat([dual(x) for x, _ in batches])
    y = torch.cat([labels for _, labels in batches])
    plot_branches(found["clean"], found["adv"], y, classes=one.images.classes).savefig(path, dpi=150)


if __name__ == "__main__":
    start(main, Settings, {"full": {"epochs": 1}, "quick": {"epochs": 1, "autoattack": False}})
