"""Compare adversarial contrastive pre-training with two baselines: real images, few labels, minutes on a CPU.

Three encoders of the same architecture: random initialisation (RI), pre-trained without labels by SimCLR (S2S), and by
adversarial contrastive learning (DS). Each then gets a few labels: a linear classifier on the frozen encoder is trained
on adversarial images, and from there the whole network is fine-tuned with TRADES. Reported are the accuracy on clean
test images (TA) and under a PGD-20 attack (RA), after the last step: nothing is selected on test images.

    python examples/quickstart.py                        # embedded part of Fashion-MNIST, one seed
    python examples/quickstart.py --seeds 3              # mean and standard deviation
    python examples/quickstart.py --jobs 1               # one encoder at a time: slower, the same results
    python examples/quickstart.py --data cifar10         # downloads CIFAR-10 into ./data
    python examples/quickstart.py --data folder PATH     # PATH/train/<class>/*, PATH/test/<class>/*

Encoders are trained in parallel, one on each CPU core, each in a process with one thread of PyTorch unless
OMP_NUM_THREADS is set. The script writes results.json (accuracies), card.json (settings, versions, times), results.png,
images.png and the classifiers, models/seed<n>-<encoder>-<protocol>.safetensors, to --out. examples/cifar/evaluate.py
runs the full evaluation of a classifier.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields
from pathlib import Path

import matplotlib as mpl
import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import SGD, Adam
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler, OneCycleLR

import advcontrast
from advcontrast import ACLTrainer, ContrastivePairAugment, NTXentLoss, PGDAttack, convert_to_dual_bn, export_branch
from advcontrast.augment import SimCLRAugment
from advcontrast.data import ImageSet, cifar10, image_folder
from advcontrast.evaluation import accuracy, robust_accuracy
from advcontrast.strategies import AdversarialTrainer, TRADESTrainer
from processes import default_jobs, in_processes

mpl.use("Agg")
import matplotlib.pyplot as plt

ENCODERS = {"RI": "random initialisation", "S2S": "SimCLR (S2S)", "DS": "ACL (DS)"}
PROTOCOLS = {"linear": "linear on the frozen encoder", "finetune": "fine-tuning"}
COLOURS = {"RI": "#7f7f7f", "S2S": "#1f77b4", "DS": "#d62728"}
BRANCH = {"S2S": "clean", "DS": "adv"}  # the norms that a pre-trained encoder is used with
DATA = ("embedded", "cifar10 [DIR]", "folder PATH")
CACHE = Path("~/.cache/advcontrast")  # for decoded images
Results = dict[str, dict[str, dict[str, list[float]]]]


@dataclass
class Settings:
    """Every field is a flag of the same name."""

    data: list[str] = field(default_factory=lambda: ["embedded"], metadata={"help": " | ".join(DATA)})
    out: str = field(default="runs/quickstart", metadata={"help": "folder for the results"})
    seeds: int = field(default=1, metadata={"help": "repetitions, each with its own weights, labels and noise"})
    epochs: int = field(default=18, metadata={"help": "epochs of pre-training"})
    batch_size: int = field(default=125, metadata={"help": "images a step of pre-training"})
    limit: int = field(default=5000, metadata={"help": "training images to use, without labels"})
    labels: int = field(default=100, metadata={"help": "training images whose labels are used, equally many a class"})
    steps: int = field(
        default=160, metadata={"help": "training steps of fine-tuning; half as many for linear classifiers"}
    )
    device: str = field(default="auto", metadata={"help": "auto | cpu | cuda | ..."})
    jobs: int = field(default=0, metadata={"help": "encoders to train at a time; 0: one per CPU core or accelerator"})


@dataclass
class Task:
    """The images of a run, and how strong the attacks on them are."""

    train: ImageSet
    test: ImageSet
    eps: float

    @property
    def size(self) -> tuple[int, int]:
        """Return height and width of the images."""
        return self.train.x.shape[2], self.train.x.shape[3]

    def attack(self, steps: int) -> PGDAttack:
        """Return PGD with the paper's ratio of step size to radius, or longer steps where they are few."""
        return PGDAttack(eps=self.eps, step_size=self.eps * max(1 / 4, 1.5 / steps), steps=steps)


