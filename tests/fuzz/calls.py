"""One valid call of every public callable: its name, what is called, and fresh arguments by name."""

import warnings
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import nn

from advcontrast import (
    attacks,
    augment,
    data,
    engine,
    evaluation,
    functional,
    losses,
    models,
    norm,
    optim,
    strategies,
    surgery,
)
from advcontrast.evaluation import cards, masking, plots, protocols, representation
from advcontrast.evaluation.accuracy import corrupted
from advcontrast.evaluation.uar import (
    UAR,
    Calibration,
    ElasticAttack,
    FrankWolfeAttack,
    JPEGAttack,
    calibrated_attacks,
    jpeg_decode,
    jpeg_encode,
    warp,
)


class Call(NamedTuple):
    """``function(**arguments)``, for which everything in ``arguments`` was made anew."""

    function: Callable[..., Any]
    arguments: dict[str, Any]


def call(function: Callable[..., Any], /, **arguments: Any) -> Call:
    return Call(function, arguments)


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def rows(n: int = 4, width: int = 3) -> torch.Tensor:
    return torch.randn(n, width, generator=seeded())


def images(n: int = 4, side: int = 8) -> torch.Tensor:
    return torch.rand(n, 3, side, side, generator=seeded())


def labels(n: int = 4) -> torch.Tensor:
    return torch.arange(n) % 3


def yes(n: int = 4) -> torch.Tensor:
    return torch.ones(n, dtype=torch.bool)


def linear(side: int = 8) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * side * side, 3))


def sure() -> nn.Module:
    """Return a classifier that is right about images of class 0."""
    model = linear()
    model[1].bias.data[0] = 9.0
    return model


def network() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 2, 3), nn.BatchNorm2d(2), nn.ReLU(), nn.Flatten(), nn.Linear(72, 3))


def large() -> nn.Module:
    return nn.Sequential(
        OrderedDict(conv1=nn.Conv2d(3, 2, 7, 2, 3), bn1=nn.BatchNorm2d(2), maxpool=nn.MaxPool2d(3), layer1=nn.ReLU())
    )


def dual() -> nn.Module:
    return surgery.convert_to_dual_bn(network())


def batches() -> list[tuple[torch.Tensor, torch.Tensor]]:
    return [(images(), labels())]


def objective(x: torch.Tensor) -> torch.Tensor:
    return x.flatten(1).sum(1)


def pgd(**settings: Any) -> attacks.PGDAttack:
    return attacks.PGDAttack(steps=1, **settings)


def attacked(attack: Any, side: int = 8) -> Call:
    return call(attack, objective=objective, x=images(side=side), generator=seeded())


def verdicts() -> evaluation.Accuracy:
    return evaluation.Accuracy(yes())


def card(**changes: Any) -> dict[str, Any]:
    own = {"name": "DS", "verdicts": {"TA": [yes()]}, "seeds": [0], "data": "four", "fingerprint": "0" * 64}
    return own | {"dtype": "float32"} | changes


def image_set(shade: int = 255) -> data.ImageSet:
    return data.ImageSet((images(6) * shade).byte(), labels(6), ("a", "b", "c"))


def pictures(folder: Path) -> Path:
    for name in ("cats", "dogs"):
        (folder / name).mkdir()
        Image.new("RGB", (9, 9)).save(folder / name / "one.png")
    return folder


def saved(folder: Path) -> engine.Checkpoint:
    checkpoint = engine.Checkpoint(folder)
    checkpoint.save(1, {"x": 1})
    return checkpoint


def written(folder: Path) -> Path:
    evaluation.ResultCard(**card()).write(folder / "card.json")
    return folder / "card.json"


def learner() -> nn.Module:
    return strategies.StandardTrainer(linear())


def fitted(**changes: Any) -> Call:
    own = {"learner": learner(), "data": (images(), labels()), "epochs": 1, "batch_size": 2, "seed": 0}
    return call(engine.fit, **own, **changes)


def entered(context: Callable[..., Any]) -> Callable[..., None]:
    def enter(**arguments: Any) -> None:
        with context(**arguments):
            pass

    return enter


def all_of(iterates: Callable[..., Any]) -> Callable[..., list[Any]]:
    return lambda **arguments: list(iterates(**arguments))


def quietly(function: Callable[..., Any]) -> Callable[..., Any]:
    def run(**arguments: Any) -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return function(**arguments)

    return run


def data_set() -> torch.utils.data.Dataset:
    return torch.utils.data.TensorDataset(images())


def figure(plot: Callable[..., Any]) -> Callable[..., None]:
    def draw(**arguments: Any) -> None:
        plot(**arguments).clear()

    return draw


def with_batch(function: Callable[..., Any]) -> Callable[..., Any]:
    def called(learner: nn.Module, images: Any, labels: Any, **settings: Any) -> Any:
        return function(learner, images, labels, **settings)

    return called


def lars() -> optim.LARS:
    return optim.LARS([nn.Parameter(rows())], 0.1)


def probe() -> evaluation.Protocol:
    return replace(evaluation.protocol("robustssl", "SLF"), epochs=1, milestones=(), batch_size=2)


def protocol_settings() -> dict[str, Any]:
    return vars(probe()) | {}


class Lesson:
    """A learner that is called with tensors by name, and whose state the fuzzer compares."""

    def __init__(self, learner: nn.Module) -> None:
        self.learner = learner

    def forward(self, **batch: Any) -> Any:
        return self.learner(*batch.values(), generator=seeded())


def strategy(kind: Callable[..., nn.Module], views: int = 2, **own: Any) -> Call:
    """Return a call of the constructor of a strategy."""
    settings = {"attack": pgd(), "augment": view_augments[views - 1], "terms": [strategies.Distillation(teacher())]}
    return call(kind, model=dual(), **own, **settings)


def lesson(kind: Callable[..., nn.Module], *own: Any, targets: Any = None, views: int = 2, **settings: Any) -> Call:
    """Return a call of a strategy, whose parts are yielded in it, with views and targets."""
    given = {f"x{i}": images() for i in range(1, views + 1)} | ({} if targets is None else {"targets": targets})
    return call(Lesson(kind(network(), *own, attack=pgd(), **settings)).forward, **given)


