"""How far a run under accelerate is, and what it is a run of: the last file of a state to be written."""

from __future__ import annotations

import json
from itertools import zip_longest
from pathlib import Path

import torch

from .._atomic_io import replace
from .._checks import complaint

NAME = "progress.json"


def parts(learner: torch.nn.Module, optimizer: torch.optim.Optimizer) -> list[str]:
    """Return in words what a state is one of."""
    groups = [f"{type(optimizer).__name__} of {len(group['params'])} tensors" for group in optimizer.param_groups]
    return groups + [f"{name} {list(parameter.shape)}" for name, parameter in learner.named_parameters()]


def progress(folder: Path, ours: list[str]) -> tuple[list[float], int]:
    """Return the loss of each epoch and the number of updates, once the newest state is known to be one of ``ours``."""
    if folder.is_file():
        raise NotADirectoryError(complaint("pretrain", "folder to be one", f"the file {str(folder)!r}", "Pass another"))
    found = [_read(file) for file in folder.glob(f"[01]/{NAME}")]
    losses, updates, theirs = max(found, key=lambda state: len(state[0]), default=([], 0, ours))
    for saved, given in zip_longest(theirs, ours, fillvalue="nothing"):
        if saved != given:
            expected = f"{saved}, as in the run in {str(folder)!r}"
            raise ValueError(complaint("pretrain", expected, given, "Pass what it began with, or another folder"))
    return losses, updates


def write(place: Path, losses: list[float], updates: int, ours: list[str]) -> None:
    """Mark the state in a folder as complete."""
    replace(place / NAME, json.dumps([losses, updates, ours]).encode())


def _read(file: Path) -> tuple[list[float], int, list[str]]:
    try:
        losses, updates, theirs = json.loads(file.read_text())
        return list(map(float, losses)), int(updates), list(map(str, theirs))
    except (TypeError, ValueError) as error:
        remedy = "Remove it; the run goes on from the epoch before"
        raise ValueError(
            complaint("pretrain", f"the progress of a run in {str(file)!r}", str(error), remedy)
        ) from error