class Encoder(nn.Module):
    """Four convolutions. Takes images in [0, 1]: the normalisation is inside, where the attack sees it."""

    def __init__(self, channels: int, features: int = 128) -> None:
        super().__init__()
        widths = (channels, 16, 32, 64, features)
        layers: list[nn.Module] = []
        for before, after, stride in zip(widths[:-1], widths[1:], (1, 2, 2, 1), strict=True):
            layers += [nn.Conv2d(before, after, 3, stride, 1, bias=False), nn.BatchNorm2d(after), nn.ReLU()]
        self.layers = nn.Sequential(*layers)
        self.features = features

    def forward(self, x: Tensor) -> Tensor:
        """Return the features ``[N, features]`` of images ``[N, C, H, W]``."""
        x = self.layers((x - 0.5) / 0.25)
        # As AdaptiveAvgPool2d(1), whose gradient is not channels last and slows down the backward pass.
        return F.avg_pool2d(x, x.shape[2:]).flatten(1)


def contrastive(mode: str, encoder: Encoder, task: Task) -> ACLTrainer:
    """Return what trains a copy of the encoder without labels."""
    head = nn.Sequential(nn.Linear(encoder.features, encoder.features), nn.ReLU(), nn.Linear(encoder.features, 64))
    model = convert_to_dual_bn(nn.Sequential(encoder, head.to(task.train.x.device)), inplace=False)
    # What suits a short run on images of 14 x 14 pixels; the defaults of the library are the paper's for CIFAR-10.
    augment = ContrastivePairAugment(task.size, strength=0.5)
    return ACLTrainer(model, mode=mode, loss=NTXentLoss(0.3), attack=task.attack(3), augment=augment)


