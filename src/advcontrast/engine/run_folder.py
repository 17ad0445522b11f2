"""The folder of a run: its checkpoints, its table of metrics, and what TensorBoard reads."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, TypeVar, cast

from .. import distributed
from .._checks import complaint
from .checkpoint.archive import plain
from .checkpoint.errors import CheckpointError, writing
from .checkpoint.protocol import Checkpoint
from .metrics import write_csv
from .run import Run

_T = TypeVar("_T")


class Records:
    """Where a run is written down, by the first process alone. Without a folder nothing is.

    Args:
        folder: of the run, or ``None``.
        tensorboard: whether to write for TensorBoard too.
    """

    def __init__(self, folder: str | os.PathLike[str] | None, *, tensorboard: bool) -> None:
        self._checkpoint = None if folder is None else Checkpoint(Path(folder, "checkpoints"))
        self.folder = None if self._checkpoint is None else self._checkpoint.folder.parent
        self._tensorboard = tensorboard
        self._writer: Any = None

    @contextmanager
    def resumed(self, run: Run) -> Iterator[None]:
        """Lock the folder inside the block, and restore the run from its last good checkpoint."""
        if self.folder is None or self._checkpoint is None:
            yield
            return
        plain(run.state(), "state")  # refused now, and not after an epoch
        folder, checkpoint = self.folder, self._checkpoint
        with ExitStack() as stack:

            def find() -> tuple[int, dict[str, Any]] | None:
                stack.enter_context(checkpoint.locked())
                return checkpoint.load()

            # The other processes need not see the folder, which may be on a disk of the first machine.
            found = _in_first(find)
            if found is not None:
                run.restore(found[1], str(checkpoint.path(found[0])))

            def begin() -> None:
                if found is not None:
                    # Forget what was reported after the checkpoint.
                    write_csv(folder / "metrics.csv", run.history)
                if self._tensorboard:
                    self._writer = stack.enter_context(_tensorboard_writer(folder / "tensorboard", run.step))

            _in_first(begin)
            yield

    def save(self, run: Run) -> None:
        """Write a checkpoint. All processes must call this, and all raise where the first one cannot write."""
        run.require_finite()
        if self._checkpoint is not None:
            checkpoint, state = self._checkpoint, run.state()
            _in_first(lambda: checkpoint.save(run.step, state))

    def report(self, run: Run) -> None:
        """Write the row of the epoch that has just ended. All processes must call this."""
        if self.folder is not None:
            folder = self.folder
            _in_first(lambda: self._report(folder, run))

    def _report(self, folder: Path, run: Run) -> None:
        write_csv(folder / "metrics.csv", run.history)
        if self._writer is not None:
            with writing(folder / "tensorboard"):
                for name, value in run.history[-1].items():
                    self._writer.add_scalar(name, value, run.step)


def _in_first(action: Callable[[], _T]) -> _T:
    """Run an action in the first process, and return or raise its outcome in all processes."""
    result, failure = None, None
    if distributed.rank() == 0:
        try:
            result = action()
        except RuntimeError as error:
            failure = error
    text, result = distributed.broadcast_object((failure and str(failure), result))
    if text is not None:
        raise failure or CheckpointError(text)
    return cast(_T, result)


@contextmanager
def _tensorboard_writer(folder: Path, step: int) -> Iterator[Any]:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        remedy = "Install it with pip install tensorboard, or leave the argument out"
        raise RuntimeError(complaint("fit", "tensorboard to be installed", str(error), remedy)) from error
    with writing(folder):
        writer = SummaryWriter(str(folder), purge_step=step + 1)
    try:
        yield writer
    finally:
        with writing(folder):
            writer.close()
