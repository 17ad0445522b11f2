"""The state of a run under accelerate on the disk: that of the epoch before stays until the next one is complete."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .._checks import complaint
from ._folder import saving
from ._progress import NAME, write


def load(accelerator: Any, folder: Path, epochs: int) -> None:
    """Give the accelerator the state after a number of epochs."""
    place = str(Path(folder, str(epochs % 2)))
    try:
        accelerator.load_state(place)
    except Exception as error:  # whatever accelerate makes of a damaged file
        got, remedy = f"{type(error).__name__}: {error}".rstrip("."), "Remove it; the run goes on from the epoch before"
        raise ValueError(complaint("pretrain", f"a whole state in {place!r}", got, remedy)) from error


def save(accelerator: Any, folder: Path, losses: list[float], updates: int, ours: list[str]) -> None:
    """Write the state of the accelerator after an epoch, in the place of that before the last one."""
    place = Path(folder, str(len(losses) % 2))
    with saving("pretrain", place):
        if accelerator.is_main_process:
            (place / NAME).unlink(missing_ok=True)
        accelerator.wait_for_everyone()
        accelerator.save_state(str(place), safe_serialization=False)  # safetensors holds nothing but tensors
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            write(place, losses, updates, ours)
