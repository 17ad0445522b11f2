"""The progress bar of a run."""

from __future__ import annotations

import time

from typing_extensions import Self

from .. import distributed
from .._progress import progress_bar
from .metrics import Means

_SECONDS = 2.0


class StepBar:
    """A bar over the steps of a run, with the mean loss of the epoch so far; only the first process shows one.

    Reading the loss waits for the device, so it is read every two seconds, and only if the bar is shown.

    Args:
        steps: steps of the run.
        done: steps taken before.
        shown: ``None`` shows it on terminals only.
    """

    def __init__(self, steps: int, done: int, shown: bool | None) -> None:
        self._bar = progress_bar(steps, unit="step", shown=shown if distributed.rank() == 0 else False, done=done)
        self._row = ""
        self._due = 0.0

    def __enter__(self) -> Self:
        self._bar.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.__exit__(*error)

    def update(self, means: Means) -> None:
        """Count a step."""
        self._bar.update()
        if not self._bar.disable and time.monotonic() >= self._due:
            loss = means.sums["loss"].item() / means.samples
            self._bar.set_postfix_str(f"loss {loss:.4g}{self._row}")
            self._due = time.monotonic() + _SECONDS

    def end_epoch(self, row: str) -> None:
        """Show the metrics of an epoch."""
        self._bar.set_postfix_str(row)
        self._row = f" after {row}"
