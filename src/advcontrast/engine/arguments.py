"""Checks of the arguments of :func:`fit`."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Sequence
from inspect import signature
from numbers import Real
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import Dataset

from .. import distributed
from .._checks import check_int, check_module, check_path, check_real, check_tensor, complaint, type_name
from ..optim.ema import EMA
from .batches.reader import Reader
from .batches.source import Source, source_of
from .run_settings import weights_of

_OWNER = "fit"


def check_data(
    learner: nn.Module, data: Tensor | Sequence[Tensor] | Dataset[Any] | Reader, batch_size: int, groups: Tensor | None
) -> Source:
    """Require a learner and data that can be trained with, and return the source of the batches."""
    check_module(_OWNER, learner)
    if not any(parameter.requires_grad for parameter in learner.parameters()):
        remedy = "Unfreeze what is to be trained"
        raise ValueError(complaint(_OWNER, "a learner with parameters to train", "none", remedy))
    source = source_of(data)
    lengths, world = source.lengths, distributed.world_size()
    fewest = 2 * world
    if len(set(lengths)) != 1 or lengths[0] < fewest:
        expected = f"data of one length, at least {fewest}"
        remedy = "Pass the images as a tensor [N, C, H, W], and labels beside them as (images, labels)"
        raise ValueError(complaint(_OWNER, expected, f"lengths {lengths}", remedy))
    check_int(_OWNER, "batch_size", batch_size, low=fewest, remedy="A batch has two samples at least a process")
    if batch_size % world:
        remedy = "Every process takes as many samples as the others"
        raise ValueError(
            complaint(_OWNER, f"batch_size to be a multiple of {world} processes", repr(batch_size), remedy)
        )
    if groups is not None:
        remedy = "Pass the number of its group for each sample"
        check_tensor(_OWNER, "groups", groups, (torch.int64,), remedy=remedy)
        if list(groups.shape) != lengths[:1]:
            raise ValueError(complaint(_OWNER, f"groups of shape {lengths[:1]}", str(list(groups.shape)), remedy))
    return source


def check_parts(
    optimizer: Any, schedule: Any, evaluate: Any, select: Any, folder: str | os.PathLike[str] | None, ema: Any
) -> None:
    """Require each of these that is not ``None`` to be of its type."""
    kinds = (
        ("optimizer", optimizer, Optimizer, "Pass the optimizer itself, such as LARS(learner.parameters(), lr=5.0)"),
        ("ema", ema, EMA, "Pass EMA(learner.model, decay=0.999)"),
        ("select", select, str, "Pass the name of a metric"),
    )
    for name, part, kind, remedy in kinds:
        if part is not None and not isinstance(part, kind):
            expected = f"{name} to be of type {kind.__name__} or None"
            raise TypeError(complaint(_OWNER, expected, type_name(part), remedy))
    if isinstance(schedule, Real):
        remedy = "1.0 keeps the learning rate; for another one, set it in the optimizer"
        check_real(_OWNER, "schedule", schedule, low=0, above=True, remedy=remedy)
    elif schedule is not None and not callable(schedule):
        remedy = "Pass a function of the step that returns the fraction of the learning rate, a number, or None"
        raise TypeError(complaint(_OWNER, "schedule to be callable or a number", type_name(schedule), remedy))
    if evaluate is not None and not callable(evaluate):
        remedy = "Pass a function, or None"
        raise TypeError(complaint(_OWNER, "evaluate to be callable", type_name(evaluate), remedy))
    if folder is not None:
        check_path(_OWNER, "folder", folder, remedy="Pass a string or a Path, or None")
    if select is not None and "test" in re.split("[^a-z]+", select.lower()):
        remedy = "Select on validation images, and look at the test images once, at the end"
        raise ValueError(complaint(_OWNER, "a metric of validation images to select by", repr(select), remedy))


def check_savable(learner: nn.Module) -> None:
    """Require every tensor that is saved to have values."""
    for name, tensor in weights_of(learner.state_dict()).items():
        if tensor.is_meta:
            remedy = "Register the buffer with persistent=False, or leave out folder="
            raise ValueError(complaint(_OWNER, f"{name} to have values", "a tensor on the meta device", remedy))


def check_optimizer(owner: str, learner: nn.Module, optimizer: Optimizer) -> None:
    """Require an optimizer of the learner's parameters, and of no others, that can step without a closure."""
    required = [p.name for p in signature(optimizer.step).parameters.values() if p.default is p.empty]
    if "closure" in required:
        remedy = "Pass one that takes a step from the gradients alone, such as SGD, Adam or LARS"
        raise TypeError(complaint(owner, "an optimizer that needs no closure", type_name(optimizer), remedy))
    check_parameters(owner, learner, optimizer)


def check_parameters(owner: str, learner: nn.Module, optimizer: Optimizer) -> None:
    """Require an optimizer of the learner's parameters, and of no others, which would be neither saved nor reset."""
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    ours = {id(parameter): parameter.requires_grad for parameter in learner.parameters()}
    if not any(ours.get(parameter) for parameter in held):
        remedy = "Make it from learner.parameters(), once the network has been converted"
        got = f"{type_name(optimizer)} of other parameters"
        raise ValueError(complaint(owner, "an optimizer of the parameters of the learner", got, remedy))
    if others := len(held - ours.keys()):
        remedy = "Assign the modules that hold these to attributes of the learner, or make it from learner.parameters()"
        got = f"{type_name(optimizer)} with {others} other tensors"
        raise ValueError(complaint(owner, "an optimizer of the parameters of the learner alone", got, remedy))


def warn_of_untrained(learner: nn.Module, optimizer: Optimizer) -> None:
    """Warn of trainable parameters that the optimizer lacks."""
    known = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    names = [name for name, p in learner.named_parameters() if p.requires_grad and id(p) not in known]
    if names:
        got = f"one without {len(names)} of them: {', '.join(names[:3])}{', ...' if len(names) > 3 else ''}"
        remedy = "Make it when the network has been converted and is whole, or set their requires_grad to False"
        text = complaint(_OWNER, "an optimizer of all parameters that require gradients", got, remedy)
        warnings.warn(text, UserWarning, stacklevel=4)


def check_rate(rate: Any) -> float:
    """Require a schedule to return a fraction of the learning rate, and return it."""
    remedy = "Let it return the fraction of the learning rate to use"
    check_real(_OWNER, "what schedule returns", rate, low=0, remedy=remedy)
    return float(rate)