def teacher() -> nn.Module:
    return network().eval()


def acl(**settings: Any) -> strategies.ACLTrainer:
    return strategies.ACLTrainer(dual(), attack=pgd(), augment=augment.ContrastivePairAugment(8), **settings)


def step() -> strategies.Step:
    return strategies.Step(acl(), (images(), images()), source={"generator": seeded()})


def queue() -> strategies.Queue:
    return strategies.Queue(8, 3)


def scheduled() -> strategies.Scheduled:
    return strategies.Scheduled(lambda strength: lambda x: strength * x, lambda step: 1.0)


def coreset(learner: nn.Module) -> strategies.RobustCoreset:
    return strategies.RobustCoreset(learner, images(12), fraction=0.5, every=1, batch_size=2, attack=pgd())


def selection() -> Call:
    learner = acl()
    return call(coreset(learner).forward, epoch=1, learner=learner)


def spread(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function of arguments by name that calls ``function`` with them by position."""
    return lambda **arguments: function(*arguments.values())


simclr = augment.SimCLRAugment(8)
view_augments = (
    augment.CropFlip(1),
    augment.ContrastivePairAugment(8),
    augment.MultiView(augment.ContrastivePairAugment(8), augment.CropFlip(1)),
)
progressive = partial(attacks.ProgressiveAttack, [(1, attacks.PGDAttack(steps=1)), (None, attacks.PGDAttack(steps=2))])
block = {"channels": 4, "width": 4, "stride": 2}
network_settings = {"num_classes": 3, "width": 2, "in_channels": 3, "normalize": ((0.5, 0.5, 0.5), (0.2, 0.2, 0.2))}
one_epoch = {"features": 0.5, "statistics": 0.5, "affine": 0.5}
label_free = (
    "distance", "breakaway_risk", "nearest_neighbour_accuracy", "overlap_risk", "margin", "alignment",
    "uniformity_clean", "uniformity_adv", "effective_rank_clean", "effective_rank_adv",
)  # fmt: skip

f, a, e, n = functional, attacks, evaluation, norm
CALLS: dict[str, Callable[[Path], Call]] = {
    "functional.alignment": lambda _: call(f.alignment, z1=rows(), z2=rows()),
    "functional.breakaway_risk": lambda _: call(f.breakaway_risk, clean=rows(), adv=rows()),
    "functional.coding_rate": lambda _: call(f.coding_rate, z=rows(), eps=0.2),
    "functional.cosine": lambda _: call(f.cosine, z1=rows(), z2=rows()),
    "functional.distillation": lambda _: call(f.distillation, logits=rows(), teacher_logits=rows(), temperature=2.0),
    "functional.dlr": lambda _: call(f.dlr, logits=rows(width=4), y=labels()),
    "functional.effective_rank": lambda _: call(f.effective_rank, z=rows()),
    "functional.high_frequency": lambda _: call(f.high_frequency, x=images(), radius=2.0),
    "evaluation.uar.jpeg_decode": lambda _: call(jpeg_decode, coefficients=jpeg_encode(images(side=16)), size=(16, 16)),
    "evaluation.uar.jpeg_encode": lambda _: call(jpeg_encode, x=images(side=16)),
    "functional.kl_divergence": lambda _: call(f.kl_divergence, logits=rows(), other=rows()),
    "functional.linf_box": lambda _: call(f.linf_box, x=images(), eps=0.1, bounds=(0.0, 1.0)),
    "functional.margin_ratio": lambda _: call(
        f.margin_ratio, clean=rows(), other=-rows(), adv=rows(), adv_other=-rows()
    ),
    "functional.nearest_neighbour_accuracy": lambda _: call(
        f.nearest_neighbour_accuracy, clean=rows(), adv=rows(), top=1
    ),
    "functional.nt_xent": lambda _: call(f.nt_xent, z1=rows(), z2=rows(), temperature=0.5, tile=2),
    "functional.overlap_risk": lambda _: call(f.overlap_risk, margins=rows()[0]),
    "functional.semi_supervised": lambda _: call(
        f.semi_supervised,
        clean_logits=rows(),
        adv_logits=rows(),
        labels=labels(),
        teacher_logits=rows(),
        alpha=0.5,
        temperature=1.0,
        beta=6.0,
    ),
    "functional.targeted_dlr": lambda _: call(f.targeted_dlr, logits=rows(width=5), y=labels(), target=labels() + 1),
    "functional.trades": lambda _: call(f.trades, clean_logits=rows(), adv_logits=rows(), labels=labels(), beta=6.0),
    "functional.uniformity": lambda _: call(f.uniformity, z=rows(), t=2.0),
    "evaluation.uar.warp": lambda _: call(warp, x=images(), flow=torch.zeros(4, 2, 8, 8)),
    "losses.NTXentLoss": lambda _: call(losses.NTXentLoss, temperature=0.5, tile=2, gather=False),
    "losses.NTXentLoss.forward": lambda _: call(losses.NTXentLoss(), z1=rows(), z2=rows()),
    "losses.SemiSupervisedLoss": lambda _: call(losses.SemiSupervisedLoss, alpha=0.5, temperature=1.0, beta=6.0),
    "losses.SemiSupervisedLoss.forward": lambda _: call(
        losses.SemiSupervisedLoss(), clean_logits=rows(), adv_logits=rows(), labels=labels(), teacher_logits=rows()
    ),
    "losses.TRADESLoss": lambda _: call(losses.TRADESLoss, beta=6.0),
    "losses.TRADESLoss.forward": lambda _: call(
        losses.TRADESLoss(), clean_logits=rows(), adv_logits=rows(), labels=labels()
    ),
    "attacks.APGDAttack": lambda _: call(
        a.APGDAttack, eps=0.1, steps=10, norm="linf", loss="ce", restarts=1, targets=2, bounds=(0.0, 1.0)
    ),
    "attacks.APGDAttack.__call__": lambda _: call(
        a.APGDAttack(steps=2),
        objective=a.ClassificationObjective(linear().eval(), labels()),
        x=images(),
        generator=seeded(),
    ),
    "attacks.ClassificationObjective": lambda _: call(a.ClassificationObjective, model=linear(), y=labels()),
    "attacks.ClassificationObjective.logits": lambda _: call(
        a.ClassificationObjective(linear().eval(), labels()).logits, x=images()
    ),
    "attacks.ClassificationObjective.__call__": lambda _: call(
        a.ClassificationObjective(linear().eval(), labels()), x=images()
    ),
    "evaluation.uar.ElasticAttack": lambda _: call(
        ElasticAttack,
        eps=1.0,
        step_size=0.5,
        steps=1,
        random_start=True,
        kernel_size=5,
        kernel_std=0.5,
        minimize=False,
    ),
    "evaluation.uar.ElasticAttack.__call__": lambda _: attacked(ElasticAttack(steps=1)),
    "evaluation.uar.FrankWolfeAttack": lambda _: call(
        FrankWolfeAttack, eps=1.0, steps=1, random_start=True, bounds=(0.0, 1.0), minimize=False
    ),
    "evaluation.uar.FrankWolfeAttack.__call__": lambda _: attacked(FrankWolfeAttack(steps=1)),
    "attacks.FreeAttack": lambda _: call(a.FreeAttack, eps=0.1, step_size=0.1, norm="linf", bounds=(0.0, 1.0)),
    "attacks.FreeAttack.forward": lambda _: attacked(a.FreeAttack()),
    "evaluation.uar.JPEGAttack": lambda _: call(
        JPEGAttack, eps=0.5, step_size=0.5, steps=1, norm="linf", random_start=True, minimize=False
    ),
    "evaluation.uar.JPEGAttack.__call__": lambda _: attacked(JPEGAttack(steps=1), side=16),
    "attacks.PGDAttack": lambda _: call(
        a.PGDAttack,
        eps=0.1,
        step_size=0.1,
        steps=1,
        norm="linf",
        random_start=True,
        bounds=(0.0, 1.0),
        restarts=1,
        minimize=False,
    ),
    "attacks.PGDAttack.__call__": lambda _: call(
        pgd(), objective=objective, x=images(), generator=seeded(), start=images()
    ),
    "attacks.ProgressiveAttack": lambda _: call(a.ProgressiveAttack, stages=[(1, pgd()), (None, pgd())]),
    "attacks.ProgressiveAttack.forward": lambda _: attacked(progressive()),
    "attacks.ProgressiveAttack.get_extra_state": lambda _: call(progressive().get_extra_state),
    "attacks.ProgressiveAttack.set_extra_state": lambda _: call(
        progressive().set_extra_state, state=progressive().get_extra_state()
    ),
    "attacks.WarmStart": lambda _: call(a.WarmStart, attack=pgd()),
    "attacks.WarmStart.forward": lambda _: attacked(a.WarmStart(pgd())),
    "attacks.under_attack": lambda _: call(entered(a.under_attack), model=network()),
    "augment.Corruption": lambda _: call(augment.Corruption, name="fog", severity=3),
    "augment.Corruption.__call__": lambda _: call(augment.Corruption("contrast"), x=images(), generator=seeded()),
    "augment.ContrastivePairAugment": lambda _: call(
        augment.ContrastivePairAugment, size=8, strength=1.0, min_area=0.1, transform=simclr
    ),
    "augment.ContrastivePairAugment.__call__": lambda _: call(
        augment.ContrastivePairAugment(8), x=images(), generator=seeded()
    ),
    "augment.CropFlip": lambda _: call(augment.CropFlip, padding=4, flip=0.5),
    "augment.CropFlip.__call__": lambda _: call(augment.CropFlip(1), x=images(), generator=seeded()),
    "augment.MultiView": lambda _: call(spread(augment.MultiView), first=augment.CropFlip(1), second=simclr),
    "augment.MultiView.forward": lambda _: call(augment.MultiView(simclr), x=images(), generator=seeded()),
    "augment.Replay": lambda _: call(augment.Replay, augment=simclr, times=2),
    "augment.Replay.forward": lambda _: call(augment.Replay(simclr, times=2), x=images(), generator=seeded()),
    "augment.Replay.get_extra_state": lambda _: call(augment.Replay(simclr, times=2).get_extra_state),
    "augment.Replay.set_extra_state": lambda _: call(
        augment.Replay(simclr, times=2).set_extra_state, state=augment.Replay(simclr, times=2).get_extra_state()
    ),
    "augment.SimCLRAugment": lambda _: call(augment.SimCLRAugment, size=8, strength=1.0, min_area=0.1),
    "augment.SimCLRAugment.__call__": lambda _: call(simclr, x=images(), generator=seeded()),
    "augment.SimCLRAugment.draw": lambda _: call(simclr.draw, n=4, height=8, width=8, generator=seeded()),
    "augment.SimCLRAugment.apply": lambda _: call(simclr.apply, x=images(), parameters=simclr.draw(4, 8, 8, seeded())),
    "norm.DualBatchNorm": lambda _: call(
        n.DualBatchNorm,
        num_features=3,
        eps=1e-5,
        momentum=0.1,
        affine=True,
        track_running_stats=True,
        device="cpu",
        dtype=torch.float32,
    ),
    "norm.DualBatchNorm.from_batchnorm": lambda _: call(
        n.DualBatchNorm2d.from_batchnorm, bn=nn.BatchNorm2d(3), branches=("clean", "adv"), split="both"
    ),
    "norm.DualBatchNorm1d": lambda _: call(
        n.DualBatchNorm1d,
        num_features=3,
        eps=1e-5,
        momentum=0.1,
        affine=True,
        track_running_stats=True,
        device="cpu",
        dtype=torch.float32,
    ),
    "norm.DualBatchNorm2d": lambda _: call(
        n.DualBatchNorm2d,
        num_features=3,
        eps=1e-5,
        momentum=0.1,
        affine=True,
        track_running_stats=True,
        device="cpu",
        dtype=torch.float32,
    ),
    "norm.DualBatchNorm3d": lambda _: call(
        n.DualBatchNorm3d,
        num_features=3,
        eps=1e-5,
        momentum=0.1,
        affine=True,
        track_running_stats=True,
        device="cpu",
        dtype=torch.float32,
    ),
    "norm.DualNorm": lambda _: call(n.DualNorm, norm=nn.LayerNorm(3), branches=("clean", "adv"), split="both"),
    "norm.DualNorm.add_module": lambda _: call(
        n.DualNorm(nn.LayerNorm(3)).add_module, name="adv", module=nn.LayerNorm(3)
    ),
    "norm.DualNorm.register_buffer": lambda _: call(
        n.DualNorm(nn.BatchNorm1d(3)).register_buffer, name="running_mean", tensor=torch.zeros(3)
    ),
    "norm.DualNorm.register_parameter": lambda _: call(
        n.DualNorm(nn.LayerNorm(3)).register_parameter, name="bias", param=nn.Parameter(torch.zeros(3))
    ),
    "norm.DualNorm.forward": lambda _: call(n.DualNorm(nn.LayerNorm(3)), input=rows()),
    "norm.bn_branch": lambda _: call(n.bn_branch, model=dual(), branch="adv"),
    "norm.branch_parameters": lambda _: call(n.branch_parameters, model=dual(), branch="adv"),
    "norm.checkpoint_context_fn": lambda _: call(n.checkpoint_context_fn, model=dual()),
    "norm.set_bn_branch": lambda _: call(n.set_bn_branch, model=dual(), branch="adv"),
    "norm.update_bn": lambda _: call(n.update_bn, model=dual(), loader=batches(), branch="adv"),
    "surgery.interpolate_branches": lambda _: call(
        surgery.interpolate_branches, model=dual(), weights={"clean": 0.5, "adv": 0.5}, loader=batches()
    ),
    "surgery.convert_to_dual_bn": lambda _: call(
        surgery.convert_to_dual_bn,
        model=network(),
        norms=nn.BatchNorm2d,
        branches=("clean", "adv"),
        split="both",
        filter_fn=lambda *_: True,
        inplace=True,
    ),
    "surgery.convert_sync_batchnorm": lambda _: call(
        surgery.convert_sync_batchnorm, model=network(), process_group=None
    ),
    "surgery.export_branch": lambda _: call(surgery.export_branch, model=dual(), branch="adv"),
    "surgery.load_published": lambda _: call(
        surgery.load_published,
        model=dual(),
        state_dict={
            k.replace("clean", "bn_list.0").replace("adv", "bn_list.1"): v for k, v in dual().state_dict().items()
        },
        layout="acl",
        ignore=("fc.",),
    ),
    "data.ImageSet": lambda _: call(data.ImageSet, x=(images() * 255).byte(), y=labels(), classes=("a", "b", "c")),
    "data.ImageSet.to": lambda _: call(image_set().to, device="cpu"),
    "data.ImageSet.subset": lambda _: call(image_set().subset, indices=torch.tensor([1, 2])),
    "data.ImageSet.batches": lambda _: call(all_of(image_set().batches), size=2),
    "data.ImageSet.fingerprint": lambda _: call(image_set().fingerprint),
    "data.cifar10": lambda folder: call(partial(data.cifar10, download=False), root=folder, train=True),
    "data.cifar100": lambda folder: call(partial(data.cifar100, download=False), root=folder, train=True),
    "data.cifar10_c": lambda folder: call(data.cifar10_c, folder=folder, names=("fog",), verify=False),
    "data.image_folder": lambda folder: call(
        data.image_folder,
        root=pictures(folder),
        size=8,
        cache=None,
        unreadable="raise",
        max_unreadable_fraction=0.0,
        outside_links=False,
        progress=None,
    ),
    "data.ImageStream": lambda folder: call(
        data.ImageStream,
        root=pictures(folder),
        size=4,
        unreadable="skip",
        max_unreadable_fraction=0.5,
        outside_links=False,
    ),
    "data.ImageStream.path": lambda folder: call(data.ImageStream(pictures(folder)).path, index=1),
    "data.ImageStream.read": lambda folder: call(data.ImageStream(pictures(folder)).read, index=1),
    "data.ImageStream.note": lambda folder: call(
        quietly(data.ImageStream(pictures(folder), max_unreadable_fraction=0.5).note), index=1, reason="It is gone."
    ),
    "data.ImageStream.fingerprint": lambda folder: call(data.ImageStream(pictures(folder)).fingerprint),
    "data.interleave": lambda _: call(data.interleave, groups=labels(), generator=seeded()),
    "data.labelled_subset": lambda _: call(data.labelled_subset, labels=labels(30), fraction=0.5, seed=0),
    "data.train_validation_split": lambda _: call(data.train_validation_split, n=30, seed=10),
    "models.BasicBlock": lambda _: call(models.BasicBlock, **block),
    "models.BasicBlock.forward": lambda _: call(models.BasicBlock(4, 4, 2), x=torch.rand(2, 4, 4, 4)),
    "models.Bottleneck": lambda _: call(models.Bottleneck, **block),
    "models.Bottleneck.forward": lambda _: call(models.Bottleneck(4, 4, 2), x=torch.rand(2, 4, 4, 4)),
    "models.PreActivationBlock": lambda _: call(models.PreActivationBlock, **block),
    "models.PreActivationBlock.forward": lambda _: call(models.PreActivationBlock(4, 4, 2), x=torch.rand(2, 4, 4, 4)),
    "models.Normalize": lambda _: call(models.Normalize, mean=(0.5, 0.5, 0.5), std=(0.2, 0.2, 0.2)),
    "models.Normalize.forward": lambda _: call(models.Normalize(), x=images()),
    "models.ResNet": lambda _: call(models.ResNet, block=models.BasicBlock, depths=(1, 1, 1, 1), **network_settings),
    "models.ResNet.forward": lambda _: call(models.ResNet(models.BasicBlock, (1, 1, 1, 1), width=2), x=images()),
    "models.WideResNet": lambda _: call(models.WideResNet, **network_settings),
    "models.WideResNet.forward": lambda _: call(models.WideResNet(width=2), x=images()),
    "models.acl_head": lambda _: call(models.acl_head, num_features=4, hidden=3, out=2),
    "models.simclr_head": lambda _: call(models.simclr_head, num_features=4, hidden=3, out=2),
    "models.backbone": lambda _: call(models.backbone, name="resnet18", width=2, small_images=True),
    "models.cifar_stem": lambda _: call(models.cifar_stem, model=large()),
    "models.pretrained": lambda _: call(models.pretrained, name="resnet18w16-cifar10-ds", branch="adv"),
    "models.resnet18": lambda _: call(models.resnet18, **network_settings),
    "models.resnet34": lambda _: call(models.resnet34, **network_settings),
    "models.resnet50": lambda _: call(models.resnet50, **network_settings),
    "models.wide_resnet34_10": lambda _: call(models.wide_resnet34_10, **network_settings),
    "engine.Checkpoint": lambda folder: call(engine.Checkpoint, folder=folder, keep=2),
    "engine.Checkpoint.path": lambda folder: call(saved(folder).path, step=1),
    "engine.Checkpoint.steps": lambda folder: call(saved(folder).steps),
    "engine.Checkpoint.save": lambda folder: call(saved(folder).save, step=2, state={"x": 1}),
    "engine.Checkpoint.load": lambda folder: call(saved(folder).load),
    "engine.Checkpoint.read": lambda folder: call(saved(folder).read, step=1),
    "engine.Checkpoint.locked": lambda folder: call(entered(saved(folder).locked)),
    "optim.EMA": lambda _: call(optim.EMA, model=network(), decay=0.9),
    "optim.EMA.update": lambda _: call(optim.EMA(network(), 0.9).update, model=network()),
    "optim.EMA.state_dict": lambda _: call(optim.EMA(network(), 0.9).state_dict),
    "optim.EMA.load_state_dict": lambda _: call(
        optim.EMA(network(), 0.9).load_state_dict, state_dict=optim.EMA(network(), 0.9).state_dict()
    ),
    "optim.LARS": lambda _: call(
        optim.LARS,
        params=list(linear().parameters()),
        lr=0.1,
        momentum=0.9,
        weight_decay=1e-6,
        trust=0.001,
        exclude_1d=False,
    ),
    "optim.LARS.add_param_group": lambda _: call(
        lars().add_param_group, param_group={"params": [nn.Parameter(rows())]}
    ),
    "optim.LARS.step": lambda _: call(lars().step, closure=None),
    "optim.MultiStep": lambda _: call(optim.MultiStep, milestones=(1, 2), gamma=0.1),
    "optim.MultiStep.__call__": lambda _: call(optim.MultiStep((1, 2)), step=1),
    "optim.WarmupCosine": lambda _: call(optim.WarmupCosine, steps=10, warmup=2, floor=0.1),
    "optim.WarmupCosine.__call__": lambda _: call(optim.WarmupCosine(10), step=1),
    "engine.fit": lambda folder: fitted(
        optimizer=None,
        schedule=None,
        groups=torch.zeros(4, dtype=torch.int64),
        evaluate=lambda epoch: {"score": 1.0},
        select="score",
        folder=folder,
        accumulate=1,
        progress=None,
    ),
    "engine.forward_equivalents": lambda _: call(
        with_batch(engine.forward_equivalents), learner=learner(), images=images(), labels=labels()
    ),
    "engine.DataReader": lambda _: call(engine.DataReader, dataset=data_set(), workers=0, timeout=1.0, prefetch=1),
    "engine.steps_per_epoch": lambda _: call(engine.steps_per_epoch, samples=10, batch_size=3),
    "strategies.ACLTrainer": lambda _: call(
        strategies.ACLTrainer,
        model=dual(),
        loss=losses.NTXentLoss(),
        attack=pgd(),
        augment=augment.ContrastivePairAugment(8),
        mode="DS",
        alpha=1.0,
    ),
    "strategies.ACLTrainer.forward": lambda _: call(
        strategies.ACLTrainer(dual(), attack=pgd()), x1=images(), x2=images(), generator=seeded()
    ),
    "strategies.ACLTrainer.parts": lambda _: lesson(strategies.ACLTrainer, mode="A2A"),
    "strategies.AInfoNCE": lambda _: strategy(
        strategies.AInfoNCE, 3, gamma=0.2, weight=1.2, hard_negatives=(0.12, 1.0), released=False
    ),
    "strategies.AInfoNCE.parts": lambda _: lesson(strategies.AInfoNCE, views=3),
    "strategies.AMOC": lambda _: strategy(strategies.AMOC, queue=8, decay=0.9, temperature=0.2, released=False),
    "strategies.AMOC.parts": lambda _: lesson(strategies.AMOC, queue=8),
    "strategies.AdaptiveGamma": lambda _: call(strategies.AdaptiveGamma, start=0.2, after=1, nearest=0.4),
    "strategies.AdaptiveGamma.advance": lambda _: call(strategies.AdaptiveGamma(after=1).advance),
    "strategies.AdaptiveGamma.forward": lambda _: call(strategies.AdaptiveGamma(after=1), distances=torch.ones(3)),
    "strategies.AdvCL": lambda _: call(
        strategies.AdvCL,
        model=network(),
        heads=[nn.Linear(3, 3)],
        weight=0.2,
        radius=2.0,
        attack=pgd(),
        augment=view_augments[2],
        terms=(),
    ),
    "strategies.AdvCL.parts": lambda _: lesson(strategies.AdvCL, [nn.Linear(3, 3)], views=3, targets=labels()[:, None]),
    "strategies.AdversarialTrainer": lambda _: call(
        strategies.AdversarialTrainer, model=network(), attack=pgd(), augment=augment.CropFlip(1), frozen=False
    ),
    "strategies.AdversarialTrainer.forward": lambda _: call(
        strategies.AdversarialTrainer(network(), attack=pgd()), images=images(), labels=labels()
    ),
    "strategies.AdversarialTrainer.attacked": lambda _: call(
        strategies.AdversarialTrainer(network(), attack=pgd()).attacked, x=images(), objective=objective
    ),
    "strategies.AdversarialTrainer.eval_logits": lambda _: call(
        strategies.AdversarialTrainer(network(), attack=pgd()).eval_logits, x=images()
    ),
    "strategies.CFAMC": lambda _: strategy(strategies.CFAMC),
    "strategies.CFAMC.parts": lambda _: lesson(strategies.CFAMC),
    "strategies.ContrastiveLearner": lambda _: strategy(strategies.ContrastiveLearner),
    "strategies.ContrastiveLearner.encoder": lambda _: call(acl().encoder, branch="adv"),
    "strategies.ContrastiveLearner.forward": lambda _: lesson(strategies.ACLTrainer, mode="S2S"),
    "strategies.ContrastiveLearner.now": lambda _: call(acl().now, weight=1.0),
    "strategies.ContrastiveLearner.parts": lambda _: lesson(
        strategies.ACLTrainer, mode="S2S", terms=[strategies.Distillation(teacher())]
    ),
    "strategies.ContrastiveLearner.parts_under_attack": lambda _: call(acl().parts_under_attack),
    "strategies.ContrastiveLearner.require_branches": lambda _: call(spread(acl().require_branches), module=dual()),
    "strategies.ContrastiveLearner.weight": lambda _: call(acl().weight, name="weight", value=1.0, remedy="Pass one"),
    "strategies.DAQSDP": lambda _: call(
        strategies.DAQSDP,
        model=network(),
        teacher=teacher(),
        robust=2.0,
        gamma=0.002,
        attack=pgd(),
        augment=view_augments[1],
        terms=(),
    ),
    "strategies.DAQSDP.parts": lambda _: lesson(strategies.DAQSDP, teacher()),
    "strategies.DeACL": lambda _: strategy(strategies.DeACL, 1, teacher=teacher(), robust=2.0),
    "strategies.DeACL.parts": lambda _: lesson(strategies.DeACL, teacher(), views=1),
    "strategies.Distillation": lambda _: call(strategies.Distillation, teacher=teacher(), weight=1.0),
    "strategies.Distillation.forward": lambda _: lesson(strategies.RoCL, terms=[strategies.Distillation(teacher())]),
    "strategies.DynACL": lambda _: call(
        strategies.DynACL,
        model=dual(),
        steps=4,
        every=2,
        decay=0.9,
        released=False,
        loss=losses.NTXentLoss(),
        attack=pgd(),
        augment=lambda strength: augment.ContrastivePairAugment(8, strength=strength),
        terms=(),
    ),
    "strategies.FARE": lambda _: strategy(strategies.FARE, 1, teacher=teacher(), clean=1.0, drift=0.1),
    "strategies.FARE.parts": lambda _: lesson(strategies.FARE, teacher(), views=1, clean=1.0),
    "strategies.Frozen": lambda _: call(strategies.Frozen, model=network()),
    "strategies.Frozen.fingerprint": lambda _: call(strategies.Frozen(network()).fingerprint),
    "strategies.Frozen.forward": lambda _: call(strategies.Frozen(network()), x=images()),
    "strategies.Frozen.train": lambda _: call(strategies.Frozen(network()).train, mode=True),
    "strategies.Invariance": lambda _: call(strategies.Invariance, weight=0.25, temperature=0.5, released=False),
    "strategies.Invariance.forward": lambda _: call(Lesson(acl(terms=[strategies.Invariance()])).forward, x=images()),
    "strategies.Momentum": lambda _: call(strategies.Momentum, model=network(), decay=0.9),
    "strategies.Momentum.advance": lambda _: call(strategies.Momentum(network(), 0.9).advance),
    "strategies.Momentum.forward": lambda _: call(strategies.Momentum(network(), 0.9), x=images()),
    "strategies.ProFeAT": lambda _: strategy(
        strategies.ProFeAT, projector=nn.Linear(3, 2), teacher=teacher(), beta=8.0
    ),
    "strategies.ProFeAT.forward": lambda _: lesson(strategies.ProFeAT, nn.Linear(3, 2), teacher(), views=1),
    "strategies.ProFeAT.parts": lambda _: lesson(strategies.ProFeAT, nn.Linear(3, 2), teacher()),
    "strategies.Queue": lambda _: call(strategies.Queue, size=8, dim=3),
    "strategies.Queue.advance": lambda _: call(queue().advance),
    "strategies.Queue.get_extra_state": lambda _: call(queue().get_extra_state),
    "strategies.Queue.push": lambda _: call(queue().push, z=rows()),
    "strategies.Queue.read": lambda _: call(queue().read, z=rows()),
    "strategies.Queue.set_extra_state": lambda _: call(queue().set_extra_state, state=queue().get_extra_state()),
    "strategies.Ramp": lambda _: call(strategies.Ramp, steps=4, every=2, released=False),
    "strategies.Ramp.__call__": lambda _: call(strategies.Ramp(4, 2), step=1),
    "strategies.RoCL": lambda _: strategy(strategies.RoCL, extra=1.0, released=False),
    "strategies.RoCL.parts": lambda _: lesson(strategies.RoCL),
    "strategies.RobustCoreset": lambda _: call(
        strategies.RobustCoreset,
        learner=acl(),
        images=images(12),
        fraction=0.5,
        every=1,
        warmup=0,
        batch_size=2,
        head=None,
        attack=pgd(),
        released=False,
    ),
    "strategies.RobustCoreset.forward": lambda _: selection(),
    "strategies.RobustCoreset.get_extra_state": lambda _: call(coreset(acl()).get_extra_state),
    "strategies.RobustCoreset.set_extra_state": lambda _: call(
        coreset(acl()).set_extra_state, state=coreset(acl()).get_extra_state()
    ),
    "strategies.Scheduled": lambda _: call(
        strategies.Scheduled, make=lambda strength: lambda x: strength * x, strength=lambda step: 1.0
    ),
    "strategies.Scheduled.forward": lambda _: call(spread(scheduled()), x=images()),
    "strategies.Scheduled.get_extra_state": lambda _: call(scheduled().get_extra_state),
    "strategies.Scheduled.set_extra_state": lambda _: call(
        scheduled().set_extra_state, state=scheduled().get_extra_state()
    ),
    "strategies.SemiSupervisedTrainer": lambda _: call(
        strategies.SemiSupervisedTrainer,
        model=network(),
        loss=losses.SemiSupervisedLoss(),
        attack=pgd(),
        augment=augment.CropFlip(1),
    ),
    "strategies.SemiSupervisedTrainer.forward": lambda _: call(
        strategies.SemiSupervisedTrainer(network(), attack=pgd()),
        images=images(),
        labels=labels(),
        teacher_logits=rows(),
    ),
    "strategies.SimCLIP": lambda _: strategy(strategies.SimCLIP, 1, teacher=teacher()),
    "strategies.SimCLIP.parts": lambda _: lesson(strategies.SimCLIP, teacher(), views=1),
    "strategies.Staircase": lambda _: call(strategies.Staircase, start=1.0, end=0.0, steps=4, every=2),
    "strategies.Staircase.__call__": lambda _: call(strategies.Staircase(1.0, 0.0, 4), step=1),
    "strategies.StandardTrainer": lambda _: call(
        strategies.StandardTrainer, model=network(), augment=augment.CropFlip(1), frozen=False
    ),
    "strategies.StandardTrainer.forward": lambda _: call(
        strategies.StandardTrainer(network()), images=images(), labels=labels()
    ),
    "strategies.StandardTrainer.train": lambda _: call(strategies.StandardTrainer(network()).train, mode=True),
    "strategies.Step": lambda _: call(
        strategies.Step, learner=acl(), views=(images(), images()), images=images(), targets=labels(), source={}
    ),
    "strategies.Step.embed": lambda _: call(spread(step().embed), branch="adv", x1=images(), x2=images()),
    "strategies.Step.gather": lambda _: call(spread(step().gather), z1=rows(), z2=rows()),
    "strategies.Step.perturb": lambda _: call(
        spread(step().perturb), objective=lambda z: z.sum(), branch="adv", x=images()
    ),
    "strategies.Step.still": lambda _: call(spread(step().still), branch="adv", x1=images(), x2=images()),
    "strategies.TARO": lambda _: strategy(strategies.TARO, predictor=nn.Linear(3, 3), released=False),
    "strategies.TARO.parts": lambda _: lesson(strategies.TARO, nn.Linear(3, 3)),
    "strategies.TeCoA": lambda _: strategy(strategies.TeCoA, 1, prototypes=rows(), scale=100.0),
    "strategies.TeCoA.parts": lambda _: lesson(strategies.TeCoA, rows(), views=1, targets=labels()),
    "strategies.TRADESTrainer": lambda _: call(
        strategies.TRADESTrainer, model=network(), attack=pgd(), augment=augment.CropFlip(1), beta=6.0, frozen=False
    ),
    "strategies.TRADESTrainer.forward": lambda _: call(
        strategies.TRADESTrainer(network(), attack=pgd()), images=images(), labels=labels()
    ),
    "strategies.perturbed_weights": lambda _: call(
        entered(strategies.perturbed_weights), model=network(), loss=lambda: nn.Parameter(rows()).sum(), gamma=0.002
    ),
    "strategies.pseudo_labels": lambda _: call(
        strategies.pseudo_labels, encoder=linear(), images=images(6), clusters=2, seed=0
    ),
    "evaluation.accuracy.Accuracy": lambda _: call(e.Accuracy, correct=yes()),
    "evaluation.masking.Alarm": lambda _: call(e.Alarm, name="a", raised=True, reason="b", figures={"c": 1.0}),
    "evaluation.accuracy.AutoAttackResult": lambda _: call(
        e.AutoAttackResult, correct=yes(), clean=yes(), broken_by=-torch.ones(4, dtype=torch.int8), attacks=("apgd-ce",)
    ),
    "evaluation.representation.BranchGap": lambda _: call(representation.BranchGap, **one_epoch),
    "evaluation.uar.Calibration": lambda _: call(
        Calibration,
        attack=lambda **settings: pgd(),
        published=(1, 2, 3, 4, 5, 6),
        scale=1.0,
        ata=(9.0, 8.0, 7.0, 6.0, 5.0, 4.0),
    ),
    "evaluation.cards.Comparison": lambda _: call(cards.Comparison, a="a", b="b", metrics={}),
    "evaluation.accuracy.CorruptionAccuracy": lambda _: call(e.CorruptionAccuracy, verdicts={"fog": {1: verdicts()}}),
    "evaluation.representation.LabelFreeRobustness": lambda _: call(
        e.LabelFreeRobustness, **dict.fromkeys(label_free, 0.5)
    ),
    "evaluation.masking.MaskingReport": lambda _: call(e.MaskingReport, alarms=(), images=4),
    "evaluation.masking.Overfitting": lambda _: call(masking.Overfitting, clean=0.5, single=0.5, strong=0.5),
    "evaluation.protocols.Protocol": lambda _: call(e.Protocol, **protocol_settings()),
    "evaluation.protocols.ProtocolResult": lambda _: call(
        e.ProtocolResult, protocol=probe(), model=linear(), ta=verdicts(), ra=verdicts(), history=[], epoch=0
    ),
    "evaluation.representation.KNNClassifier": lambda _: call(
        representation.KNNClassifier, encoder=network(), batches=batches(), k=2, temperature=0.1
    ),
    "evaluation.representation.KNNClassifier.forward": lambda _: call(
        representation.KNNClassifier(network(), batches(), k=2), x=images()
    ),
    "evaluation.cards.ResultCard": lambda _: call(
        e.ResultCard, **card(branch="adv", attacks={}, settings={}, versions={}, revision=None)
    ),
    "evaluation.cards.ResultCard.from_verdicts": lambda _: call(
        e.ResultCard.from_verdicts,
        name="DS",
        verdicts={"TA": [verdicts()]},
        seeds=[0],
        data="four",
        fingerprint="0" * 64,
        dtype=torch.float32,
        device="cpu",
    ),
    "evaluation.cards.ResultCard.to_json": lambda _: call(e.ResultCard(**card()).to_json),
    "evaluation.cards.ResultCard.write": lambda folder: call(e.ResultCard(**card()).write, path=folder / "card.json"),
    "evaluation.cards.ResultCard.read": lambda folder: call(e.ResultCard.read, path=written(folder)),
    "evaluation.accuracy.RobustCurve": lambda _: call(
        e.RobustCurve, parameter="eps", values=(0.0, 0.1), correct=torch.ones(2, 4, dtype=torch.bool)
    ),
    "evaluation.uar.UAR": lambda _: call(UAR, name="pgd_linf", correct=torch.ones(6, 10, dtype=torch.bool)),
    "evaluation.accuracy.accuracy": lambda _: call(e.accuracy, model=linear(), batches=batches()),
    "evaluation.accuracy.autoattack": lambda folder: call(
        e.autoattack,
        model=sure(),
        batches=[(images(), labels(4).clamp(1))],
        eps=0.1,
        norm="linf",
        version="standard",
        seed=0,
        folder=folder,
        progress=False,
    ),
    "evaluation.masking.batch_dependence": lambda _: call(masking.batch_dependence, model=network(), images=images()),
    "evaluation.representation.branch_gap": lambda _: call(e.branch_gap, model=dual(), batches=batches()),
    "evaluation.uar.calibrated_attacks": lambda _: call(calibrated_attacks, name="pgd_linf", steps=1),
    "evaluation.masking.catastrophic_overfitting": lambda _: call(
        with_batch(e.catastrophic_overfitting),
        learner=strategies.AdversarialTrainer(linear(), attack=pgd()),
        images=images(),
        labels=labels(),
        eps=0.1,
        steps=2,
        seed=0,
    ),
    "evaluation.cards.compare_cards": lambda _: call(
        e.compare_cards, a=e.ResultCard(**card()), b=e.ResultCard(**card(name="S2S"))
    ),
    "evaluation.accuracy.corrupted": lambda _: call(
        all_of(corrupted), batches=batches(), names=("contrast",), severities=(1,), seed=0
    ),
    "evaluation.accuracy.corruption_accuracy": lambda _: call(
        e.corruption_accuracy, model=linear(), conditions=[("fog", 1, batches())]
    ),
    "evaluation.representation.knn_monitor": lambda _: call(
        lambda **arguments: representation.knn_monitor(**arguments)(1),
        encoder=dual(),
        neighbours=batches(),
        batches=batches(),
        attack=pgd(),
        branch="adv",
        k=2,
        temperature=0.1,
        every=1,
    ),
    "evaluation.masking.loss_decreases_with_strength": lambda _: call(
        masking.loss_decreases_with_strength, losses={1: rows()[0], 20: rows()[1]}, parameter="steps"
    ),
    "evaluation.masking.gradient_masking": lambda _: call(
        e.gradient_masking,
        model=sure(),
        batches=[(images(), torch.zeros(4, dtype=torch.int64))],
        attack=pgd(),
        surrogate=linear(),
    ),
    "evaluation.masking.attack_not_converged": lambda _: call(
        masking.attack_not_converged, once=verdicts(), twice=verdicts()
    ),
    "evaluation.representation.label_free_robustness": lambda _: call(
        e.label_free_robustness, encoder=linear(), batches=batches(), attack=pgd(), generator=seeded()
    ),
    "evaluation.masking.loss_beaten": lambda _: call(
        masking.loss_beaten, white=verdicts(), other=verdicts(), by="margin loss"
    ),
    "evaluation.cards.markdown_table": lambda _: call(e.markdown_table, cards=[e.ResultCard(**card())]),
    "evaluation.plots.plot_branches": lambda _: call(
        figure(plots.plot_branches), clean_features=rows(), adv_features=rows() + 1, y=labels(), classes=("a", "b", "c")
    ),
    "evaluation.plots.plot_corruptions": lambda _: call(
        figure(plots.plot_corruptions), accuracies={"DS": {"fog": 0.5}}
    ),
    "evaluation.plots.plot_curves": lambda _: call(
        figure(plots.plot_curves), curves={"DS": e.RobustCurve("eps", (0.0, 0.1), torch.ones(2, 4, dtype=torch.bool))}
    ),
    "evaluation.plots.plot_images": lambda _: call(
        figure(plots.plot_images),
        clean=images(1),
        adv=images(1),
        y=labels(1),
        clean_predictions=labels(1),
        adv_predictions=labels(1),
        classes=("a", "b", "c"),
        amplification=2.0,
    ),
    "evaluation.masking.probability_output": lambda _: call(
        masking.probability_output, model=linear(), images=images()
    ),
    "evaluation.protocols.protocol": lambda _: call(e.protocol, preset="robustssl", kind="SLF"),
    "evaluation.masking.randomised_output": lambda _: call(masking.randomised_output, model=linear(), images=images()),
    "evaluation.cards.revision": lambda folder: call(cards.revision, folder=folder),
    "evaluation.accuracy.robust_accuracy": lambda _: call(
        e.robust_accuracy, model=linear(), batches=batches(), attack=pgd(), generator=seeded()
    ),
    "evaluation.accuracy.robust_curve": lambda _: call(
        e.robust_curve, model=linear(), batches=batches(), attack=pgd(), eps=[0.0, 0.1], generator=seeded()
    ),
    "evaluation.protocols.run_protocol": lambda folder: call(
        e.run_protocol,
        encoder=linear(),
        protocol=probe(),
        train=image_set(),
        validation=image_set(254),
        test=image_set(253),
        seed=0,
        folder=folder,
    ),
    "evaluation.masking.train_mode": lambda _: call(masking.train_mode, model=network()),
    "evaluation.uar.uar": lambda _: call(
        e.uar, model=linear(32), batches=[(images(2, 32), labels(2))], name="pgd_linf", steps=1, generator=seeded()
    ),
    "evaluation.masking.unbounded_attack": lambda _: call(masking.unbounded_attack, unbounded=verdicts()),
    "evaluation.protocols.unchanged": lambda _: call(
        entered(protocols.unchanged), encoder=network().eval(), images=images()
    ),
    "evaluation.cards.versions": lambda _: call(cards.versions, device="cpu"),
    "evaluation.masking.weaker_attack_wins": lambda _: call(
        masking.weaker_attack_wins, white=verdicts(), other=verdicts(), by="noise"
    ),
    "evaluation.masking.zero_gradients": lambda _: call(masking.zero_gradients, model=linear(), batches=batches()),
}
