"""Methods of pre-training: how each builds its learner, and the settings of its paper."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from advcontrast import ACLTrainer, ContrastivePairAugment, NTXentLoss, convert_to_dual_bn, export_branch
from advcontrast.attacks import FreeAttack
from advcontrast.augment import CropFlip, MultiView, Replay, SimCLRAugment
from advcontrast.data import ImageSet
from advcontrast.engine import steps_per_epoch
from advcontrast.evaluation import protocol, run_protocol
from advcontrast.models import acl_head, simclr_head
from advcontrast.norm import DualNorm
from advcontrast.optim import LARS
from advcontrast.strategies import (
    AMOC,
    CFAMC,
    DAQSDP,
    FARE,
    TARO,
    AdvCL,
    AInfoNCE,
    DeACL,
    DynACL,
    Invariance,
    ProFeAT,
    Ramp,
    RobustCoreset,
    RoCL,
    Scheduled,
    SimCLIP,
    Staircase,
    TeCoA,
    pseudo_labels,
)
from baselines.selfie import SelfieLearner

from .attacks import attack_of
from .images import Images
from .load_models import BATCH, encoder_from, join, load_weights, new_encoder, read


@dataclass
class Parts:
    """Parts that a learner is built from."""

    settings: Any
    images: Images
    encoder: nn.Module
    features: int
    attack: Callable[..., Tensor]
    steps: int

    def network(self, *, dual: bool = True, branches: tuple[str, ...] = ("clean", "adv")) -> nn.Module:
        """Return the encoder with its projection head."""
        head = acl_head if self.settings.head == "acl" else simclr_head
        model = join(self.encoder, head(self.features))
        return convert_to_dual_bn(model, branches=branches) if dual else model

    def pair(self, strength: float | None = None) -> ContrastivePairAugment:
        """Return the augmentation to pairs of views."""
        strength = self.settings.strength if strength is None else strength
        return ContrastivePairAugment(self.images.size, strength=strength, min_area=self.settings.min_area)

    @cached_property
    def targets(self) -> Tensor | None:
        """The pseudo-labels that follow the images, for methods that take some."""
        make = METHODS[self.settings.method].targets
        return None if make is None else make(self)

    @property
    def crop_flip(self) -> CropFlip:
        """The augmentation of supervised training, which shifts by an eighth of the side."""
        return CropFlip(padding=max(1, self.images.size // 8))

    @property
    def weak_and_strong(self) -> MultiView:
        """The augmentation to a view that is cropped and flipped, and one with colour jitter and smaller crops too."""
        return MultiView(self.crop_flip, SimCLRAugment(self.images.size, strength=0.5, min_area=0.5))

    def teacher(self) -> nn.Module:
        """Return the encoder that ``--teacher`` names, with the norms of its clean branch."""
        if not self.settings.teacher:
            expected = "the final.safetensors of a standard encoder"
            raise ValueError(f"--teacher: expected {expected}, got nothing. Make one with pretrain.py --mode S2S.")
        found = encoder_from(self.settings, self.images, "teacher")
        dual = any(isinstance(module, DualNorm) for module in found.modules())
        return (export_branch(found, "clean") if dual else found).eval()

    def projector(self) -> nn.Module:
        """Return the projection head of the teacher."""
        weights, _ = read("teacher", self.settings.teacher)
        head = (acl_head if self.settings.head == "acl" else simclr_head)(self.features)
        own = {name.removeprefix("head."): w for name, w in weights.items() if name.startswith("head.")}
        load_weights(head, own, "teacher")
        return head.eval()

    def student(self) -> tuple[nn.Module, nn.Module]:
        """Return a copy of the teacher, to train, and the teacher, each with the part ``encoder``."""
        teacher = join(self.teacher(), nn.Identity()).eval()
        return copy.deepcopy(teacher).train(), teacher


@dataclass(frozen=True)
class Method:
    """A method.

    Attributes:
        build: returns its learner.
        paper: flags with the settings of its paper.
        fast: flags that override them for a short run.
        targets: returns the pseudo-labels that follow the images, for methods that use them.
        select: returns the selection of the images of each epoch, for methods that do not take all.
        share: cost of an epoch in steps for each image, on average, with that of the selections.
        adapt: returns the encoder after a stage that follows the training, whose checkpoints are in a folder.
    """

    build: Callable[[Parts], nn.Module]
    paper: Mapping[str, Any]
    fast: Mapping[str, Any]
    targets: Callable[[Parts], Tensor] | None = None
    select: Callable[[Parts, Any], RobustCoreset] | None = None
    share: float = 1.0
    adapt: Callable[[Parts, Any, Path], nn.Module] | None = None


def acl(parts: Parts, **settings: Any) -> ACLTrainer:
    """Return the learner of ACL in the mode of the flags."""
    flags = parts.settings
    model = parts.network(dual=flags.norms == "dual" or (flags.norms == "auto" and flags.mode in ("A2S", "DS")))
    settings = {"augment": Replay(parts.pair(), times=flags.replays), "mode": flags.mode, **settings}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of single norms, which were asked for
        return ACLTrainer(model, loss=NTXentLoss(flags.temperature, gather=True), attack=parts.attack, **settings)


def dynacl(parts: Parts) -> DynACL:
    """Return the learner of DynACL."""
    return DynACL(parts.network(), steps=parts.steps, attack=parts.attack, augment=parts.pair)


def lp_aft(parts: Parts, learner: DynACL, folder: Path) -> nn.Module:
    """Return the encoder of DynACL++, adapted to the clusters of its own features; a run of 1000 epochs has 25 more."""
    x, settings = parts.images.everything.x, parts.settings
    names = tuple("0123456789")
    clusters = ImageSet(x, pseudo_labels(learner.encoder("clean").encoder, x, len(names)), names)
    whole, epochs = protocol("dynacl2023", "LP-AFT"), max(1, settings.epochs // 40)
    shorter = {"epochs": epochs, "milestones": tuple(each for each in whole.milestones if each < epochs)}
    probe = replace(whole.probe, epochs=max(1, settings.epochs // 100), batch_size=settings.batch_size)
    stage = replace(whole, **shorter, batch_size=settings.batch_size, eps=settings.radius, probe=probe)
    unused = ImageSet(parts.images.test.x[:1], clusters.y[:1], names)  # the accuracy for clusters is not needed
    options = {"seed": settings.seed, "folder": folder, "amp": settings.amp, "compile": settings.compile}
    return run_protocol(learner.encoder("adv").encoder, stage, clusters, None, unused, **options).model.encoder


def air(parts: Parts) -> ACLTrainer:
    """Return the learner of AIR: the terms of AIR on the schedules of DynACL, without its momentum encoder."""
    every = max(1, parts.steps // 20)
    augment = Scheduled(parts.pair, Staircase(1.0, 0.0, parts.steps, every))
    alpha = Ramp(parts.steps, every)
    return acl(parts, mode="DS", alpha=alpha, augment=augment, terms=[Invariance()])


def deacl(parts: Parts) -> DeACL:
    """Return the learner of DeACL."""
    student, teacher = parts.student()
    return DeACL(student, teacher, attack=parts.attack, augment=parts.crop_flip)


def profeat(parts: Parts) -> ProFeAT:
    """Return the learner of ProFeAT; the teacher's view is cropped and flipped, that of the student is stronger."""
    student, teacher = parts.student()
    return ProFeAT(student, parts.projector(), teacher, attack=parts.attack, augment=parts.weak_and_strong)


