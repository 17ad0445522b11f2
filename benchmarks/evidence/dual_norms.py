"""Compare dual and single batch norms in pre-training with DS (Table 4 of the ACL paper), on small runs.

For each kind of norms an encoder is pre-trained without labels, on Fashion-MNIST at 14 x 14 pixels or on a folder of
images; a linear classifier on the frozen encoder and a fine-tuned network then learn from a few labels per class:

- dual: one set of norms for clean images and one for perturbed ones, as in ACL;
- single: one set, and a forward pass for each stream, so that each has its own batch statistics;
- joint: one set, and one forward pass for both streams, which share their batch statistics.

    python -m benchmarks.evidence.dual_norms --network resnet18 --epochs 15 --seeds 3
    python -m benchmarks.evidence.dual_norms --network resnet18 --folder cifar10 --limit 10000 --labels 50 --eps 0.0314

Appends a line for each finished run to OUT/runs.jsonl, and skips the runs in it. Writes a table and two figures of
training: ``distance.png`` has the distance between the statistics of both branches, see
:func:`advcontrast.evaluation.representation.branch_gap`, and ``statistics.png`` the statistics themselves.
"""

from __future__ import annotations

import argparse
import json
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import nn

from advcontrast import ACLTrainer, ContrastivePairAugment, NTXentLoss, PGDAttack, convert_to_dual_bn, export_branch
from advcontrast.augment import SimCLRAugment
from advcontrast.data import ImageSet, image_folder
from advcontrast.engine import fit
from advcontrast.evaluation import accuracy, robust_accuracy
from advcontrast.evaluation.representation import branch_gap
from advcontrast.models import resnet18, simclr_head
from advcontrast.norm import DualBatchNorm2d
from advcontrast.strategies import AdversarialTrainer, Part, Step, TRADESTrainer
from benchmarks.common import conditions, markdown_table
from benchmarks.evidence import fashion

NORMS = ("dual", "single", "joint")
TRACES = ("gap", "mean clean", "mean adv", "deviation clean", "deviation adv")
SETTINGS = ("data", "limit", "labels", "network", "width", "eps", "attack_steps", "epochs")


class JointTrainer(ACLTrainer):
    """ACL in mode DS on single norms, with one forward pass for all four views."""

    def parts(self, step: Step) -> Iterator[Part]:
        """Yield the losses of both streams."""
        x1, x2 = step.views
        a1, a2 = step.perturb(self.loss, "adv", x1, x2)
        z1, z2, b1, b2 = step.embed("adv", x1, x2, a1, a2)
        yield Part("clean", self.loss(z1, z2))
        yield Part("adv", self.loss(b1, b2))


