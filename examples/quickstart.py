"""Compare adversarial contrastive pre-training with two baselines on real images with few labels, in minutes.

Four encoders of the same architecture are compared: random initialisation (RI), and encoders pre-trained without
labels by SimCLR (S2S), by ACL (DS), and by RoCL at the cost of ACL. For each, a linear classifier on the frozen encoder
is trained with a few labelled, adversarially perturbed images, and then the whole network is fine-tuned with TRADES.
The results are the accuracies on clean test images (TA) and under PGD-20 (RA) after the last step, without selection.

    python examples/quickstart.py                        # embedded part of Fashion-MNIST, one seed
    python examples/quickstart.py --seeds 3              # mean and standard deviation
    python examples/quickstart.py --jobs 1               # same results, one encoder at a time
    python examples/quickstart.py --data cifar10         # downloads CIFAR-10 into ./data
    python examples/quickstart.py --data folder PATH     # PATH/train/<class>/*, PATH/test/<class>/*

Encoders are trained in parallel, one per CPU core, each in a process with one PyTorch thread unless OMP_NUM_THREADS is
set. The folder --out will contain results.png, images.png, results.json (accuracies), card.json (a ResultCard) and
models/seed<n>-<encoder>-<protocol>.safetensors, which examples/cifar/evaluate.py evaluates further.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections import OrderedDict
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import SGD, Adam, Optimizer

from advcontrast import ACLTrainer, ContrastivePairAugment, NTXentLoss, convert_to_dual_bn
from advcontrast.augment import SimCLRAugment
from advcontrast.data import ImageSet
from advcontrast.engine import fit, steps_per_epoch
from advcontrast.evaluation import Accuracy, ResultCard, accuracy, robust_accuracy
from advcontrast.optim import WarmupCosine
from advcontrast.strategies import AdversarialTrainer, ContrastiveLearner, RoCL, TRADESTrainer
from drawings import draw_images, draw_results
from processes import default_jobs, in_processes, progress, report
from tasks import Settings, Task, load_task, parse

ENCODERS = {"RI": "random initialisation", "S2S": "SimCLR (S2S)", "DS": "ACL (DS)", "RoCL": "RoCL"}
PROTOCOLS = {"linear": "linear on the frozen encoder", "finetune": "fine-tuning"}
STAGES = [(name, stage) for name in ("DS", "RoCL", "S2S") for stage in ("pre-training", *PROTOCOLS.values())]
STAGES += [("RI", stage) for stage in PROTOCOLS.values()]
METRICS = ("TA", "RA")
BRANCH = {"S2S": "clean", "DS": "adv"}  # the norms that a pre-trained encoder is used with


class Encoder(nn.Module):
    """Encoder with four convolutions for images in [0, 1]; the normalisation is part of it, also under attack."""

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


def new_classifier(task: Task) -> nn.Sequential:
    """Return an encoder with random weights and a linear head with weights of zero."""
    encoder = Encoder(task.train.x.shape[1])
    head = nn.Linear(encoder.features, len(task.train.classes))
    nn.init.zeros_(head.weight)
    return nn.Sequential(OrderedDict(encoder=encoder, head=head)).to(task.train.x.device)


def pretrain(name: str, encoder: Encoder, task: Task, settings: Settings, stage: str) -> nn.Module:
    """Train without labels; return the encoder with the norms of the branch that is used afterwards."""
    head = nn.Sequential(nn.Linear(encoder.features, encoder.features), nn.ReLU(), nn.Linear(encoder.features, 64))
    model, epochs = nn.Sequential(encoder, head.to(task.train.x.device)), settings.epochs
    # For a short run on images of 14 x 14 pixels; the defaults of the library are the papers' for CIFAR-10.
    parts = {"attack": task.attack(3), "augment": ContrastivePairAugment(task.size, strength=0.5)}
    if name == "RoCL":
        learner: ContrastiveLearner = RoCL(model, **parts)
        epochs = epochs * 3 // 2  # of 16 forward passes per image; one of ACL has 24
    else:
        learner = ACLTrainer(convert_to_dual_bn(model), mode=name, loss=NTXentLoss(0.3), **parts)
    optimizer = Adam(learner.parameters(), lr=3e-3, weight_decay=1e-6)
    train(learner, [task.train.x], epochs, settings.batch_size, optimizer, 0.1, stage)
    return learner.encoder()[0]


def train_classifier(model: nn.Module, labelled: ImageSet, task: Task, protocol: str, steps: int, stage: str) -> None:
    """Train a classifier to be robust: its head on adversarial images, or all of it with TRADES."""
    model.requires_grad_(True)
    parts = {"attack": task.attack(5), "augment": SimCLRAugment(task.size, strength=0.2)}
    if protocol == "linear":
        learner, steps = AdversarialTrainer(model, frozen=True, **parts), (steps + 1) // 2
    else:
        learner = TRADESTrainer(model, **parts)
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    # With this rate, fine-tuned random initialisation has the highest RA on held-out training images.
    optimizer = SGD(trained, lr=0.2, momentum=0.9, nesterov=True, weight_decay=5e-4)
    train(learner, [labelled.x, labelled.y], steps, len(labelled), optimizer, 0, stage)  # all images in each step


def train(
    learner: nn.Module, data: list[Tensor], epochs: int, size: int, optimizer: Optimizer, warmup: float, stage: str
) -> None:
    """Run the training loop of the library, with a warm-up for a fraction of the steps."""
    steps = epochs * steps_per_epoch(len(data[0]), size)
    schedule, shown = WarmupCosine(steps, warmup=int(warmup * steps)), progress(stage, epochs)
    common = {"epochs": epochs, "batch_size": size, "seed": torch.initial_seed(), "progress": False}
    fit(learner, data, optimizer=optimizer, schedule=schedule, evaluate=shown, **common)


def run(seed: int, name: str, settings: Settings) -> dict[str, list[bool]]:
    """Train an encoder and its classifiers, save them, and return the outcome for each test image by metric."""
    task = load_task(settings)
    labelled, batches = task.few_labels(settings.labels, seed), list(task.test.batches(500))
    torch.manual_seed(seed)
    model = new_classifier(task)  # all encoders of a seed have drawn the same random numbers so far
    if name != "RI":
        stage = numbered(settings, seed, name, "pre-training")
        model.encoder = pretrain(name, model.encoder, task, settings, stage)
    verdicts = {}
    for protocol, title in PROTOCOLS.items():
        stage = numbered(settings, seed, name, title)
        train_classifier(model, labelled, task, protocol, settings.steps, stage)
        ta, ra = accuracy(model, batches), robust_accuracy(model, batches, task.attack(20))
        report(f"{stage}: TA {ta.accuracy:.1%}, RA {ra.accuracy:.1%}")
        verdicts |= {f"{name} {protocol} {m}": one.correct.tolist() for m, one in zip(METRICS, (ta, ra), strict=True)}
        weights = {key: value.cpu().contiguous() for key, value in model.state_dict().items()}
        about = {"arch": "quickstart", "settings": asdict(settings), "branch": BRANCH.get(name)}
        path = stored(settings, seed, name, protocol)
        save_file(weights, path, {"advcontrast": json.dumps(about)})
        path.chmod(path.parent.stat().st_mode & 0o666)  # safetensors makes files readable by the owner only
    return verdicts


def numbered(settings: Settings, seed: int, name: str, stage: str) -> str:
    """Return the title of a stage with its number."""
    number = 1 + seed * len(STAGES) + STAGES.index((name, stage))
    return f"stage {number} of {settings.seeds * len(STAGES)}, seed {seed}, {name}, {stage}"


def stored(settings: Settings, seed: int, name: str, protocol: str) -> Path:
    """Return the path of a classifier."""
    return Path(settings.out) / "models" / f"seed{seed}-{name}-{protocol}.safetensors"


def table(card: ResultCard) -> str:
    """Return the results as a Markdown table, in percent."""
    columns = [f"{protocol} {metric}" for protocol in PROTOCOLS for metric in METRICS]
    rows = [["encoder", *columns], ["---"] * (1 + len(columns))]
    rows += [[title, *(card.results[f"{name} {c}"].percent() for c in columns)] for name, title in ENCODERS.items()]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def main() -> None:
    """Parse the flags, run every seed, write and print the results."""
    settings = parse(__doc__)
    started = time.perf_counter()
    try:
        task = load_task(settings)
        out = Path(settings.out).resolve()
        (out / "models").mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError, TypeError, ValueError) as error:
        sys.exit(f"quickstart: {error}")
    seeds = range(settings.seeds)
    calls = [(seed, name, settings) for seed in seeds for name in ("DS", "RoCL", "S2S", "RI")]  # longest first
    jobs = min(settings.jobs or (default_jobs() if task.train.x.device.type == "cpu" else 1), len(calls))
    report(f"quickstart: {settings.seeds * len(STAGES)} stages, {jobs} at a time; results will be in {out}")
    found = {(seed, name): verdicts for (seed, name, _), verdicts in in_processes(run, calls, jobs)}
    verdicts = {m: [Accuracy(torch.tensor(found[s, n][m])) for s in seeds] for n in ENCODERS for m in found[0, n]}
    about = {"flags": asdict(settings), "branch": BRANCH, "jobs": jobs, "threads": os.environ["OMP_NUM_THREADS"]}
    about["seconds"] = round(time.perf_counter() - started, 1)
    fields = {"attacks": {m: task.attack(20) for m in verdicts if m.endswith("RA")}, "device": task.test.x.device}
    card = ResultCard.from_verdicts(out.name, verdicts, seeds=seeds, data=task.test, settings=about, **fields)
    card.write(out / "card.json")
    found = {name: result.accuracies for name, result in card.results.items()}
    results = {n: {p: {m.lower(): found[f"{n} {p} {m}"] for m in METRICS} for p in PROTOCOLS} for n in ENCODERS}
    (out / "results.json").write_text(json.dumps(results, indent=2))
    draw_results(results, ENCODERS, PROTOCOLS).savefig(out / "results.png", dpi=150)
    models = {}
    for name in ("S2S", "DS"):
        models[ENCODERS[name]] = model = new_classifier(task).eval()
        model.load_state_dict(load_file(stored(settings, 0, name, "linear")))
    draw_images(task, models).savefig(out / "images.png", dpi=150)
    labels = len(task.few_labels(settings.labels, seed=0))
    print(f"\n{table(card)}\n\n{labels} labels, PGD-20, eps = {task.eps:.3g}, {about['seconds']:.0f} s")
    print(f"{out}: results.png, images.png, results.json, card.json, models/")


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
