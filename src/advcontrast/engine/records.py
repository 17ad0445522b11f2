"""The folder of a run: its checkpoints, its table of metrics, and what TensorBoard reads."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from .. import distributed
from .._checks import complaint
from .checkpoint import Checkpoint
from .errors import CheckpointError
from .metrics import write_csv
from .run import Run


class Records:
    """Where a run is written down, by the first process alone. Without a folder nothing is.

    Args:
        folder: of the run, or ``None``.
        tensorboard: whether to write for TensorBoard too.
    """

    def __init__(self, folder: Path | None, *, tensorboard: bool) -> None:
        self.folder = folder
        self._checkpoint = None if folder is None else Checkpoint(folder / "checkpoints")
        self._tensorboard = tensorboard
        self._writer: Any = None

    @contextmanager
    def resumed(self, run: Run) -> Iterator[None]:
        """Take possession of the folder inside the block, and put the run where its last good checkpoint left it."""
        if self.folder is None or self._checkpoint is None:
            yield
            return
        with ExitStack() as stack:
            found = self._find(self._checkpoint, stack)
            if found is not None:
                run.restore(found[1], str(self._checkpoint.path(found[0])))
            if distributed.rank() == 0:
                if found is not None:
                    # Forget what was reported after the checkpoint.
                    write_csv(self.folder / "metrics.csv", run.history)
                if self._tensorboard:
                    self._writer = _tensorboard_writer(self.folder / "tensorboard", run.step)
                    stack.callback(self._writer.close)
            yield

    def _find(self, checkpoint: Checkpoint, stack: ExitStack) -> tuple[int, dict[str, Any]] | None:
        """Lock the folder; return the checkpoint that the first process finds, or raise everywhere what it raised."""
        found: tuple[int, dict[str, Any]] | None = None
        failure: CheckpointError | None = None
        if distributed.rank() == 0:
            try:
                stack.enter_context(checkpoint.locked())
                found = checkpoint.load()
            except CheckpointError as error:
                failure = error
        # The others need not see the folder, which may be on a disk of the first machine.
        text, found = distributed.from_first((failure and str(failure), found))
        if text is not None:
            raise failure or CheckpointError(text)
        return found

    def save(self, run: Run) -> None:
        """Write a checkpoint. All processes must call this, and all raise where the first one cannot write."""
        run.require_finite()
        if self._checkpoint is not None:
            state = run.state()
            failure: CheckpointError | None = None
            if distributed.rank() == 0:
                try:
                    self._checkpoint.save(run.step, state)
                except CheckpointError as error:
                    failure = error
            text = distributed.from_first(failure and str(failure))
            if text is not None:
                raise failure or CheckpointError(text)

    def report(self, run: Run) -> None:
        """Write the row of the epoch that has just ended."""
        if self.folder is None or distributed.rank() != 0:
            return
        write_csv(self.folder / "metrics.csv", run.history)
        if self._writer is not None:
            for name, value in run.history[-1].items():
                self._writer.add_scalar(name, value, run.step)


def _tensorboard_writer(folder: Path, step: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        remedy = "Install it with pip install tensorboard, or leave the argument out"
        raise RuntimeError(complaint("fit", "tensorboard to be installed", str(error), remedy)) from error
    return SummaryWriter(str(folder), purge_step=step + 1)