def daqsdp(parts: Parts) -> DAQSDP:
    """Return the learner of DAQ-SDP; the cost of the perturbed weights of its last epochs is not counted."""
    student, teacher = parts.student()
    student = convert_to_dual_bn(student, branches=DAQSDP.branches)

    def gamma(step: int) -> float:
        return 0.002 if step >= 0.6 * parts.steps else 0.0

    return DAQSDP(student, teacher, gamma=gamma, attack=parts.attack, augment=parts.weak_and_strong)


def fare(parts: Parts) -> FARE:
    """Return the learner of FARE."""
    student, teacher = parts.student()
    return FARE(student, teacher, attack=parts.attack, augment=parts.crop_flip)


def tecoa(parts: Parts) -> TeCoA:
    """Return the learner of TeCoA, whose classes are clusters of the features of the teacher, not words."""
    student, teacher = parts.student()
    with torch.no_grad():
        features = torch.cat([teacher(x) for x, _ in parts.images.everything.batches(BATCH)])
    prototypes = torch.stack([features[parts.targets == c].mean(0) for c in range(parts.images.classes)])
    return TeCoA(student, prototypes, attack=parts.attack, augment=parts.crop_flip)


def teacher_classes(parts: Parts) -> Tensor:
    """Return pseudo-labels ``[N]``, as many clusters of the features of the teacher as there are classes."""
    return pseudo_labels(parts.teacher(), parts.images.everything.x, parts.images.classes)


