"""Checkpoints that are written whole or not at all, and verified before they are read."""

from __future__ import annotations

import errno
import os
import pickle
import shutil
import warnings
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .._checks import check_int, complaint, type_name
from .._durable import flush_folder, only_process, write
from .errors import CheckpointBusyError, CheckpointCorruptError, CheckpointError, corrupt, unreadable, unwritable
from .manifest import MANIFEST, read_manifest, sealed_manifest, verify

_OWNER = "Checkpoint"
_STATE = "state.pt"
_PLAIN = (bool, int, float, str, bytes, type(None), torch.Size, torch.dtype, torch.device)
_MISSING = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EINVAL)


class Checkpoint:
    """A folder of checkpoints, one subfolder a step.

    A checkpoint is written to a temporary folder, flushed to the disk, and gets its name by one rename. A process that
    is killed at any instant leaves it whole or not at all, and those before it as they were. Beside the state lies a
    manifest with its size and its SHA-256. Both are verified before the state is parsed, by a parser that builds
    nothing but tensors and plain containers. What an interrupted save left behind the next one sweeps away.

    Args:
        folder: where the checkpoints are; it need not exist yet.
        keep: how many of the newest to keep, at least 1. Two survive damage to the newest.

    Raises:
        ValueError: keep < 1.
        TypeError: an argument of the wrong kind.

    Example:
        >>> import tempfile
        >>> checkpoint = Checkpoint(tempfile.mkdtemp())
        >>> checkpoint.save(7, {"weights": torch.ones(2)}).name
        'step-00000007'
        >>> checkpoint.load()
        (7, {'weights': tensor([1., 1.])})
    """

    def __init__(self, folder: str | os.PathLike[str], *, keep: int = 2) -> None:
        if not isinstance(folder, (str, os.PathLike)):
            raise TypeError(complaint(_OWNER, "folder to be a path", type_name(folder), "Pass a string or a Path"))
        check_int(_OWNER, "keep", keep, low=1, remedy="2 survives a damaged checkpoint")
        # A relative path would point elsewhere after a change of directory.
        self.folder = Path(folder).absolute()
        self.keep = keep

    def __repr__(self) -> str:
        return f"{_OWNER}({str(self.folder)!r}, keep={self.keep})"

    def path(self, step: int) -> Path:
        """Return the folder that the checkpoint of a step has, or would have.

        Raises:
            ValueError: step < 0.
            TypeError: the step is no int.
        """
        check_int(_OWNER, "step", step, low=0, remedy="Pass the number of steps taken")
        return self.folder / f"step-{step:08d}"

    def steps(self) -> list[int]:
        """Return the steps that have a checkpoint, good or damaged, oldest first.

        Raises:
            CheckpointError: the system refuses to list the folder.
        """
        try:
            # glob would take a folder that may not be listed for an empty one.
            found = [path.name for path in self.folder.iterdir()]
        except (FileNotFoundError, NotADirectoryError):
            return []
        except OSError as error:
            raise unreadable(self.folder, error) from error
        names = (name.removeprefix("step-") for name in found if name.startswith("step-"))
        # Nobody else's idea of a number: "7" is not where step 7 is.
        return sorted(int(name) for name in names if name.isascii() and name.isdigit() and f"{int(name):08d}" == name)

    def save(self, step: int, state: Mapping[str, Any]) -> Path:
        """Write the state of a step, then remove what is more than ``keep``.

        Args:
            step: the number of steps taken, at least 0. One that has a good checkpoint is not written again.
            state: a dict of tensors, numbers, strings, ``None``, and lists, tuples and dicts of them.

        Returns:
            The folder of the checkpoint.

        Raises:
            CheckpointWriteError: the disk is full, read-only or failing. Earlier checkpoints are untouched.
            TypeError: the state holds anything else, which could not be read back.
        """
        path, step = self.path(step), int(step)
        if not isinstance(state, Mapping):
            raise TypeError(complaint(_OWNER, "state to be a dict", type_name(state), "Pass the state under names"))
        _check_plain(dict(state), "state")
        try:
            new = not self.folder.exists()
            self.folder.mkdir(parents=True, exist_ok=True)
            if new:
                flush_folder(self.folder.parent)
            self._sweep()
            if not self._is_good(step):
                self._discard(step)
                self._write(step, state)
            # Of what is newer, nothing is known to be good.
            older = [other for other in self.steps() if other < step]
            for old in older[: max(0, len(older) + 1 - self.keep)]:
                self._discard(old)
            self._sweep()
        except OSError as error:
            with suppress(OSError):
                self._sweep()
            raise unwritable(path, error) from error
        return path

    def load(self) -> tuple[int, dict[str, Any]] | None:
        """Return the newest good checkpoint, and warn of damaged ones that are newer.

        Returns:
            The step and its state, all tensors on the CPU; ``None`` where there are no checkpoints.

        Raises:
            CheckpointCorruptError: there are checkpoints, and all are damaged.
            CheckpointVersionError: the newest was written by a later version of this library.
            CheckpointError: the newest may be good, but the disk or the system refuses to read it.
        """
        damaged: list[CheckpointCorruptError] = []
        for step in reversed(self.steps()):
            try:
                state = self.read(step)
            except CheckpointCorruptError as error:
                damaged.append(error)
                continue
            for reason in damaged:
                warnings.warn(f"{reason} Falling back to step {step}.", UserWarning, stacklevel=2)
            return step, state
        if damaged:
            raise damaged[0]
        return None

    def read(self, step: int) -> dict[str, Any]:
        """Verify the checkpoint of one step and return its state.

        Raises:
            CheckpointCorruptError: it is damaged, or not written by this library, or not there.
            CheckpointVersionError: it was written by a later version of this library.
            CheckpointError: it may be good, but the disk or the system refuses to read it.
            ValueError: step < 0.
            TypeError: the step is no int.
        """
        path = self.path(step)
        try:
            manifest = read_manifest(path, step)
            with (path / _STATE).open("rb") as file:
                verify(file, manifest)
                state = torch.load(file, map_location="cpu", weights_only=True)
        except CheckpointError:
            raise
        except OSError as error:
            if error.errno not in _MISSING:
                raise unreadable(path, error) from error
            raise corrupt(path, str(error)) from error
        except pickle.UnpicklingError as error:
            raise corrupt(path, "something else than plain data") from error
        except Exception as error:
            raise corrupt(path, str(error).partition("\n")[0] or type(error).__name__) from error
        if not isinstance(state, dict):
            raise corrupt(path, f"a {type_name(state)} instead of a dict")
        return state

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes from writing to the folder.

        Raises:
            CheckpointBusyError: one is doing so.
            CheckpointWriteError: the folder cannot be made or written to.
        """
        with ExitStack() as stack:
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                holder = stack.enter_context(only_process(self.folder / ".lock"))
            except OSError as error:
                raise unwritable(self.folder, error) from error
            if holder is not None:
                remedy = "Wait for it to end, or choose another folder"
                raise CheckpointBusyError(complaint(_OWNER, f"{self.folder} to be free", holder, remedy))
            yield

    def _write(self, step: int, state: Mapping[str, Any]) -> None:
        partial = self.folder / f".partial-{step:08d}"
        partial.mkdir()
        size, digest = write(partial / _STATE, lambda file: torch.save(dict(state), file))
        write(partial / MANIFEST, lambda file: file.write(sealed_manifest(step, size, digest)))
        flush_folder(partial)
        partial.rename(self.path(step))
        flush_folder(self.folder)

    def _is_good(self, step: int) -> bool:
        try:
            self.read(step)
        except CheckpointCorruptError:
            return False
        return True

    def _discard(self, step: int) -> None:
        """Take a checkpoint's name away first, so that it is never seen half deleted."""
        if self.path(step).exists():
            self.path(step).rename(self.folder / f".discarded-{step:08d}")

    def _sweep(self) -> None:
        for path in list(self.folder.iterdir()):
            if path.name.startswith((".partial-", ".discarded-")):
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path)
                else:
                    path.unlink()


def _check_plain(value: Any, where: str) -> None:
    """Require what the parser of :meth:`Checkpoint.read` accepts, before anything is written."""
    if isinstance(value, Tensor) or type(value) in _PLAIN:
        return
    if type(value) in (list, tuple):
        for i, item in enumerate(value):
            _check_plain(item, f"{where}[{i}]")
    elif type(value) in (dict, OrderedDict):
        for key, item in value.items():
            _check_plain(key, f"a key of {where}")
            _check_plain(item, f"{where}[{key!r}]")
    else:
        expected = f"{where} to be a tensor, number, string, None, or a list, tuple or dict of them"
        raise TypeError(complaint(_OWNER, expected, type_name(value), "Convert it, with str() or .item() for example"))
