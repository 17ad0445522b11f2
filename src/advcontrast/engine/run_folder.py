"""Folder of a run: its checkpoints, its table of metrics, and the files of TensorBoard."""

import csv
import io
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar, cast

from .. import distributed
from .._atomic_io import replace
from .._checks import complaint
from .checkpoint import Checkpoint, CheckpointError, check_state, writing
from .run import Row, Run

_T = TypeVar("_T")


class RunFolder:
    """Writer of the run folder (rank 0 only; a no-op without a folder). All processes must call its methods."""

    def __init__(self, folder: str | os.PathLike[str] | None, *, tensorboard: bool) -> None:
        self._checkpoint = None if folder is None else Checkpoint(Path(folder, "checkpoints"))
        self._tensorboard = tensorboard
        self._writer: Any = None

    @contextmanager
    def resumed(self, run: Run) -> Iterator[None]:
        """Lock the folder within the context, and restore the run from its last good checkpoint."""
        checkpoint = self._checkpoint
        if checkpoint is None:
            yield
            return
        check_state(run.state())  # refuse a state that cannot be saved now, not after an epoch
        folder = checkpoint.folder.parent
        with ExitStack() as stack:

            def load() -> tuple[int, dict[str, Any]] | None:
                stack.enter_context(checkpoint.locked())
                return checkpoint.load()

            # Other processes need not see the folder, which may be on a disk of the first machine.
            found = _on_rank_0(load)
            if found is not None:
                run.restore(found[1], str(checkpoint.path(found[0])))

            def begin() -> None:
                if found is not None:  # without rows after the checkpoint
                    _write_csv(folder / "metrics.csv", run.history)
                    if run.log or (folder / "steps.csv").exists():
                        _write_csv(folder / "steps.csv", run.log)
                if self._tensorboard:
                    self._writer = stack.enter_context(_tensorboard_writer(folder / "tensorboard", run.step))

            _on_rank_0(begin)
            yield

    def save(self, run: Run) -> None:
        """Write a checkpoint; all processes raise if it cannot be written."""
        run.require_finite()
        checkpoint = self._checkpoint
        if checkpoint is not None:
            state = run.state()
            _on_rank_0(lambda: checkpoint.save(run.step, state))

    def report(self, table: str, rows: Sequence[Row], prefix: str = "") -> None:
        """Write a table, and its last row for TensorBoard, with a prefix of the names."""
        checkpoint = self._checkpoint
        if checkpoint is None:
            return
        folder = checkpoint.folder.parent

        def write() -> None:
            checkpoint._check_folder()  # by now another run may write there
            _write_csv(folder / table, rows)
            if self._writer is not None:
                with writing(folder / "tensorboard"):
                    for name, value in rows[-1].items():
                        self._writer.add_scalar(prefix + name, value, int(rows[-1]["step"]))

        _on_rank_0(write)


def _write_csv(path: Path, rows: Sequence[Row]) -> None:
    """Write rows as a table, atomically; missing entries stay empty."""
    text = io.StringIO(newline="")
    table = csv.DictWriter(text, list(dict.fromkeys(name for row in rows for name in row)))
    table.writeheader()
    table.writerows(rows)
    with writing(path):
        replace(path, text.getvalue().encode(errors="backslashreplace"))


def _on_rank_0(action: Callable[[], _T]) -> _T:
    """Run an action on rank 0, and return its result or raise its error in all processes."""
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
    except BaseException:
        with suppress(OSError):
            writer.close()
        raise
    with writing(folder):
        writer.close()
