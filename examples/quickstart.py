"""What adversarial contrastive pre-training gives: real images, few labels, minutes on a CPU.

Three encoders of the same architecture: random initialisation (RI), pre-trained without labels by SimCLR (S2S), and by
adversarial contrastive learning (DS). Each then gets a few labels: a linear classifier on the frozen encoder is trained
on adversarial images, and from there the whole network is fine-tuned with TRADES. Reported are the accuracy on clean
test images (TA) and under a PGD-20 attack (RA), after the last step: nothing is selected on test images.

    python examples/quickstart.py                        # embedded part of Fashion-MNIST, one seed
    python examples/quickstart.py --seeds 3              # mean and standard deviation
    python examples/quickstart.py --data cifar10         # downloads CIFAR-10 into ./data
    python examples/quickstart.py --data folder PATH     # PATH/train/<class>/*, PATH/test/<class>/*

Writes results.json (accuracies), card.json (settings, versions, times), results.png, images.png and the classifiers,
models/seed<n>-<encoder>-<protocol>.safetensors, to --out. examples/cifar/evaluate.py tests those to the full.
"""

from __future__ import annotations

import argparse
import copy
import json
import platform
import time
from dataclasses import MISSING, asdict, dataclass, field, fields
from pathlib import Path

import matplotlib as mpl
import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

import advcontrast
from advcontrast import (
    ACLTrainer,
    ContrastivePairAugment,
    NTXentLoss,
    PGDAttack,
    convert_to_dual_bn,
    export_branch,
)
from advcontrast.augment import SimCLRAugment
from advcontrast.functional import kl_divergence, trades

mpl.use("Agg")
import matplotlib.pyplot as plt

ENCODERS = {"RI": "random initialisation", "S2S": "SimCLR (S2S)", "DS": "ACL (DS)"}
PROTOCOLS = {"linear": "linear on the frozen encoder", "finetune": "fine-tuning"}
COLOURS = {"RI": "#7f7f7f", "S2S": "#1f77b4", "DS": "#d62728"}
BRANCH = {"S2S": "clean", "DS": "adv"}  # the norms that a pre-trained encoder is used with
DATA = ("embedded", "cifar10 [DIR]", "folder PATH")
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


@dataclass
class Images:
    """One split: uint8 images ``[N, C, H, W]`` and their classes ``[N]``, on the device."""

    x: Tensor
    y: Tensor

    def __len__(self) -> int:
        return len(self.x)


@dataclass
class Task:
    """The images of a run, and how strong the attacks on them are."""

    train: Images
    test: Images
    classes: list[str]
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
        self.layers = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.features = features

    def forward(self, x: Tensor) -> Tensor:
        """Return the features ``[N, features]`` of images ``[N, C, H, W]``."""
        return self.layers((x - 0.5) / 0.25)


def contrastive(mode: str, encoder: Encoder, task: Task) -> ACLTrainer:
    """Return what trains a copy of the encoder without labels."""
    head = nn.Sequential(nn.Linear(encoder.features, encoder.features), nn.ReLU(), nn.Linear(encoder.features, 64))
    model = convert_to_dual_bn(nn.Sequential(encoder, head.to(task.train.x.device)), inplace=False)
    # What suits a short run on images of 14 x 14 pixels; the defaults of the library are the paper's for CIFAR-10.
    augment = ContrastivePairAugment(task.size, strength=0.5)
    return ACLTrainer(model, mode=mode, loss=NTXentLoss(0.3), attack=task.attack(3), augment=augment)


