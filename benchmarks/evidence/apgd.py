"""Compare the strength of APGDAttack with that of the reference implementation, at the same budget.

Trains three classifiers on the Fashion-MNIST images that come with the examples, halved to 14 x 14 pixels: a plain one,
one with batch norm trained on PGD images, and a wider one of those. Each is attacked by APGDAttack and by pyautoattack
with the same radius, steps, restarts and targets, for every loss, and by PGD with as many steps. For a robust
image, both compute the same number of gradients, except for the last one of a run, which ours omits; a hook counts all
of them. The lower the robust accuracy, the stronger the attack.

    python -m benchmarks.evidence.apgd                      # 500 test images, 40 steps, 3 seeds of the random starts
    python -m benchmarks.evidence.apgd --images 1000 --steps 100

Prints a Markdown table with means over the seeds. pyautoattack is left out if it is not installed.
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from advcontrast.attacks import ClassificationObjective, PGDAttack, under_attack
from advcontrast.attacks.apgd import APGDAttack
from benchmarks.common import conditions
from benchmarks.evidence import fashion

try:
    from pyautoattack import autopgd_base as reference
except ImportError:
    reference = None

EPS = {"linf": 0.1, "l2": 1.0}
CASES = [("linf", "ce"), ("linf", "dlr"), ("linf", "dlr-targeted"), ("l2", "ce")]
MODELS = {"standard": (16, False, 6), "PGD-trained, batch norm": (16, True, 6), "PGD-trained, wide": (32, True, 5)}
Attack = Callable[[ClassificationObjective, Tensor, int], Tensor]


def images(split: str) -> tuple[Tensor, Tensor]:
    """Return the images of a split, float in [0, 1], and their classes."""
    found = fashion.images(split)
    return found.x.float() / 255, found.y


def network(width: int, *, norm: bool) -> nn.Module:
    """Return an untrained CNN for images of 14 x 14 pixels."""
    layers: list[nn.Module] = []
    for before, after in ((1, width), (width, 2 * width), (2 * width, 4 * width)):
        layers += [nn.Conv2d(before, after, 3, 2, 1), *([nn.BatchNorm2d(after)] if norm else []), nn.ReLU()]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(16 * width, 10))


def trained(name: str) -> nn.Module:
    """Return one of the models, trained from seed 0."""
    torch.manual_seed(0)
    width, robust, epochs = MODELS[name]
    model = network(width, norm=robust)
    x, y = images("train")
    attack = PGDAttack(eps=EPS["linf"], step_size=EPS["linf"] / 2, steps=4)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    steps = epochs * (len(x) // 100)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
    for _ in range(epochs):
        for batch in torch.randperm(len(x)).split(100):
            seen = x[batch]
            if robust:
                with under_attack(model):
                    seen = attack(ClassificationObjective(model, y[batch]), seen)
            optimizer.zero_grad()
            F.cross_entropy(model(seen), y[batch]).backward()
            optimizer.step()
            schedule.step()
    return model.eval()


@contextmanager
def counted(model: nn.Module) -> Iterator[list[int]]:
    """Yield a list that grows by the number of images of each forward pass that a gradient is taken of."""
    counts: list[int] = []
    handle = model.register_forward_hook(lambda _, __, out: counts.append(len(out)) if out.requires_grad else None)
    try:
        yield counts
    finally:
        handle.remove()


def attacks(norm: str, loss: str, settings: argparse.Namespace) -> dict[str, Attack]:
    """Return the attacks of one case by name."""
    budget = {"steps": settings.steps, "restarts": settings.restarts}
    apgd = APGDAttack(eps=EPS[norm], norm=norm, loss=loss, **budget)
    pgd = PGDAttack(eps=EPS[norm], norm=norm, step_size=EPS[norm] / 4, **budget)

    def ours(attack: Callable[..., Tensor]) -> Attack:
        return lambda objective, x, seed: attack(objective, x, generator=torch.Generator().manual_seed(seed))

    def theirs(objective: ClassificationObjective, x: Tensor, seed: int) -> Tensor:
        kind = reference.APGDAttack_targeted if loss == "dlr-targeted" else reference.APGDAttack
        chosen = {"n_target_classes": apgd.targets} if loss == "dlr-targeted" else {"loss": loss}
        common = {"n_iter": settings.steps, "n_restarts": settings.restarts, "norm": norm.capitalize()}
        attack = kind(objective.model, eps=EPS[norm], seed=seed, device="cpu", **common, **chosen)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it passes arguments to PyTorch that are deprecated
            return attack.perturb(x, objective.y)

    named = {"APGDAttack": ours(apgd)}
    if reference is not None:
        named["pyautoattack"] = theirs
    if loss == "ce":
        named["PGDAttack"] = ours(pgd)
    return named


def main() -> None:
    """Parse the flags, train, attack, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=500, help="test images to attack")
    parser.add_argument("--steps", type=int, default=40, help="steps of a run")
    parser.add_argument("--restarts", type=int, default=1, help="runs, for each target")
    parser.add_argument("--seeds", type=int, default=3, help="repetitions, each with its own random starts")
    settings = parser.parse_args()
    if reference is None:
        print("pyautoattack is not installed (pip install pyautoattack): its rows are left out.\n")
    x, y = (part[: settings.images] for part in images("test"))
    print(conditions(__spec__.name, ["pyautoattack"]), end="\n\n")
    head = ("model", "clean %", "norm", "loss", "attack", "robust %", "min to max", "gradients", "seconds")
    print(f"| {' | '.join(head)} |\n{'| --- ' * len(head)}|")
    for name in MODELS:
        objective = ClassificationObjective(trained(name), y)
        with under_attack(objective.model):
            clean = accuracy(objective, x)
            for norm, loss in CASES:
                for who, attack in attacks(norm, loss, settings).items():
                    started, robust = time.perf_counter(), []
                    with counted(objective.model) as counts:
                        for seed in range(settings.seeds):
                            adv = attack(objective, x, seed)
                            robust.append(accuracy(objective, adv))
                    seconds = (time.perf_counter() - started) / settings.seeds
                    spread = f"{100 * min(robust):.1f} to {100 * max(robust):.1f}"
                    each = sum(counts) // settings.seeds
                    figures = f"{100 * np.mean(robust):.2f} | {spread} | {each} | {seconds:.1f}"
                    print(f"| {name} | {100 * clean:.1f} | {norm} | {loss} | {who} | {figures} |", flush=True)


@torch.no_grad()
def accuracy(objective: ClassificationObjective, x: Tensor) -> float:
    """Return how many of the images are classified correctly, in [0, 1]."""
    return (objective.logits(x).argmax(1) == objective.y).double().mean().item()


if __name__ == "__main__":
    main()
