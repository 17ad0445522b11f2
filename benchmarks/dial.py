"""How accuracy and robustness move between the branches: blends of a classifier with dual norms.

The quickstart's network learns the embedded images with all labels, clean ones through its clean norms and attacked
ones through its adversarial norms, and is then exported at places between them: with interpolated statistics, and with
statistics estimated anew, either from clean training images or from attacked ones.

    python benchmarks/dial.py --seeds 3 --out benchmarks/results/dial.md

TA and RA are those of 1,000 test images, RA under PGD-20.
"""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import statistics
import sys
from pathlib import Path

import torch
from run import processor
from torch import nn
from torch.nn import functional as F

from advcontrast import __version__, blend, bn_branch, convert_to_dual_bn
from advcontrast.attacks import under_attack
from advcontrast.augment import SimCLRAugment

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
import quickstart

PLACES = (0.0, 0.25, 0.5, 0.75, 1.0)
KINDS = ("interpolated", "from clean images", "from attacked images")


def train(task: quickstart.Task, epochs: int, batch_size: int) -> nn.Module:
    """Return a classifier that has learned clean images on one branch and attacked ones on the other."""
    encoder = quickstart.Encoder(task.train.x.shape[1])
    model = convert_to_dual_bn(nn.Sequential(encoder, nn.Linear(encoder.features, len(task.train.classes))))
    attack, augment = task.attack(3), SimCLRAugment(task.size, strength=0.2)
    steps = epochs * (len(task.train) // batch_size)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=steps)
    for step in range(steps):
        if step % (len(task.train) // batch_size) == 0:
            order = iter(torch.randperm(len(task.train)).split(batch_size))
        batch = next(order)
        x, y = augment(task.train.x[batch]), task.train.y[batch]
        with bn_branch(model, "adv"):
            with under_attack(model):
                x_adv = quickstart.attacked(model, x, y, attack)
            loss = F.cross_entropy(model(x_adv), y)
        with bn_branch(model, "clean"):
            loss = loss + F.cross_entropy(model(x), y)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()
    return model.eval()


def accuracies(model: nn.Module, task: quickstart.Task) -> dict[str, list[tuple[float, float]]]:
    """Return TA and RA at every place, for every way to come by statistics."""
    batches = [x.float() / 255 for x in task.train.x[:2000].split(250)]
    labels = task.train.y[:2000].split(250)
    found: dict[str, list[tuple[float, float]]] = {kind: [] for kind in KINDS}
    for alpha in PLACES:
        plain = blend(model, alpha).requires_grad_(False)
        pairs = zip(batches, labels, strict=True)
        attacked = [quickstart.attacked(plain, x, y, task.attack(3)) for x, y in pairs]
        blended = (plain, blend(model, alpha, batches), blend(model, alpha, attacked))
        for kind, exported in zip(KINDS, blended, strict=True):
            found[kind].append(tuple(quickstart.evaluated(exported.requires_grad_(False), task).values()))
        print(alpha, [found[kind][-1] for kind in KINDS], flush=True)
    return found


def table(seeds: list[dict[str, list[tuple[float, float]]]]) -> str:
    """Return the means over the seeds as a Markdown table."""
    lines = [["alpha", *(f"{name}, statistics {kind}" for kind in KINDS for name in ("TA", "RA"))]]
    lines.append(["---"] * len(lines[0]))
    for place, alpha in enumerate(PLACES):
        both = [[seed[kind][place] for seed in seeds] for kind in KINDS]
        means = [100 * statistics.mean(values) for pairs in both for values in zip(*pairs, strict=True)]
        lines.append([f"{alpha:g}", *(f"{mean:.1f}" for mean in means)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> None:
    """Train and blend with each seed, print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3, help="repetitions")
    parser.add_argument("--epochs", type=int, default=8, help="of training")
    parser.add_argument("--limit", type=int, default=5000, help="training images")
    parser.add_argument("--out", type=Path, help="file for the table; by default it is only printed")
    given = parser.parse_args()
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(1)
    task = quickstart.load_task(quickstart.Settings(limit=given.limit, device="cpu"))
    seeds = []
    for seed in range(given.seeds):
        torch.manual_seed(seed)
        seeds.append(accuracies(train(task, given.epochs, min(125, given.limit)), task))
    command = " ".join(["python", "benchmarks/dial.py", *sys.argv[1:]])
    on = f"{torch.get_num_threads()} threads of {processor()}. Python {platform.python_version()}, torch"
    when = f"{datetime.date.today():%d %B %Y}. {on} {torch.__version__}, advcontrast {__version__}."
    text = f"# Between the branches\n\n`{command}`: {when} Means of {given.seeds} seeds.\n\n{table(seeds)}\n"
    print(text)
    if given.out is not None:
        given.out.write_text(text)


if __name__ == "__main__":
    main()
