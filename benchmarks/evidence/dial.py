"""Measure accuracy and robustness between the branches of a classifier with dual norms.

A small network learns Fashion-MNIST with all labels, clean images through its clean norms and attacked ones through
its adversarial norms, and is then exported at several weights between them: with interpolated statistics, and with
statistics recomputed from clean or from attacked training images.

    python -m benchmarks.evidence.dial --seeds 3 --out benchmarks/results/dial.md

TA and RA are measured on 1,000 test images, RA under PGD-20.
"""

from __future__ import annotations

import argparse
import os
import statistics
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

from advcontrast import bn_branch, convert_to_dual_bn, interpolate_branches
from advcontrast.attacks import ClassificationObjective, under_attack
from advcontrast.augment import SimCLRAugment
from advcontrast.data import ImageSet
from benchmarks.common import conditions, markdown_table
from benchmarks.evidence import fashion

PLACES = (0.0, 0.25, 0.5, 0.75, 1.0)
KINDS = ("interpolated", "from clean images", "from attacked images")


def train(images: ImageSet, epochs: int) -> nn.Module:
    """Return a classifier that has learned clean images on one branch and attacked ones on the other."""
    encoder, batch_size = fashion.Encoder(), min(125, len(images))
    model = convert_to_dual_bn(nn.Sequential(encoder, nn.Linear(encoder.features, len(images.classes))))
    attack, augment = fashion.attack(3), SimCLRAugment(14, strength=0.2)
    steps = epochs * (len(images) // batch_size)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=steps)
    for step in range(steps):
        if step % (len(images) // batch_size) == 0:
            order = iter(torch.randperm(len(images)).split(batch_size))
        batch = next(order)
        x, y = augment(images.x[batch]), images.y[batch]
        with bn_branch(model, "adv"):
            with under_attack(model):
                x_adv = attack(ClassificationObjective(model, y), x)
            loss = F.cross_entropy(model(x_adv), y)
        with bn_branch(model, "clean"):
            loss = loss + F.cross_entropy(model(x), y)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()
    return model.eval()


def accuracies(model: nn.Module, images: ImageSet, test: ImageSet) -> dict[str, list[tuple[float, float]]]:
    """Return TA and RA at every weight, for every kind of statistics."""
    batches = [x.float() / 255 for x in images.x[:2000].split(250)]
    labels = images.y[:2000].split(250)
    found: dict[str, list[tuple[float, float]]] = {kind: [] for kind in KINDS}
    for alpha in PLACES:
        weights = {"clean": 1 - alpha, "adv": alpha}
        plain = interpolate_branches(model, weights).requires_grad_(False)
        pairs = zip(batches, labels, strict=True)
        attacked = [fashion.attack(3)(ClassificationObjective(plain, y), x) for x, y in pairs]
        others = [interpolate_branches(model, weights, loader=loader) for loader in (batches, attacked)]
        for kind, exported in zip(KINDS, [plain, *others], strict=True):
            found[kind].append(fashion.accuracies(exported.requires_grad_(False), test))
        print(alpha, [found[kind][-1] for kind in KINDS], flush=True)
    return found


def table(seeds: list[dict[str, list[tuple[float, float]]]]) -> str:
    """Return the means over the seeds as a Markdown table."""
    head = ["alpha", *(f"{name}, statistics {kind}" for kind in KINDS for name in ("TA", "RA"))]
    rows = []
    for place, alpha in enumerate(PLACES):
        both = [[seed[kind][place] for seed in seeds] for kind in KINDS]
        means = [100 * statistics.mean(values) for pairs in both for values in zip(*pairs, strict=True)]
        rows.append([f"{alpha:g}", *(f"{mean:.1f}" for mean in means)])
    return markdown_table(head, rows)


def main() -> None:
    """Train and interpolate with each seed, print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3, help="repetitions")
    parser.add_argument("--epochs", type=int, default=8, help="of training")
    parser.add_argument("--limit", type=int, default=5000, help="training images")
    parser.add_argument("--out", type=Path, help="file for the table; by default it is only printed")
    given = parser.parse_args()
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(1)
    order = torch.randperm(5000, generator=torch.Generator().manual_seed(0))
    images, test = fashion.images("train").subset(order[: given.limit]), fashion.images("test")
    seeds = []
    for seed in range(given.seeds):
        torch.manual_seed(seed)
        seeds.append(accuracies(train(images, given.epochs), images, test))
    measured = f"{conditions(__spec__.name)} Means of {given.seeds} seeds."
    text = f"# Between the branches\n\n{measured}\n\n{table(seeds)}\n"
    print(text)
    if given.out is not None:
        given.out.write_text(text)


if __name__ == "__main__":
    main()
