"""What is left of an epoch under accelerate: its mean loss, and a state on the disk."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor

from .._checks import check_int, check_path, complaint, type_name

Folder: TypeAlias = str | os.PathLike[str]

_WHOLE = "progress.json"  # the last file of a state to be written, and the first to go


def check(optimizer: Any, epochs: Any, schedule: Any, report: Any, folder: Any) -> None:
    """Require each to be of its kind, before anything changes."""
    check_int("pretrain", "epochs", epochs, low=1, remedy="An epoch is one pass over the batches")
    if not isinstance(optimizer, torch.optim.Optimizer):
        remedy = "Pass torch.optim.SGD(learner.parameters(), lr=0.1)"
        raise TypeError(complaint("pretrain", "an optimizer", type_name(optimizer), remedy))
    for name, function in (("schedule", schedule), ("report", report)):
        if not callable(function):
            raise TypeError(complaint("pretrain", f"{name} to be callable", type_name(function), "Pass a function"))
    if folder is not None:
        check_path("pretrain", "folder", folder, remedy="Pass a string or a Path, or None")


def mean(accelerator: Any, losses: list[Tensor]) -> float:
    """Return the mean of the losses of all processes, of which there must be one at least."""
    if not losses:
        remedy = "An iterator can be walked only once; pass a DataLoader, with fewer images a batch than there are"
        raise ValueError(complaint("pretrain", "at least one batch an epoch", "none", remedy))
    return float(accelerator.reduce(torch.stack(losses).mean(), "mean"))


def load(accelerator: Any, folder: Folder) -> tuple[list[float], int]:
    """Give the accelerator the newest state in a folder; return the loss of each epoch and the number of updates."""
    found = [json.loads(file.read_text()) for file in Path(folder).glob(f"[01]/{_WHOLE}")]
    losses, updates = max(found, key=lambda progress: len(progress[0]), default=([], 0))
    if losses:
        accelerator.load_state(str(Path(folder, str(len(losses) % 2))))
    return losses, updates


def save(accelerator: Any, folder: Folder, losses: list[float], updates: int) -> None:
    """Write the state of the accelerator; that of the epoch before stays until the next one."""
    place = Path(folder, str(len(losses) % 2))
    if accelerator.is_main_process:
        (place / _WHOLE).unlink(missing_ok=True)
    accelerator.wait_for_everyone()
    accelerator.save_state(str(place), safe_serialization=False)  # safetensors holds nothing but tensors
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        (place / "new").write_text(json.dumps([losses, updates]))
        (place / "new").replace(place / _WHOLE)
