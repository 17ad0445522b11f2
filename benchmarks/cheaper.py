"""What cheaper attacks cost in pre-training, and what they lose: the quickstart with each of them.

Everything but the attack is the quickstart's: encoder, data, few labels, linear classifier, fine-tuning, PGD-20 on all
test images. Costs are forward passes an image and step, counted, so that they do not depend on the machine.

    python benchmarks/cheaper.py --seeds 3                       # embedded part of Fashion-MNIST
    python benchmarks/cheaper.py --only default free --seeds 1
    python benchmarks/cheaper.py --data folder PATH              # PATH/train/<class>/*, PATH/test/<class>/*

Prints a Markdown table after each seed, and writes it with all numbers to --out.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from advcontrast import ACLTrainer, PGDAttack
from advcontrast.attacks import FreeAttack, ProgressiveAttack, WarmStart
from advcontrast.augment import Replay
from advcontrast.engine import forward_equivalents
from advcontrast.evaluation import catastrophic_overfitting

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
import quickstart

Attack = Callable[..., torch.Tensor]
REPLAYS = 3
TITLES = {
    "default": "three steps of eps / 2",
    "few": "two steps of 3/4 eps",
    "single": "one step of 5/4 eps",
    "warm": "one step of eps, from where the last batch ended",
    "free": f"free, each batch {REPLAYS} times in a row",
    "progressive": "one step, then two, then three",
    "S2S": "no attack (SimCLR)",
}


def attacks(task: quickstart.Task, steps: int) -> dict[str, Attack]:
    """Return the attack of each algorithm, for a run of so many steps."""
    three, two = task.attack(3), task.attack(2)
    one = PGDAttack(eps=task.eps, step_size=1.25 * task.eps, steps=1)
    third = max(1, steps // 3)
    return {
        "default": three,
        "few": two,
        "single": one,
        "warm": WarmStart(replace(one, step_size=task.eps)),
        "free": FreeAttack(eps=task.eps, step_size=task.eps),
        "progressive": ProgressiveAttack([(third, one), (third, two), (None, three)]),
        "S2S": three,
    }


def learner_of(name: str, initial: quickstart.Encoder, task: quickstart.Task, steps: int) -> ACLTrainer:
    """Return the learner of an algorithm."""
    acl = quickstart.contrastive("S2S" if name == "S2S" else "DS", initial, task)
    acl.attack = attacks(task, steps)[name]
    if name == "free":
        acl.augment = Replay(acl.augment, times=REPLAYS)
    return acl


def mean_cost(acl: ACLTrainer, batch: torch.Tensor, steps: int) -> float:
    """Return the forward passes an image and step, on average over the run."""
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


def run(seed: int, names: list[str], task: quickstart.Task, settings: quickstart.Settings) -> dict[str, dict]:
    """Return cost, accuracies and the share of one step for each algorithm."""
    found = {}
    each = settings.labels // len(task.train.classes)
    steps = settings.epochs * (len(task.train) // settings.batch_size)
    for name in names:
        torch.manual_seed(seed)
        generator = torch.Generator().manual_seed(seed)
        order = torch.randperm(len(task.train), generator=generator)
        y = task.train.y.cpu()
        chosen = torch.cat([order[y[order] == c][:each] for c in range(len(task.train.classes))])
        model = quickstart.new_classifier(task)
        acl = learner_of(name, model.encoder, task, steps)
        batch = task.train.x[: settings.batch_size]
        entry = {"cost": mean_cost(acl, batch, steps)}
        print(f"{name}: {entry['cost']:.1f} forward passes an image and step", flush=True)
        model.encoder = quickstart.pretrain(acl, task, settings, generator)
        if name != "S2S":
            entry["share"] = catastrophic_overfitting(acl, batch, eps=task.eps).share
        for protocol in quickstart.PROTOCOLS:
            stage = f"{name} {protocol}"
            quickstart.train_classifier(model, task.train.subset(chosen), task, protocol, settings.steps, stage)
            entry[protocol] = list(quickstart.evaluated(model, task).values())
        found[name] = entry
        print(name, entry, flush=True)
    return found


def table(seeds: list[dict[str, dict]]) -> str:
    """Return the results as a Markdown table."""
    head = [
        "attack of pre-training",
        "cost",
        "of default",
        "linear TA",
        "RA",
        "fine-tuned TA",
        "RA",
        "one step's share",
    ]
    lines = [head, ["---"] * len(head)]
    for name in seeds[0]:
        entries = [seed[name] for seed in seeds]
        cost = entries[0]["cost"]
        relative = f"{cost / seeds[0]['default']['cost']:.2f}" if "default" in seeds[0] else ""
        cells = [_mean([100 * entry[p][i] for entry in entries]) for p in quickstart.PROTOCOLS for i in (0, 1)]
        share = _mean([100 * entry["share"] for entry in entries]) + " %" if name != "S2S" else ""
        lines.append([TITLES[name], f"{cost:.1f}", relative, *cells, share])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _mean(values: list[float]) -> str:
    numbers = torch.tensor(values)
    return f"{numbers.mean():.1f} ± {numbers.std():.1f}" if len(values) > 1 else f"{numbers.mean():.1f}"


def main() -> None:
    """Parse the flags, run, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=TITLES, default=list(TITLES), help="algorithms; by default all")
    parser.add_argument("--data", nargs="+", default=["embedded"], help=" | ".join(quickstart.DATA))
    parser.add_argument("--out", type=Path, default=Path("runs/cheaper"), help="folder for the results")
    for name in ("seeds", "epochs", "limit", "steps", "batch_size", "labels"):
        default = getattr(quickstart.Settings(), name)
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=default, help="as for the quickstart")
    given = vars(parser.parse_args())
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(1)
    only, out = given.pop("only"), given.pop("out")
    settings = quickstart.Settings(**given, out=str(out))
    task = quickstart.load_task(settings)
    out.mkdir(parents=True, exist_ok=True)
    seeds: list[dict[str, dict]] = []
    for seed in range(settings.seeds):
        seeds.append(run(seed, only, task, settings))
        (out / "results.json").write_text(json.dumps(seeds, indent=1) + "\n")
        (out / "results.md").write_text(table(seeds) + "\n")
        print(table(seeds), flush=True)


if __name__ == "__main__":
    main()
