"""Measure the cost of cheaper attacks in pre-training, and the robustness that they lose.

For each attack an encoder is pre-trained on Fashion-MNIST at 14 x 14 pixels without labels; a linear classifier on the
frozen encoder and a fine-tuned network then learn from 100 labels. Costs are forward passes per image and step,
counted, so that they do not depend on the machine.

    python -m benchmarks.evidence.cheaper --seeds 3
    python -m benchmarks.evidence.cheaper --only default free

Prints a Markdown table after each seed, and writes it with all numbers to --out.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
from collections import OrderedDict
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from advcontrast import ACLTrainer, ContrastivePairAugment, NTXentLoss, PGDAttack, convert_to_dual_bn, export_branch
from advcontrast.attacks import FreeAttack, ProgressiveAttack, WarmStart
from advcontrast.augment import Replay, SimCLRAugment
from advcontrast.data import ImageSet
from advcontrast.engine import fit, forward_equivalents
from advcontrast.evaluation import catastrophic_overfitting
from advcontrast.strategies import AdversarialTrainer, TRADESTrainer
from benchmarks.common import conditions, markdown_table
from benchmarks.evidence import fashion

BATCH, EACH, REPLAYS = 125, 10, 3  # images per step, labels per class, steps on a batch of the free attack
LABELLED_STEPS = {"linear": 80, "fine-tuned": 160}
TITLES = {
    "default": "three steps of eps / 2",
    "few": "two steps of 3/4 eps",
    "single": "one step of 5/4 eps",
    "warm": "one step of eps, from where the last batch ended",
    "free": f"free, each batch {REPLAYS} times in a row",
    "progressive": "one step, then two, then three",
    "S2S": "no attack (SimCLR)",
}


def attack_of(name: str, steps: int) -> Any:
    """Return the attack of a row, for a run with this number of steps."""
    one, two, three = PGDAttack(eps=fashion.EPS, step_size=1.25 * fashion.EPS, steps=1), *map(fashion.attack, (2, 3))
    third = max(1, steps // 3)
    return {
        "few": two,
        "single": one,
        "warm": WarmStart(replace(one, step_size=fashion.EPS)),
        "free": FreeAttack(eps=fashion.EPS, step_size=fashion.EPS),
        "progressive": ProgressiveAttack([(third, one), (third, two), (None, three)]),
    }.get(name, three)


def learner_of(name: str, encoder: fashion.Encoder, steps: int) -> ACLTrainer:
    """Return the trainer of a copy of an encoder."""
    head = nn.Sequential(nn.Linear(encoder.features, encoder.features), nn.ReLU(), nn.Linear(encoder.features, 64))
    model = convert_to_dual_bn(nn.Sequential(encoder, head), inplace=False)
    views = ContrastivePairAugment(14, strength=0.5)
    augment = Replay(views, times=REPLAYS) if name == "free" else views
    mode = "S2S" if name == "S2S" else "DS"
    return ACLTrainer(model, mode=mode, loss=NTXentLoss(0.3), attack=attack_of(name, steps), augment=augment)


def mean_cost(acl: ACLTrainer, batch: torch.Tensor, steps: int) -> float:
    """Return the forward passes per image and step, on average over the run."""
    if not isinstance(acl.attack, ProgressiveAttack):
        return forward_equivalents(acl, batch)
    progressive, taken, cost = acl.attack, 0, 0.0
    for calls, _ in progressive.stages:
        progressive.set_extra_state({"calls": taken})
        more = steps - taken if calls is None else calls
        cost += more / steps * forward_equivalents(acl, batch)
        taken += more
    progressive.set_extra_state({"calls": 0})
    return cost


def with_labels(model: nn.Module, labelled: ImageSet, protocol: str) -> None:
    """Train a classifier to be robust: its head on adversarial images, or all of it with TRADES."""
    model.requires_grad_(True)
    kind, rate = (AdversarialTrainer, 0.1) if protocol == "linear" else (TRADESTrainer, 0.03)
    frozen = {"frozen": True} if protocol == "linear" else {}
    learner = kind(model, attack=fashion.attack(7), augment=SimCLRAugment(14, strength=0.2), **frozen)
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=rate, momentum=0.9, nesterov=True, weight_decay=5e-4)
    fit(learner, [labelled.x, labelled.y], epochs=LABELLED_STEPS[protocol], optimizer=optimizer, progress=False)
    model.eval()


def run(seed: int, name: str, train: ImageSet, test: ImageSet, epochs: int) -> dict[str, Any]:
    """Return the cost and accuracies of an attack, and its share in the test for catastrophic overfitting."""
    torch.manual_seed(seed)
    order = torch.randperm(len(train))
    labelled = train.subset(torch.cat([order[train.y[order] == c][:EACH] for c in range(len(train.classes))]))
    encoder = fashion.Encoder()
    head = nn.Linear(encoder.features, len(train.classes))
    nn.init.zeros_(head.weight)
    acl = learner_of(name, encoder, epochs * (len(train) // BATCH))
    batch = train.x[:BATCH]
    entry: dict[str, Any] = {"cost": mean_cost(acl, batch, epochs * (len(train) // BATCH))}
    optimizer = torch.optim.Adam(acl.parameters(), lr=3e-3, weight_decay=1e-6)
    fit(acl, train.x, epochs=epochs, batch_size=BATCH, optimizer=optimizer, seed=seed, progress=False)
    if name != "S2S":
        entry["share"] = catastrophic_overfitting(acl, batch, eps=fashion.EPS).share
    exported = export_branch(acl.model, "clean" if name == "S2S" else "adv")[0]
    model = nn.Sequential(OrderedDict(encoder=exported, head=head))
    for protocol in LABELLED_STEPS:
        with_labels(model, labelled, protocol)
        entry[protocol] = fashion.accuracies(model, test)
    print(seed, name, entry, flush=True)
    return entry


def table(seeds: list[dict[str, dict[str, Any]]]) -> str:
    """Return the results as a Markdown table."""
    head = ["attack of pre-training", "cost", "of default", *(f"{p} {a}" for p in LABELLED_STEPS for a in ("TA", "RA"))]
    rows = []
    for name in seeds[0]:
        entries = [seed[name] for seed in seeds]
        cost = entries[0]["cost"]
        relative = f"{cost / seeds[0]['default']['cost']:.2f}" if "default" in seeds[0] else ""
        cells = [_mean([100 * entry[p][i] for entry in entries]) for p in LABELLED_STEPS for i in (0, 1)]
        share = _mean([100 * entry["share"] for entry in entries]) + " %" if name != "S2S" else ""
        rows.append([TITLES[name], f"{cost:.1f}", relative, *cells, share])
    return markdown_table([*head, "one step's share"], rows)


def _mean(values: list[float]) -> str:
    mean = f"{statistics.mean(values):.1f}"
    return f"{mean} ± {statistics.stdev(values):.1f}" if len(values) > 1 else mean


def main() -> None:
    """Parse the flags, run, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=TITLES, default=list(TITLES), help="attacks; by default all")
    parser.add_argument("--seeds", type=int, default=1, help="repetitions")
    parser.add_argument("--epochs", type=int, default=18, help="of pre-training")
    parser.add_argument("--limit", type=int, default=5000, help="training images")
    parser.add_argument("--out", type=Path, default=Path("runs/cheaper"), help="folder for the results")
    given = parser.parse_args()
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(1)
    order = torch.randperm(5000, generator=torch.Generator().manual_seed(0))
    train, test = fashion.images("train").subset(order[: given.limit]), fashion.images("test")
    given.out.mkdir(parents=True, exist_ok=True)
    seeds: list[dict[str, dict[str, Any]]] = []
    for seed in range(given.seeds):
        seeds.append({name: run(seed, name, train, test, given.epochs) for name in given.only})
        (given.out / "results.json").write_text(json.dumps(seeds, indent=1) + "\n")
        text = f"{conditions(__spec__.name)} Seeds finished: {len(seeds)}.\n\n{table(seeds)}\n"
        (given.out / "results.md").write_text(text)
        print(text, flush=True)


if __name__ == "__main__":
    main()