def pretrain(acl: ACLTrainer, task: Task, settings: Settings, generator: torch.Generator) -> Encoder:
    """Train; return the encoder with the norms of the branch that is wanted afterwards."""
    optimizer = torch.optim.Adam(acl.parameters(), lr=3e-3, weight_decay=1e-6)
    steps = settings.epochs * (len(task.train) // settings.batch_size)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps, pct_start=0.1)
    with tqdm(total=steps, desc=f"pre-train {acl.mode}", unit="step") as bar:
        for _ in range(settings.epochs):
            order = torch.randperm(len(task.train), generator=generator).to(task.train.x.device)
            for batch in order[: len(order) // settings.batch_size * settings.batch_size].split(settings.batch_size):
                out = acl(task.train.x[batch])
                optimizer.zero_grad(set_to_none=True)
                out.loss.backward()
                optimizer.step()
                schedule.step()
                bar.update()
            bar.set_postfix({name: f"{value:.2f}" for name, value in out.terms.items()})
    return export_branch(acl.model, BRANCH[acl.mode])[0]


def train_classifier(model: nn.Module, labelled: Images, task: Task, protocol: str, steps: int, name: str) -> nn.Module:
    """Train a copy of a classifier to be robust: its last layer on adversarial images, or all of it with TRADES."""
    model = copy.deepcopy(model).eval()
    trained, steps = (model[1], (steps + 1) // 2) if protocol == "linear" else (model, steps)
    model[0].requires_grad_(protocol == "finetune")
    attack, augment = task.attack(7), SimCLRAugment(task.size, strength=0.2)
    rate = 0.1 if protocol == "linear" else 0.03
    optimizer = torch.optim.SGD(trained.parameters(), lr=rate, momentum=0.9, nesterov=True, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in tqdm(range(steps), desc=name, unit="step"):
        x, y = augment(labelled.x), labelled.y
        model.eval()
        if protocol == "linear":
            loss = F.cross_entropy(model(attacked(model, x, y, attack)), y)
        else:
            with torch.no_grad():
                clean = model(x)
            x_adv = attack(lambda images, clean=clean: kl_divergence(clean, model(images)), x)
            model.train()
            loss = trades(model(x), model(x_adv), y)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()
    return model.eval()


def attacked(model: nn.Module, x: Tensor, y: Tensor, attack: PGDAttack, seed: int | None = None) -> Tensor:
    """Return images that maximise the cross-entropy of the model."""
    generator = None if seed is None else torch.Generator(x.device).manual_seed(seed)
    return attack(lambda images: F.cross_entropy(model(images), y, reduction="none"), x, generator=generator)


@torch.no_grad()
def accuracy(model: nn.Module, task: Task) -> tuple[float, float]:
    """Return the fraction of test images classified correctly, as they are (TA) and under PGD-20 (RA)."""
    right = torch.zeros(2)
    for start in range(0, len(task.test), 500):
        x, y = task.test.x[start : start + 500].float() / 255, task.test.y[start : start + 500]
        for i, images in enumerate((x, attacked(model, x, y, task.attack(20)))):
            right[i] += (model(images).argmax(1) == y).sum().cpu()
    ta, ra = (right / len(task.test)).tolist()
    return ta, ra


def run(seed: int, task: Task, settings: Settings, results: Results) -> dict[str, nn.Module]:
    """Run all encoders and protocols with one seed; add their accuracies, store and return the classifiers."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    each = settings.labels // len(task.classes)
    y = task.train.y.cpu()
    order = torch.randperm(len(y), generator=generator)
    chosen = torch.cat([order[y[order] == c][:each] for c in range(len(task.classes))]).to(task.train.x.device)
    labelled = Images(task.train.x[chosen], task.train.y[chosen])

    initial = Encoder(task.train.x.shape[1]).to(task.train.x.device, memory_format=torch.channels_last)
    folder = Path(settings.out) / "models"
    folder.mkdir(parents=True, exist_ok=True)
    models = {}
    for name in ENCODERS:
        acl = None if name == "RI" else contrastive(name, initial, task)
        encoder = initial if acl is None else pretrain(acl, task, settings, generator)
        head = nn.Linear(encoder.features, len(task.classes)).to(task.train.x.device)
        nn.init.zeros_(head.weight)
        model = nn.Sequential(encoder, head)
        for protocol in PROTOCOLS:
            model = train_classifier(model, labelled, task, protocol, settings.steps, f"{name} {protocol}")
            entry = results.setdefault(name, {}).setdefault(protocol, {"ta": [], "ra": []})
            for metric, value in zip(("ta", "ra"), accuracy(model, task), strict=True):
                entry[metric].append(value)
            models[f"{name}-{protocol}"] = model
            weights = {key: value.cpu().contiguous() for key, value in model.state_dict().items()}
            about = {"arch": "quickstart", "settings": asdict(settings), "branch": BRANCH.get(name)}
            path = folder / f"seed{seed}-{name}-{protocol}.safetensors"
            save_file(weights, path, {"advcontrast": json.dumps(about)})
            path.chmod(folder.stat().st_mode & 0o666)  # safetensors lets nobody but the owner read
    return models


def load_task(settings: Settings) -> Task:
    """Read the images that ``--data`` names, once the flags make sense."""
    for name in ("seeds", "epochs", "limit", "steps"):
        if getattr(settings, name) < 1:
            raise SystemExit(f"quickstart: expected --{name} of at least 1, got {getattr(settings, name)}.")
    device = settings.device
    if device == "auto":
        device = str(torch.accelerator.current_accelerator() or "cpu") if torch.accelerator.is_available() else "cpu"
    kind, *where = settings.data
    if kind == "embedded" and not where:
        (train, test, classes), eps = embedded(), 0.1
    elif kind == "cifar10" and len(where) <= 1:
        (train, test, classes), eps = cifar10(where[0] if where else "data"), 8 / 255
    elif kind == "folder" and len(where) == 1:
        (train, test, classes), eps = folder(Path(where[0]), settings.limit), 8 / 255
    else:
        raise SystemExit(f"quickstart: expected --data {' or '.join(DATA)}, got {' '.join(settings.data)}.")
    keep = torch.randperm(len(train), generator=torch.Generator().manual_seed(0))[: settings.limit]
    train = Images(train.x[keep], train.y[keep])
    if not 2 <= settings.batch_size <= len(train):
        raise SystemExit(f"quickstart: expected --batch-size from 2 to {len(train)} images, got {settings.batch_size}.")
    most = len(classes) * int(torch.bincount(train.y, minlength=len(classes)).min())
    if not len(classes) <= settings.labels <= most:
        raise SystemExit(f"quickstart: expected --labels from {len(classes)} to {most}, got {settings.labels}.")
    splits = [Images(split.x.to(device), split.y.to(device)) for split in (train, test)]
    return Task(*splits, classes, eps)


def embedded() -> tuple[Images, Images, list[str]]:
    """Return 5,000 training and 1,000 test images of Fashion-MNIST, halved to 14 x 14 pixels."""
    with np.load(Path(__file__).parent / "data" / "fashion-mini.npz") as file:
        arrays = {name: torch.from_numpy(file[name]) for name in file.files}

    def split(name: str) -> Images:
        x = F.avg_pool2d(arrays[f"{name}_images"][:, None].float(), 2).round().to(torch.uint8)
        return Images(x, arrays[f"{name}_labels"].long())

    classes = ["T-shirt", "trousers", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot"]
    return split("train"), split("test"), classes


def cifar10(where: str) -> tuple[Images, Images, list[str]]:
    """Return CIFAR-10, downloaded and verified by torchvision."""
    from torchvision.datasets import CIFAR10

    files = [CIFAR10(where, train=train, download=True) for train in (True, False)]
    train, test = (Images(torch.from_numpy(f.data).permute(0, 3, 1, 2), torch.tensor(f.targets)) for f in files)
    return train, test, files[0].classes


def folder(where: Path, limit: int) -> tuple[Images, Images, list[str]]:
    """Return the images of two folders of class folders, cut square and resized to 32 x 32 pixels."""
    from torchvision.datasets import ImageFolder
    from torchvision.transforms import functional as TF

    def split(name: str, most: int) -> tuple[Images, list[str]]:
        if not (where / name).is_dir():
            raise SystemExit(f"quickstart: expected a folder of class folders at {where / name}, found none.")
        files = ImageFolder(where / name)
        chosen = torch.randperm(len(files), generator=torch.Generator().manual_seed(0))[:most].tolist()
        x = torch.empty(len(chosen), 3, 32, 32, dtype=torch.uint8)
        for i, index in enumerate(tqdm(chosen, desc=f"read {name}", unit="image")):
            try:
                image = files[index][0]
            except OSError as error:
                path = files.samples[index][0]
                raise SystemExit(f"quickstart: expected an image in {path}, got {error}. Remove the file.") from error
            x[i] = TF.pil_to_tensor(TF.resize(TF.center_crop(image, min(image.size)), [32, 32]))
        return Images(x, torch.tensor([files.targets[index] for index in chosen])), files.classes

    train, classes = split("train", limit)
    test, _ = split("test", max(limit // 5, 1))
    return train, test, classes


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


def plot_images(models: dict[str, nn.Module], task: Task, path: Path) -> None:
    """Draw test images, and for each fine-tuned model what the attack makes of them and the perturbation itself."""
    shown = torch.stack([(task.test.y == c).nonzero()[0, 0] for c in range(min(len(task.classes), 8))])
    clean, y = task.test.x[shown].float() / 255, task.test.y[shown]
    rows = [("clean", clean, [task.classes[c] for c in y.tolist()], ["black"] * len(shown))]
    for name in ("RI", "DS"):
        model = models[f"{name}-finetune"]
        perturbed = attacked(model, clean, y, task.attack(20), seed=0)
        guesses = model(perturbed).argmax(1).tolist()
        colours = ["green" if guess == y else "red" for guess, y in zip(guesses, y.tolist(), strict=True)]
        rows.append((f"{name}: attacked", perturbed, [task.classes[guess] for guess in guesses], colours))
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
    results: Results = {}
    for seed in range(settings.seeds):
        models = run(seed, task, settings, results)
        (out / "results.json").write_text(json.dumps(results, indent=2))
    versions = {"advcontrast": advcontrast.__version__, "torch": torch.__version__, "python": platform.python_version()}
    card = {
        "settings": asdict(settings),
        "eps": task.eps,
        "images": {"train": list(task.train.x.shape), "test": list(task.test.x.shape)},
        "branch": BRANCH,
        "versions": versions,
        "hardware": {"device": str(task.train.x.device), "threads": torch.get_num_threads()},
        "seconds": round(time.perf_counter() - started, 1),
    }
    (out / "card.json").write_text(json.dumps(card, indent=2))
    plot_results(results, out / "results.png")
    plot_images(models, task, out / "images.png")
    print(f"\n{table(results)}\n\n{settings.labels} labels, PGD-20, eps = {task.eps:.3g}, {card['seconds']:.0f} s")


if __name__ == "__main__":
    main()
