"""Evaluate a classifier: clean accuracy, robust accuracy under several attacks, and checks of its reliability.

    python examples/cifar/evaluate.py --model runs/DS-trades/final.safetensors --data cifar10 --out runs/DS-evaluation
    python examples/cifar/evaluate.py --model runs/1/final.safetensors,runs/2/final.safetensors --out runs/evaluation
    python examples/cifar/evaluate.py --model runs/quickstart/models/seed0-DS-finetune.safetensors --out runs/quick

Several models, separated by commas, count as seeds of one result. Writes ``result.json``, a card for
``advcontrast.evaluation.ResultCard.read``, and pictures of images and branches to ``--out``. ``compare.py`` makes
tables and figures from one or more cards. The card contains:

- The outcome for each test image: TA, clean; RA, under PGD-20; APGD, under 50 steps of Auto-PGD on DLR; AA, under
  AutoAttack (needs pyautoattack).
- Accuracy against radius and steps of the attack; under common corruptions (CIFAR-10-C with ``--cifar10c``, otherwise
  those that can be computed); under seven unforeseen attacks at six calibrated sizes (``--uar-steps``, 200 is usual;
  images of 32 x 32 pixels).
- How far attacks move the features, alarms for gradient masking, and with ``--encoder``, a dual encoder of pretrain.py,
  the distance of its branches.

If the script is started again, AutoAttack resumes; the rest is repeated. Presets: ``full`` does everything except UAR,
``quick`` also omits AutoAttack.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from _common.figures import draw_branches, draw_images
from _common.flags import Common, flag, start
from _common.load_models import BATCH, Classifier, any_classifier, dual_encoder
from _common.report import mean_of
from _common.run_folder import begin
from advcontrast import PGDAttack
from advcontrast.attacks import APGDAttack
from advcontrast.augment import CORRUPTIONS
from advcontrast.data import cifar10_c
from advcontrast.evaluation import Accuracy, Alarm, ResultCard, accuracy, autoattack, gradient_masking, robust_accuracy
from advcontrast.evaluation.accuracy import corrupted, corruption_accuracy, robust_curve
from advcontrast.evaluation.cards import CurveRecord, revision
from advcontrast.evaluation.representation import branch_gap, label_free_robustness
from advcontrast.evaluation.uar import CALIBRATIONS, uar

FRACTIONS = (0, 0.25, 0.5, 0.75, 1, 1.5, 2)  # of the radius
STEPS = (0, 1, 2, 5, 10, 20, 50)


@dataclass(kw_only=True)
class Settings(Common):
    """Flags of the evaluation; the file of a model names its network."""

    model: str = flag("", "final.safetensors of a classifier (required); of several seeds, separated by commas")
    name: str = flag("", "what to call the result; by default the name of --out")
    encoder: str = flag("", "final.safetensors of a dual encoder, for the gap between its branches and their picture")
    autoattack: bool = flag(True, "run AutoAttack")
    cifar10c: str = flag("", "folder of CIFAR-10-C; empty for computed corruptions")
    uar_steps: int = flag(0, "steps of the unforeseen attacks; 0 leaves them out")
    probe_images: int = flag(256, "images for curves, unforeseen attacks, features and alarms")


def main(settings: Settings) -> None:
    """Evaluate, draw the pictures, and write the card."""
    paths = [path for path in settings.model.split(",") if path]
    if not paths:
        raise ValueError("--model: expected the file of a classifier, got nothing. Make one with finetune.py.")
    models = [any_classifier(path, settings) for path in paths]
    dual = dual_encoder(settings) if settings.encoder else None
    run = begin(settings, card="result.json")
    if run is None:
        return
    first, few = models[0], settings.probe_images
    pgd = PGDAttack(eps=first.eps, step_size=first.eps / 4 or 1 / 255, steps=20)
    verdicts, attacks = robustness(models, settings, pgd, run.folder)
    features = mean_of([asdict(label_free_robustness(one.model[0], one.batches(few), pgd)) for one in models])
    draw_images(first, pgd).savefig(run.folder / "images.png", dpi=150)
    if dual is not None:
        gap = asdict(branch_gap(dual, first.batches(few)))
        features |= {f"branch_gap_{name}": value for name, value in gap.items()}
        draw_branches(dual, first, few).savefig(run.folder / "branches.png", dpi=150)
    card = ResultCard.from_verdicts(
        settings.name or run.folder.resolve().name,
        verdicts,
        seeds=range(len(models)),
        data=first.images,
        branch=first.branch,
        device=first.images.x.device,
        revision=revision(Path(__file__).parent),
        attacks=attacks,
        settings=run.about,
        curves=curves(models, settings, pgd),
        corruptions=mean_of([corruptions(one, settings) for one in models]),
        label_free=features,
        alarms=[alarm for seed, one in enumerate(models) for alarm in alarms(one, seed, few, pgd)],
    )
    card.write(run.folder / "result.json")
    print(card)


def robustness(
    models: Sequence[Classifier], settings: Settings, pgd: PGDAttack, folder: Path
) -> tuple[dict[str, list[Accuracy]], dict[str, Any]]:
    """Return the outcomes for all images without and under attack, and the attacks."""
    attacks: dict[str, Any] = {"RA": pgd, "APGD": APGDAttack(eps=pgd.eps, steps=50, loss="dlr")}
    verdicts = {"TA": [accuracy(one.model, one.batches()) for one in models]}
    for metric, attack in attacks.items():
        verdicts[metric] = [robust_accuracy(one.model, one.batches(), attack) for one in models]
    if settings.autoattack:
        attacks["AA"] = {"type": "AutoAttack, and PGD as for RA", "version": "standard", "eps": pgd.eps, "norm": "linf"}
        verdicts["AA"] = []
        for seed, (one, ra) in enumerate(zip(models, verdicts["RA"], strict=True)):
            aa = autoattack(one.model, one.batches(), eps=pgd.eps, folder=folder / "autoattack" / str(seed))
            verdicts["AA"].append(Accuracy(aa.correct & ra.correct))  # robust against both
    return verdicts, attacks


def curves(models: Sequence[Classifier], settings: Settings, pgd: PGDAttack) -> dict[str, CurveRecord]:
    """Return accuracies along radius and steps, and at the six sizes of unforeseen attacks, averaged over seeds."""
    probe = [(one.model, one.batches(settings.probe_images)) for one in models]
    radii = [fraction * pgd.eps for fraction in FRACTIONS]
    runs: dict[str, list[Any]] = {"eps": [robust_curve(*one, pgd, eps=radii) for one in probe]}
    runs["steps"] = [robust_curve(*one, pgd, steps=STEPS) for one in probe]
    for name in CALIBRATIONS if settings.uar_steps else ():
        runs[name] = [uar(*one, name, steps=settings.uar_steps) for one in probe]
    means = {name: tuple(map(fmean, zip(*(run.accuracies for run in own), strict=True))) for name, own in runs.items()}
    values = {"eps": radii, "steps": STEPS, **{name: calibration.eps for name, calibration in CALIBRATIONS.items()}}
    parameter = dict.fromkeys(runs, "eps") | {"steps": "steps"}
    return {name: CurveRecord(parameter[name], tuple(values[name]), mean) for name, mean in means.items()}


def corruptions(one: Classifier, settings: Settings) -> Mapping[str, float]:
    """Return the accuracy under each corruption, averaged over severities."""
    if settings.cifar10c:
        files = cifar10_c(settings.cifar10c)
        conditions: Any = ((name, level, part.batches(BATCH)) for name, level, part in files)
    else:
        gray = one.images.x.shape[1] == 1
        names = [name for name in CORRUPTIONS if not (gray and name == "saturate")]  # gray has no saturation
        conditions = corrupted(one.batches(), names=names, device=one.images.x.device)
    return corruption_accuracy(one.model, conditions).by_corruption


def alarms(one: Classifier, seed: int, few: int, pgd: PGDAttack) -> list[Alarm]:
    """Check for gradient masking, unless the model is correct on fewer than two images."""
    if accuracy(one.model, one.batches(few)).correct.sum() < 2:
        return []
    found = gradient_masking(one.model, one.batches(few), pgd, images=few).alarms
    return [replace(alarm, name=f"seed {seed}: {alarm.name}") for alarm in found]


if __name__ == "__main__":
    start(main, Settings, {"full": {"epochs": 1}, "quick": {"epochs": 1, "autoattack": False}})