def pretrain(acl: ACLTrainer, task: Task, settings: Settings, generator: torch.Generator) -> Encoder:
    """Train; return the encoder with the norms of the branch that is wanted afterwards."""
    size = settings.batch_size
    orders = [torch.randperm(len(task.train), generator=generator) for _ in range(settings.epochs)]
    batches = torch.cat([order[: len(order) // size * size] for order in orders]).to(task.train.x.device).split(size)
    optimizer = Adam(acl.parameters(), lr=3e-3, weight_decay=1e-6)
    schedule = OneCycleLR(optimizer, 3e-3, total_steps=len(batches), pct_start=0.1)
    train(acl, [task.train.x], batches, schedule, f"seed {generator.initial_seed()}, {acl.mode}, pre-training")
    return export_branch(acl.model, BRANCH[acl.mode])[0]


def new_classifier(task: Task) -> nn.Sequential:
    """Return an encoder with random weights and a linear head with weights of zero."""
    encoder = Encoder(task.train.x.shape[1])
    head = nn.Linear(encoder.features, len(task.train.classes))
    nn.init.zeros_(head.weight)
    model = nn.Sequential(OrderedDict(encoder=encoder, head=head))
    return model.to(task.train.x.device, memory_format=torch.channels_last)


def train_classifier(model: nn.Module, labelled: ImageSet, task: Task, protocol: str, steps: int, stage: str) -> None:
    """Train a classifier to be robust: its head on adversarial images, or all of it with TRADES."""
    model.requires_grad_(True)
    attack, augment = task.attack(7), SimCLRAugment(task.size, strength=0.2)
    learner: nn.Module
    if protocol == "linear":
        learner, rate = AdversarialTrainer(model, attack=attack, augment=augment, frozen=True), 0.1
        steps = (steps + 1) // 2
    else:
        learner, rate = TRADESTrainer(model, attack=attack, augment=augment), 0.03
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = SGD(trained, lr=rate, momentum=0.9, nesterov=True, weight_decay=5e-4)
    train(learner, [labelled.x, labelled.y], [slice(None)] * steps, CosineAnnealingLR(optimizer, steps), stage)
    model.eval()


def train(learner: nn.Module, data: list[Tensor], batches: Sequence, schedule: LRScheduler, stage: str) -> None:
    """Take a training step on each batch; print the progress at the start, every ten seconds and at the end."""
    learner.train()
    report(f"{stage}: {len(batches)} steps")
    started = shown = time.monotonic()
    for done, batch in enumerate(batches, 1):
        out = learner(*(tensor[batch] for tensor in data))
        learner.zero_grad()
        out.loss.backward()
        schedule.optimizer.step()
        schedule.step()
        now = time.monotonic()
        if now > shown + 10 or done == len(batches):
            left = (now - started) / done * (len(batches) - done)
            terms = ", ".join(f"{name} {value:.2f}" for name, value in out.terms.items())
            report(f"{stage}: {done} of {len(batches)} steps, {left:.0f} s left; {terms}")
            shown = now


def report(text: str) -> None:
    """Print a line of progress to a terminal or a log that several processes share."""
    print(f"{text}\n", end="", file=sys.stderr, flush=True)  # one write, which lines of other processes cannot split


def attacked(model: nn.Module, x: Tensor, y: Tensor, attack: PGDAttack, seed: int | None = None) -> Tensor:
    """Return images that maximise the cross-entropy of the model."""
    generator = None if seed is None else torch.Generator(x.device).manual_seed(seed)
    return attack(lambda images: F.cross_entropy(model(images), y, reduction="none"), x, generator=generator)


def evaluated(model: nn.Module, task: Task) -> dict[str, float]:
    """Return the fraction of test images classified correctly, as they are (TA), and under PGD-20 too (RA)."""
    batches = list(task.test.batches(500))
    ra = robust_accuracy(model, batches, task.attack(20))
    return {"ta": accuracy(model, batches).accuracy, "ra": ra.accuracy}


def stored(settings: Settings, seed: int, name: str, protocol: str) -> Path:
    """Return the path of a classifier."""
    return Path(settings.out) / "models" / f"seed{seed}-{name}-{protocol}.safetensors"


def run(seed: int, name: str, settings: Settings) -> dict[str, dict[str, float]]:
    """Train an encoder and its classifiers, store these, and return their accuracies."""
    task = load_task(settings)
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    each = settings.labels // len(task.train.classes)
    y = task.train.y.cpu()
    order = torch.randperm(len(y), generator=generator)
    chosen = torch.cat([order[y[order] == c][:each] for c in range(len(task.train.classes))])
    labelled = task.train.subset(chosen)

    model = new_classifier(task)  # all encoders of a seed have drawn the same random numbers so far
    if name != "RI":
        model.encoder = pretrain(contrastive(name, model.encoder, task), task, settings, generator)
    found = {}
    for protocol, title in PROTOCOLS.items():
        stage = f"seed {seed}, {name}, {title}"
        train_classifier(model, labelled, task, protocol, settings.steps, stage)
        found[protocol] = evaluated(model, task)
        report(f"{stage}: TA {found[protocol]['ta']:.1%}, RA {found[protocol]['ra']:.1%}")
        weights = {key: value.cpu().contiguous() for key, value in model.state_dict().items()}
        about = {"arch": "quickstart", "settings": asdict(settings), "branch": BRANCH.get(name)}
        path = stored(settings, seed, name, protocol)
        path.parent.mkdir(exist_ok=True)
        save_file(weights, path, {"advcontrast": json.dumps(about)})
        path.chmod(path.parent.stat().st_mode & 0o666)  # safetensors makes files readable by the owner only
    return found


def load_task(settings: Settings) -> Task:
    """Read the images that ``--data`` names, once the flags make sense."""
    for name, least in {"seeds": 1, "epochs": 1, "limit": 1, "steps": 1, "jobs": 0}.items():
        if getattr(settings, name) < least:
            raise SystemExit(f"quickstart: expected --{name} of at least {least}, got {getattr(settings, name)}.")
    device = settings.device
    if device == "auto":
        device = str(torch.accelerator.current_accelerator() or "cpu") if torch.accelerator.is_available() else "cpu"
    kind, *where = settings.data
    if (kind, len(where)) not in {("embedded", 0), ("cifar10", 0), ("cifar10", 1), ("folder", 1)}:
        raise SystemExit(f"quickstart: expected --data {' or '.join(DATA)}, got {' '.join(settings.data)}.")
    try:
        if kind == "embedded":
            train, test = embedded()
        elif kind == "cifar10":
            train, test = (cifar10(where[0] if where else "data", train=split) for split in (True, False))
        else:
            train, test = (image_folder(Path(where[0]) / split, cache=CACHE) for split in ("train", "test"))
            test = test.subset(shuffled(len(test))[: max(settings.limit // 5, 1)])
    except (OSError, RuntimeError, ValueError) as error:
        raise SystemExit(f"quickstart: {error}") from error
    if train.classes != test.classes:
        raise SystemExit(
            f"quickstart: expected the same classes in train and test, got {train.classes}, {test.classes}."
        )
    train = train.subset(shuffled(len(train))[: settings.limit])
    if not 2 <= settings.batch_size <= len(train):
        raise SystemExit(f"quickstart: expected --batch-size from 2 to {len(train)} images, got {settings.batch_size}.")
    most = len(train.classes) * int(torch.bincount(train.y, minlength=len(train.classes)).min())
    if not len(train.classes) <= settings.labels <= most:
        raise SystemExit(f"quickstart: expected --labels from {len(train.classes)} to {most}, got {settings.labels}.")
    return Task(train.to(device), test.to(device), eps=0.1 if kind == "embedded" else 8 / 255)


def shuffled(n: int) -> Tensor:
    """Return the numbers below n, always in the same random order."""
    return torch.randperm(n, generator=torch.Generator().manual_seed(0))


def embedded() -> list[ImageSet]:
    """Return 5,000 training and 1,000 test images of Fashion-MNIST, halved to 14 x 14 pixels."""
    classes = ("T-shirt", "trousers", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")
    with np.load(Path(__file__).parent / "data" / "fashion-mini.npz") as file:
        arrays = {name: torch.from_numpy(file[name]) for name in file.files}
    x = {name: F.avg_pool2d(arrays[f"{name}_images"][:, None].float(), 2).round() for name in ("train", "test")}
    return [ImageSet(x[name].to(torch.uint8), arrays[f"{name}_labels"].long(), classes) for name in x]


def gathered(done: dict[tuple[int, str], dict[str, dict[str, float]]]) -> Results:
    """Return what has been found so far as lists over the seeds, in an order that does not depend on time."""

    def each(name: str, protocol: str, metric: str) -> list[float]:
        return [done[key][protocol][metric] for key in sorted(done) if key[1] == name]

    return {n: {p: {metric: each(n, p, metric) for metric in ("ta", "ra")} for p in PROTOCOLS} for n in ENCODERS}


def mean_and_deviation(values: list[float]) -> str:
    """Return percentages as "mean ± standard deviation", the latter only of several values."""
    percent = 100 * torch.tensor(values)
    return f"{percent.mean():.1f} ± {percent.std():.1f}" if len(values) > 1 else f"{percent.mean():.1f}"


def table(results: Results) -> str:
    """Return the results as a Markdown table."""
    rows = [f"| encoder | {' | '.join(f'{p} TA | {p} RA' for p in PROTOCOLS)} |", "| --- |" + " --- |" * 4]
    for name, entry in results.items():
        cells = [mean_and_deviation(entry[protocol][metric]) for protocol in PROTOCOLS for metric in ("ta", "ra")]
        rows.append(f"| {ENCODERS[name]} | {' | '.join(cells)} |")
    return "\n".join(rows)


def plot_results(results: Results, path: Path) -> None:
    """Draw robust against standard accuracy: a small mark for each seed, a large one for their mean."""
    figure, axes = plt.subplots(figsize=(6, 4.5), layout="constrained")
    for name, entry in results.items():
        for protocol, marker in zip(PROTOCOLS, "os", strict=True):
            ta, ra = (100 * torch.tensor(entry[protocol][metric]) for metric in ("ta", "ra"))
            axes.scatter(ta, ra, s=14, marker=marker, color=COLOURS[name], alpha=0.5, linewidths=0)
            label = f"{ENCODERS[name]}, {PROTOCOLS[protocol]}"
            axes.scatter(ta.mean(), ra.mean(), s=80, marker=marker, color=COLOURS[name], label=label)
    axes.set(xlabel="accuracy on clean images, TA (%)", ylabel="accuracy under PGD-20, RA (%)", ylim=(0, None))
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def plot_images(settings: Settings, task: Task, path: Path) -> None:
    """Draw test images, and for each fine-tuned model what the attack makes of them and the perturbation itself."""
    classes, model = task.test.classes, new_classifier(task).eval().requires_grad_(False)
    shown = torch.stack([(task.test.y == c).nonzero()[0, 0] for c in range(min(len(classes), 8))])
    clean, y = task.test.x[shown].float() / 255, task.test.y[shown]
    rows = [("clean", clean, [classes[c] for c in y.tolist()], ["black"] * len(shown))]
    for name in ("RI", "DS"):
        model.load_state_dict(load_file(stored(settings, settings.seeds - 1, name, "finetune")))
        perturbed = attacked(model, clean, y, task.attack(20), seed=0)
        guesses = model(perturbed).argmax(1).tolist()
        colours = ["green" if guess == y else "red" for guess, y in zip(guesses, y.tolist(), strict=True)]
        rows.append((f"{name}: attacked", perturbed, [classes[guess] for guess in guesses], colours))
        rows.append((f"{name}: perturbation", 0.5 + (perturbed - clean) / (2 * task.eps), [""] * len(shown), colours))
    shape = (len(rows), len(shown))
    figure, grid = plt.subplots(*shape, figsize=(1.3 * shape[1], 1.5 * shape[0]), layout="constrained")
    for axes_row, (title, x, texts, colours) in zip(grid, rows, strict=True):
        for axes, image, text, colour in zip(axes_row, x.cpu(), texts, colours, strict=True):
            axes.imshow(image.permute(1, 2, 0).squeeze(), vmin=0, vmax=1, cmap="gray")
            axes.set(xticks=[], yticks=[])
            axes.set_title(text, fontsize=8, color=colour)
        axes_row[0].set_ylabel(title, fontsize=8)
    figure.suptitle(f"fine-tuned classifiers and their predictions; eps = {task.eps:.3g}, perturbations scaled to it")
    figure.savefig(path, dpi=150)
    plt.close(figure)


def main() -> None:
    """Parse the flags, run every seed, write and print the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for f in fields(Settings):
        default = f.default_factory() if f.default is MISSING else f.default
        kind = {"nargs": "+"} if isinstance(default, list) else {"type": type(default)}
        parser.add_argument(f"--{f.name.replace('_', '-')}", default=default, **kind, **f.metadata)
    settings = Settings(**vars(parser.parse_args()))

    started = time.perf_counter()
    task = load_task(settings)
    out = Path(settings.out)
    out.mkdir(parents=True, exist_ok=True)
    calls = [
        (seed, name, settings) for seed in range(settings.seeds) for name in reversed(ENCODERS)
    ]  # the longest first
    jobs = min(settings.jobs or (default_jobs() if task.train.x.device.type == "cpu" else 1), len(calls))
    report(f"quickstart: {settings.seeds} seed(s) of {', '.join(ENCODERS)}, {jobs} at a time; results will be in {out}")
    done: dict[tuple[int, str], dict[str, dict[str, float]]] = {}
    for (seed, name, _), found in in_processes(run, calls, jobs):
        done[seed, name] = found
        results = gathered(done)
        (out / "results.json").write_text(json.dumps(results, indent=2))
    versions = {"advcontrast": advcontrast.__version__, "torch": torch.__version__, "python": platform.python_version()}
    card = {
        "settings": asdict(settings),
        "eps": task.eps,
        "images": {"train": list(task.train.x.shape), "test": list(task.test.x.shape)},
        "branch": BRANCH,
        "versions": versions,
        "hardware": {"device": str(task.train.x.device), "jobs": jobs, "threads": os.environ["OMP_NUM_THREADS"]},
        "seconds": round(time.perf_counter() - started, 1),
    }
    (out / "card.json").write_text(json.dumps(card, indent=2))
    plot_results(results, out / "results.png")
    plot_images(settings, task, out / "images.png")
    print(f"\n{table(results)}\n\n{settings.labels} labels, PGD-20, eps = {task.eps:.3g}, {card['seconds']:.0f} s")


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