def run(given: argparse.Namespace, norms: str, seed: int, train: ImageSet, test: ImageSet) -> dict[str, Any]:
    """Return the accuracies of both classifiers, and the distance of the branches after each epoch."""
    torch.manual_seed(seed)
    order = torch.randperm(len(train))
    labelled = train.subset(torch.cat([order[train.y[order] == c][: given.labels] for c in range(len(train.classes))]))
    size, channels = train.x.shape[-1], train.x.shape[1]
    normalize = ((0.5,) * channels, (0.25,) * channels)
    encoder: Any = fashion.Encoder()
    if given.network == "resnet18":
        encoder = resnet18(0, width=given.width, in_channels=channels, normalize=normalize)
    features = 128 if given.network == "small" else encoder.num_features
    model: nn.Module = nn.Sequential(encoder, simclr_head(features, out=64))
    if norms == "dual":
        model = convert_to_dual_bn(model)
    attack = PGDAttack(eps=given.eps, step_size=1.5 * given.eps / given.attack_steps, steps=given.attack_steps)
    kind = JointTrainer if norms == "joint" else ACLTrainer
    acl = kind(model, loss=NTXentLoss(0.3), attack=attack, augment=ContrastivePairAugment(size, strength=0.5))
    few = [test.x[:500].float() / 255]

    def measured(_: int) -> dict[str, float]:
        if norms != "dual":
            return {}
        return {"gap": branch_gap(model[0], few).statistics} | statistics(model[0])

    optimizer = torch.optim.Adam(acl.parameters(), lr=3e-3, weight_decay=1e-6)
    settings: dict[str, Any] = {"optimizer": optimizer, "seed": seed, "evaluate": measured, "progress": False}
    history = fit(acl, train.x, epochs=given.epochs, batch_size=125, amp=given.amp, **settings)
    exported = export_branch(model, "adv")[0] if norms == "dual" else encoder
    found: dict[str, Any] = {name: [row[name] for row in history if name in row] for name in TRACES}
    head = nn.Linear(features, len(train.classes))
    nn.init.zeros_(head.weight)
    classifier = nn.Sequential(OrderedDict(encoder=exported, head=head))
    seven = PGDAttack(eps=given.eps, step_size=given.eps / 4, steps=7)
    weak = SimCLRAugment(size, strength=0.2)
    for protocol in ("linear", "fine-tuned"):
        classifier.requires_grad_(True)
        if protocol == "linear":
            learner: nn.Module = AdversarialTrainer(classifier, attack=seven, augment=weak, frozen=True)
        else:
            learner = TRADESTrainer(classifier, attack=seven, augment=weak)
        trained = [weight for weight in classifier.parameters() if weight.requires_grad]
        rate, images = (0.1, 8000) if protocol == "linear" else (0.03, 16000)
        sgd = torch.optim.SGD(trained, lr=rate, momentum=0.9, nesterov=True, weight_decay=5e-4)
        fit(learner, [labelled.x, labelled.y], epochs=images // len(labelled), optimizer=sgd, progress=False)
        classifier.eval()
        batches = list(test.batches(500))
        twenty = PGDAttack(eps=given.eps, step_size=given.eps / 4, steps=20)
        ra = robust_accuracy(classifier, batches, twenty).accuracy
        found[protocol] = [accuracy(classifier, batches).accuracy, ra]
    return found


def statistics(encoder: nn.Module) -> dict[str, float]:
    """Return, by branch, the running means (absolute) and standard deviations, averaged over channels and norms."""
    norms = [part for part in encoder.modules() if isinstance(part, DualBatchNorm2d)]
    found = {}
    for branch in ("clean", "adv"):
        own = [getattr(norm, branch) for norm in norms]
        found[f"mean {branch}"] = fmean(norm.running_mean.abs().mean().item() for norm in own)
        found[f"deviation {branch}"] = fmean(norm.running_var.sqrt().mean().item() for norm in own)
    return found


def table(runs: list[dict[str, Any]]) -> str:
    """Return the results in Markdown, mean and standard deviation over the seeds in percent."""
    rows = []
    for key in dict.fromkeys(tuple(run[name] for name in (*SETTINGS, "norms")) for run in runs):
        own = [run for run in runs if tuple(run[name] for name in (*SETTINGS, "norms")) == key]
        cells = []
        for protocol in ("linear", "fine-tuned"):
            for i in (0, 1):
                values = [100 * run[protocol][i] for run in own]
                cells.append(f"{fmean(values):.1f}" + (f" ± {stdev(values):.1f}" if len(values) > 1 else ""))
        gap = f"{fmean(run['gap'][-1] for run in own):.3f}" if own[0]["gap"] else ""
        rows.append([*key, *cells, gap, len(own)])
    results = ("linear TA", "linear RA", "fine-tuned TA", "fine-tuned RA", "distance of branches", "seeds")
    return markdown_table([*SETTINGS, "norms", *results], rows)


def draw(runs: list[dict[str, Any]]) -> Figure:
    """Draw the distance of the branches after each epoch, one line for each setting, averaged over the seeds."""
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.add_subplot()
    for setting, own in by_setting(run for run in runs if run["gap"]).items():
        mean = [fmean(values) for values in zip(*(run["gap"] for run in own), strict=True)]
        axes.plot(range(1, len(mean) + 1), mean, label=named(setting))
    axes.set(xlabel="epoch", ylabel="divergence of the statistics", ylim=(0, None))
    figure.legend(fontsize=9, loc="outside upper left", frameon=False)
    axes.grid(alpha=0.3)
    return figure


def by_setting(runs: Iterable[dict[str, Any]]) -> dict[tuple[Any, ...], list[dict[str, Any]]]:
    """Return the runs of each setting."""
    found: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for run in runs:
        found.setdefault(tuple(run[name] for name in SETTINGS), []).append(run)
    return found


def named(setting: tuple[Any, ...]) -> str:
    """Return the label of a setting."""
    data, _, _, network, width, eps, steps, epochs = setting
    name = f"ResNet-18, width {width}" if network == "resnet18" else "four convolutions"
    return f"{data}, {name}, eps {eps:g}, {steps} steps, {epochs} epochs"


def draw_statistics(runs: list[dict[str, Any]]) -> Figure:
    """Draw the statistics of both branches after each epoch, a row for each setting, averaged over the seeds."""
    rows = by_setting(runs)
    figure = Figure(figsize=(7, 2.6 * len(rows)), layout="constrained")
    for part, (setting, own) in zip(figure.subfigures(len(rows), squeeze=False)[:, 0], rows.items(), strict=True):
        part.suptitle(named(setting), fontsize=9)
        labels = {"mean": "mean, absolute", "deviation": "standard deviation"}
        for axes, (name, label) in zip(part.subplots(1, 2), labels.items(), strict=True):
            for branch, colour in (("clean", "#1a66b0"), ("adv", "#c2331c")):
                mean = [fmean(values) for values in zip(*(run[f"{name} {branch}"] for run in own), strict=True)]
                axes.plot(range(1, len(mean) + 1), mean, colour, label=branch)
            axes.set(xlabel="epoch", ylabel=label, ylim=(0, None))
            axes.grid(alpha=0.3)
            axes.legend(frameon=False)
    return figure


def main() -> None:
    """Run what is missing, then write the table and the figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", choices=("small", "resnet18"), default="small", help="small: four convolutions")
    parser.add_argument("--width", type=int, default=8, help="of the ResNet-18")
    parser.add_argument("--folder", type=Path, help="with train/ and test/, a folder for each class")
    parser.add_argument("--limit", type=int, default=5000, help="training images")
    parser.add_argument("--labels", type=int, default=10, help="per class, for both classifiers")
    parser.add_argument("--eps", type=float, default=fashion.EPS, help="radius of all attacks")
    parser.add_argument("--attack-steps", type=int, default=3, help="steps of the attack of pre-training")
    parser.add_argument("--epochs", type=int, default=15, help="of pre-training")
    parser.add_argument("--norms", nargs="+", choices=NORMS, default=NORMS, help="by default all")
    parser.add_argument("--seeds", type=int, default=1, help="repetitions")
    parser.add_argument("--amp", choices=("off", "bf16"), default="off", help="bf16: autocast in pre-training")
    parser.add_argument("--out", type=Path, default=Path("runs/dual_norms"), help="folder for the results")
    given = parser.parse_args()
    torch.set_num_threads(1)
    given.data = given.folder.name if given.folder else "fashion"
    sets = [image_folder(given.folder / part) if given.folder else fashion.images(part) for part in ("train", "test")]
    train, test = sets
    train = train.subset(torch.randperm(len(train), generator=torch.Generator().manual_seed(0))[: given.limit])
    test = test.subset(torch.randperm(len(test), generator=torch.Generator().manual_seed(0))[:1000])
    given.out.mkdir(parents=True, exist_ok=True)
    path = given.out / "runs.jsonl"
    for seed in range(given.seeds):
        for norms in given.norms:
            about = {name: getattr(given, name) for name in SETTINGS} | {"norms": norms, "seed": seed}
            runs = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
            if not any(about.items() <= run.items() for run in runs):
                found = run(given, norms, seed, train, test)
                print(about, found, flush=True)
                with path.open("a") as file:
                    file.write(json.dumps(about | found) + "\n")
    runs = [json.loads(line) for line in path.read_text().splitlines()]
    (given.out / "results.md").write_text(
        f"{conditions(__spec__.name)}\n\n{table(runs)}\n\n![distance](distance.png)\n\n![statistics](statistics.png)\n"
    )
    draw(runs).savefig(given.out / "distance.png", dpi=150)
    if traced := [run for run in runs if run.get("mean adv")]:  # single norms have no branches
        draw_statistics(traced).savefig(given.out / "statistics.png", dpi=150)


if __name__ == "__main__":
    main()