def simclip(parts: Parts) -> SimCLIP:
    """Return the learner of SimCLIP."""
    student, teacher = parts.student()
    return SimCLIP(student, teacher, attack=parts.attack, augment=parts.crop_flip)


def rocl(parts: Parts) -> RoCL:
    """Return the learner of RoCL."""
    return RoCL(parts.network(dual=False), attack=parts.attack, augment=parts.pair())


def amoc(parts: Parts) -> AMOC:
    """Return the learner of AMOC, whose queues hold at most half of the images."""
    queue = min(32768, max(parts.settings.batch_size, len(parts.images.everything) // 2))
    return AMOC(parts.network(), queue=queue, attack=parts.attack, augment=parts.pair())


def coreset(parts: Parts, learner: ACLTrainer) -> RobustCoreset:
    """Return the selection of RCS: all images for a tenth of the epochs, then a new coreset every 20 epochs."""
    epochs, images = parts.settings.epochs, parts.images.everything.x
    settings = {"fraction": CORESET, "warmup": epochs // 10, "every": 20}
    return RobustCoreset(learner, images, batch_size=parts.settings.batch_size, **settings)


def advcl(parts: Parts) -> AdvCL:
    """Return the learner of AdvCL."""
    model = parts.network(branches=AdvCL.branches)
    width = model(torch.zeros(2, 3, parts.images.size, parts.images.size)).shape[1]
    heads = [nn.Linear(width, clusters) for clusters in clusters_of(parts)]
    return AdvCL(model, heads, attack=parts.attack, augment=MultiView(parts.pair(), parts.crop_flip))


def teacher_clusters(parts: Parts) -> Tensor:
    """Return pseudo-labels ``[N, K]``, clusters of the features of the teacher."""
    return pseudo_labels(parts.teacher(), parts.images.everything.x, clusters_of(parts))


def clusters_of(parts: Parts) -> list[int]:
    """Return the numbers of clusters, without those that leave few images per cluster."""
    return [clusters for clusters in (2, 10, 50, 100) if clusters <= len(parts.images.everything) // 4]


def ainfonce(parts: Parts) -> AInfoNCE:
    """Return the learner of A-InfoNCE with inferior positives."""
    return AInfoNCE(parts.network(), attack=parts.attack, augment=MultiView(parts.pair(), parts.crop_flip))


def taro(parts: Parts) -> TARO:
    """Return the learner of TARO, with a predictor of two layers."""
    model = parts.network(dual=False)
    width = model(torch.zeros(2, 3, parts.images.size, parts.images.size)).shape[1]
    predictor = nn.Sequential(nn.Linear(width, width // 4), nn.BatchNorm1d(width // 4), nn.ReLU())
    predictor.append(nn.Linear(width // 4, width))
    return TARO(model, predictor, attack=parts.attack, augment=parts.pair())


def cfamc(parts: Parts) -> CFAMC:
    """Return the learner of CF-AMC, with four crops of each image and the free attack."""
    crops = MultiView(*4 * [SimCLRAugment(parts.images.size, strength=parts.settings.strength, min_area=0.08)])
    attack = FreeAttack(eps=parts.settings.radius, step_size=parts.settings.radius * 0.3 or 0.01)
    augment = Replay(crops, times=parts.settings.replays)
    return CFAMC(parts.network(dual=False), attack=attack, augment=augment)


def selfie(parts: Parts) -> SelfieLearner:
    """Return the learner of Selfie."""
    if parts.settings.norms == "dual":
        raise ValueError("--norms: expected auto or single for Selfie, got dual. Its network has one branch.")
    return SelfieLearner(parts.encoder, attack=parts.attack)


CORESET = 0.2  # fraction of the images
RCS_SHARE = 0.1 + 0.9 * (CORESET + 2 / 3 / 20)  # a selection costs two thirds of a step for each image
SGD = {"optimizer": "sgd", "lr": 0.5, "weight_decay": 5e-4, "batch_size": 256}
ACL = {"epochs": 1000, "batch_size": 512}
CLIP = {"optimizer": "adam", "lr": 1e-5, "weight_decay": 1e-4, "batch_size": 128, "epochs": 50, "attack_steps": 10}
FAST = {"epochs": 100, "attack_steps": 3, "attack_step": 0.5}
METHODS = {
    "acl": Method(acl, ACL, FAST),
    "advcl": Method(advcl, {**SGD, "batch_size": 512, "weight_decay": 1e-4, "epochs": 1000}, FAST, teacher_clusters),
    "ainfonce": Method(ainfonce, {**SGD, "lr": 1.0, "batch_size": 512, "weight_decay": 1e-4, "epochs": 400}, FAST),
    "air": Method(air, ACL, FAST),
    "amoc": Method(amoc, {**SGD, "lr": 0.1, "epochs": 200}, {"epochs": 40}),
    "cfamc": Method(cfamc, {**SGD, "lr": 0.3, "batch_size": 100, "epochs": 10, "replays": 3}, {"epochs": 3}),
    "dynacl": Method(dynacl, ACL, FAST),
    "dynaclpp": Method(dynacl, ACL, FAST, adapt=lp_aft),
    "daqsdp": Method(daqsdp, {**SGD, "epochs": 100}, {"epochs": 20}),
    "deacl": Method(deacl, {**SGD, "epochs": 100}, {"epochs": 20}),
    "fare": Method(fare, CLIP, {"epochs": 10}),
    "profeat": Method(profeat, {**SGD, "weight_decay": 3e-4, "epochs": 100}, {"epochs": 20}),
    "rcs": Method(acl, ACL, FAST, select=coreset, share=RCS_SHARE),
    "rocl": Method(rocl, {**ACL, "lr": 1.5, "attack_steps": 7, "attack_step": 0.223}, FAST),
    "simclip": Method(simclip, {**CLIP, "lr": 1e-3, "weight_decay": 1e-5, "batch_size": 64}, {"epochs": 10}),
    "tecoa": Method(tecoa, CLIP, {"epochs": 10}, teacher_classes),
    "taro": Method(taro, {**SGD, "lr": 0.06, "batch_size": 512, "epochs": 800, "attack_steps": 10}, FAST),
}


def presets() -> dict[str, dict[str, Any]]:
    """Return the presets ``<method>-paper`` and ``<method>-fast`` of all methods but ACL."""
    found = {}
    for name, method in METHODS.items():
        if name != "acl":
            found[f"{name}-paper"] = {**method.paper, "method": name}
            found[f"{name}-fast"] = {**method.paper, **method.fast, "method": name}
    return found


def optimizer_of(settings: Any, learner: nn.Module) -> torch.optim.Optimizer:
    """Return the optimizer of all weights that are trained, with the momentum of the ACL code."""
    parameters = [parameter for parameter in learner.parameters() if parameter.requires_grad]
    lr, decay = settings.lr, settings.weight_decay
    if settings.optimizer == "lars":
        return LARS(parameters, lr, weight_decay=decay, exclude_1d=settings.spare_norms)
    if settings.optimizer == "adam":
        return torch.optim.Adam(parameters, lr, weight_decay=decay)
    nesterov = settings.optimizer == "nesterov"
    return torch.optim.SGD(parameters, lr, momentum=0.9, weight_decay=decay, nesterov=nesterov)


def prepared(settings: Any, images: Images, samples: int) -> tuple[Parts, nn.Module]:
    """Return the parts of the learner, and the learner on the device of the images."""
    encoder, features = new_encoder(settings, images)
    steps = steps_of(settings, samples)
    parts = Parts(settings, images, encoder, features, attack_of(settings, steps), steps)
    build = selfie if settings.mode == "selfie" else METHODS[settings.method].build
    return parts, build(parts).to(images.everything.x.device)


def steps_of(settings: Any, samples: int) -> int:
    """Return the number of training steps of a run."""
    whole, epochs = steps_per_epoch(samples, settings.batch_size), settings.epochs
    if METHODS[settings.method].select is None:
        return epochs * whole
    selected = int(CORESET * (samples - -(-samples // 100)))  # every hundredth image is set aside
    return epochs // 10 * whole + (epochs - epochs // 10) * max(1, selected // settings.batch_size)


def batch_of(parts: Parts) -> tuple[Tensor, ...]:
    """Return a batch of the training data of the learner."""
    batch = parts.images.everything.x[: parts.settings.batch_size]
    return (batch,) if parts.targets is None else (batch, parts.targets[: len(batch)])
