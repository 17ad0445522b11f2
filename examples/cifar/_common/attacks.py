"""Attacks of pre-training: presets with cheaper attacks, their cost, and measurements during training."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from advcontrast import PGDAttack
from advcontrast.attacks import FreeAttack, ProgressiveAttack, WarmStart
from advcontrast.engine import forward_equivalents
from advcontrast.evaluation import catastrophic_overfitting
from advcontrast.evaluation.representation import knn_monitor
from advcontrast.norm import DualNorm

from .images import Images
from .load_models import BATCH
from .run_folder import say

CHEAPER = {
    "few": {"attack_steps": 3, "attack_step": 0.5},
    "single": {"attack_steps": 1, "attack_step": 1.25},
    "warm": {"attack": "warm", "attack_steps": 1, "attack_step": 1.0},
    "free": {"attack": "free", "attack_step": 1.0, "replays": 4},
    "progressive": {"attack": "progressive"},
}
COUNTED = 64  # images, enough to count the passes of one


def attack_of(settings: Any, steps: int) -> Callable[..., Tensor]:
    """Return the attack of a run of ``steps`` training steps."""
    step = settings.radius * settings.attack_step if settings.radius else settings.step
    pgd = PGDAttack(eps=settings.radius, step_size=step, steps=settings.attack_steps)
    if settings.attack == "free":
        return FreeAttack(eps=settings.radius, step_size=step)
    if settings.attack == "warm":
        return WarmStart(pgd)
    if settings.attack == "progressive":
        single = replace(pgd, steps=1, step_size=1.25 * settings.radius or step)
        few = replace(pgd, steps=3, step_size=settings.radius / 2 or step)
        third = max(1, steps // 3)
        return ProgressiveAttack([(third, single), (third, few), (None, pgd)])
    return pgd


def mean_cost(learner: nn.Module, batch: tuple[Tensor, ...], steps: int) -> float:
    """Return the forward passes for each image and step, on average over a run of ``steps`` steps."""
    batch = tuple(part[:COUNTED] for part in batch)
    if not isinstance(learner.attack, ProgressiveAttack):
        return forward_equivalents(learner, *batch)
    cost, taken = 0.0, 0
    for calls, _ in learner.attack.stages:
        stage = copy.deepcopy(learner)
        stage.attack.set_extra_state({"calls": taken})
        more = steps - taken if calls is None else min(calls, steps - taken)
        cost += more / steps * forward_equivalents(stage, *batch)
        taken += more
    return cost


def watch(settings: Any, learner: nn.Module, images: Images, epoch: int) -> dict[str, float]:
    """Measure catastrophic overfitting on one batch, and print a warning of it."""
    found = catastrophic_overfitting(learner, images.everything.x[: settings.batch_size], eps=settings.radius)
    if found.alarm:
        say(
            f"{settings.out}: epoch {epoch}: catastrophic overfitting, one step of attack gains {found.share:.0%} of "
            "the gain of ten. The training loss is meaningless from here: take more steps, or an earlier checkpoint."
        )
    return {"one_step_share": found.share}


def evaluation_of(settings: Any, learner: nn.Module, images: Images) -> Callable[[int], dict[str, float]] | None:
    """Return the function that measures the encoder after each epoch."""
    if settings.monitor:
        attack = PGDAttack(eps=settings.radius, step_size=settings.step, steps=10)
        branch = "adv" if any(isinstance(module, DualNorm) for module in learner.model.modules()) else None
        neighbours, few = (
            images.train.batches(BATCH),
            images.validation.subset(torch.arange(min(settings.monitor, len(images.validation)))),
        )
        options = {"attack": attack, "branch": branch, "k": min(50, len(images.train))}
        return knn_monitor(learner.model.encoder, list(neighbours), list(few.batches(BATCH)), **options)
    if settings.attack_steps == 1 and settings.mode != "S2S" and not getattr(learner, "labelled", False):
        return partial(watch, settings, learner, images)
    return None
