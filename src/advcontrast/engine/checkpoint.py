"""Checkpoints: folders that are written atomically, verified before they are read, and removed only by a newer one."""

import errno
import json
import os
import shutil
import warnings
import zipfile
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from pickle import UnpicklingError
from typing import IO, Any

import torch
from torch import Tensor, nn

from .. import _deprecated
from .._atomic_io import flush_folder, only_process, refusal, write
from .._checks import check_int, check_path, complaint, type_name
from .._digest import digest, file_digest
from .._transfer import on_cpu

_OWNER = "Checkpoint"
_STATE, _MANIFEST = "state.pt", "manifest.json"
_FORMAT, _VERSION = "advcontrast checkpoint", 1
_LARGEST_MANIFEST = 1 << 16
_MISSING = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EINVAL)
_PLAIN = (bool, int, float, str, bytes, type(None), torch.Size, torch.dtype, torch.device)


class CheckpointError(RuntimeError):
    """Base class of the errors of checkpoints and their folders."""


class CheckpointWriteError(CheckpointError):
    """A file of a run could not be written. Earlier checkpoints are unchanged."""


class CheckpointCorruptError(CheckpointError):
    """A checkpoint is damaged, or was not written by this library."""


class CheckpointVersionError(CheckpointError):
    """A checkpoint was written by a later version of this library."""


class CheckpointMismatchError(CheckpointError):
    """A checkpoint belongs to another run: another model, optimizer, data set or setting."""


class CheckpointBusyError(CheckpointError):
    """Another process is writing to the folder."""


class Checkpoint:
    """A folder of checkpoints, with one subfolder per step.

    A checkpoint is written to a temporary folder, flushed to the disk, and renamed once: if the process is killed at
    any instant, it is complete or absent, and earlier ones are unchanged. The next save removes files left by an
    interrupted one. A manifest next to the state holds its size and SHA-256. They are verified after a write, before
    older checkpoints are removed, and again before ``torch.load(weights_only=True)`` reads the state.

    Args:
        folder: folder of the checkpoints, which need not exist yet.
        keep: number of newest checkpoints to keep, at least 1. With two, a run survives damage to the newest.

    Raises:
        ValueError: keep < 1.
        TypeError: an argument has the wrong type.

    Example:
        >>> import tempfile
        >>> checkpoint = Checkpoint(tempfile.mkdtemp())
        >>> checkpoint.save(7, {"weights": torch.ones(2)}).name
        'step-00000007'
        >>> checkpoint.load()
        (7, {'weights': tensor([1., 1.])})
    """

    def __init__(self, folder: str | os.PathLike[str], *, keep: int = 2) -> None:
        # A relative path would point elsewhere after a change of directory.
        self.folder = check_path(_OWNER, "folder", folder, remedy="Pass a string or a Path").absolute()
        check_int(_OWNER, "keep", keep, low=1, remedy="2 survives a damaged checkpoint")
        self.keep = keep
        self._is_locked: Callable[[], bool] | None = None  # inside locked()

    def __repr__(self) -> str:
        return f"{_OWNER}({str(self.folder)!r}, keep={self.keep})"

    def path(self, step: int) -> Path:
        """Return the folder of the checkpoint of a step, which need not exist.

        Raises:
            ValueError: step < 0.
            TypeError: the step is not an int.
        """
        check_int(_OWNER, "step", step, low=0, remedy="Pass the number of steps taken")
        return self.folder / f"step-{step:08d}"

    def steps(self) -> list[int]:
        """Return the steps that have a checkpoint, good or damaged, oldest first.

        Raises:
            CheckpointError: the system refuses to list the folder.
        """
        try:
            # glob would return nothing for a folder without the permission to list it.
            found = [path.name for path in self.folder.iterdir()]
        except (FileNotFoundError, NotADirectoryError):
            return []
        except OSError as error:
            raise CheckpointError(refusal(_OWNER, f"to read {self.folder}", error)) from error
        names = (name.removeprefix("step-") for name in found if name.startswith("step-"))
        # Only the names that path() returns: "step-7" is not the folder of step 7.
        return sorted(int(name) for name in names if name.isascii() and name.isdigit() and f"{int(name):08d}" == name)

    def save(self, step: int, state: Mapping[str, Any]) -> Path:
        """Write the state of a step, read it back, and remove the oldest checkpoints beyond ``keep``.

        Args:
            step: the number of steps taken, at least 0, and more than that of any good checkpoint in the folder. An
                equal state of the newest step is not written again.
            state: a dict of tensors, numbers, strings, ``None``, and lists, tuples and dicts of them. Tensors are dense
                and of class ``Tensor`` or ``nn.Parameter``. Keys are strings, numbers, ``None``, bytes, and tuples of
                them.

        Returns:
            The folder of the checkpoint.

        Raises:
            CheckpointWriteError: the disk is full, read-only or failing. Earlier checkpoints are unchanged.
            CheckpointMismatchError: the folder has a good checkpoint of a later step, or another state of this one.
            CheckpointError: inside :meth:`locked`, the folder was moved, removed or replaced.
            TypeError: the state holds a value of another type, which could not be read back.
        """
        path, step = self.path(step), int(step)
        if not isinstance(state, Mapping):
            raise TypeError(complaint(_OWNER, "state to be a dict", type_name(state), "Pass the state under names"))
        state = dict(state)
        check_state(state)
        state = on_cpu(state)
        self._check_folder()
        try:
            with writing(path):
                new = not self.folder.exists()
                self.folder.mkdir(parents=True, exist_ok=True)
                if new:
                    flush_folder(self.folder.parent)
                self._sweep()
                if not self._has(step, state):
                    self._write(step, state)
                # No newer checkpoint is good.
                older = [other for other in self.steps() if other < step]
                for old in older[: max(0, len(older) + 1 - self.keep)]:
                    self._discard(old)
                self._sweep()
        except BaseException:
            with suppress(OSError):
                self._sweep()
            raise
        return path

    def load(self) -> tuple[int, dict[str, Any]] | None:
        """Return the newest good checkpoint, and warn about newer damaged ones.

        Returns:
            The step and its state, all tensors on the CPU; ``None`` if there are no checkpoints.

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

        The errors are those of :meth:`path` and :meth:`load`; a missing checkpoint counts as a damaged one.
        """
        return self._read(self.path(step), step)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Lock the folder within the context, or until the process ends: other processes cannot write to it.

        In the context, :meth:`save` raises if the folder is no longer the one that was locked. On a disk without locks
        a warning is issued, and nothing is locked.

        Raises:
            CheckpointBusyError: another process is writing to the folder.
            CheckpointWriteError: the folder cannot be made or written to.
        """
        with ExitStack() as stack:
            with writing(self.folder):
                self.folder.mkdir(parents=True, exist_ok=True)
                try:
                    self._is_locked = stack.enter_context(only_process(self.folder / ".lock"))
                except BlockingIOError as error:
                    expected, remedy = f"{self.folder} to be free", "Wait for it to end, or choose another folder"
                    raise CheckpointBusyError(complaint(_OWNER, expected, str(error), remedy)) from None
            stack.callback(setattr, self, "_is_locked", None)
            yield

    def _check_folder(self) -> None:
        """Require the folder to be the one that :meth:`locked` has locked, if it has."""
        with writing(self.folder):
            if self._is_locked is not None and not self._is_locked():
                expected = f"{self.folder} to be the folder that this process has locked"
                remedy = "It was moved, removed or replaced; call again, with another folder if this one is in use"
                raise CheckpointError(complaint(_OWNER, expected, "another one or none", remedy))

    def _has(self, step: int, state: Mapping[str, Any]) -> bool:
        """Return whether the state is saved already; if not, require its step to be the newest."""
        for other in reversed([other for other in self.steps() if other >= step]):
            try:
                found = self.read(other)
            except CheckpointCorruptError:
                continue
            if other == step and _same_state(found, state):
                return True
            expected = f"a step after {other}, which {self.folder} holds already"
            got = f"{step}" if other > step else f"another state of step {step}"
            remedy = "Continue from what load() returns, or choose another folder"
            raise CheckpointMismatchError(complaint(_OWNER, expected, got, remedy))
        return False

    def _write(self, step: int, state: Mapping[str, Any]) -> None:
        partial = self.folder / f".partial-{step:08d}"
        partial.mkdir()
        manifest: dict[str, Any] = {"format": _FORMAT, "version": _VERSION, "step": step}
        manifest["bytes"], manifest["sha256"] = write(partial / _STATE, lambda file: torch.save(state, file))
        manifest["torch"] = torch.__version__
        sealed = json.dumps({**manifest, "seal": _seal(manifest)}, indent=1).encode()
        write(partial / _MANIFEST, lambda file: file.write(sealed))
        flush_folder(partial)
        try:
            self._read(partial, step, device="meta")
        except CheckpointError as error:
            expected, got = f"{self.path(step)} to be read back as written", f"{error.__cause__ or error}".rstrip(".")
            remedy = "Check the disk and the memory; earlier checkpoints are unchanged"
            raise CheckpointWriteError(complaint(_OWNER, expected, got, remedy)) from error
        self._discard(step)  # a damaged one
        partial.rename(self.path(step))
        flush_folder(self.folder)

    def _read(self, path: Path, step: int, device: str = "cpu") -> dict[str, Any]:
        """Verify a checkpoint and return its state; on the meta device tensors have no values."""
        try:
            manifest = _read_manifest(path, step)
            with (path / _STATE).open("rb") as file:
                size = os.fstat(file.fileno()).st_size
                if size != manifest["bytes"]:
                    raise _corrupt(path, f"{size} bytes instead of {manifest['bytes']}")
                if file_digest(file) != manifest["sha256"]:
                    raise _corrupt(path, "contents that do not match their SHA-256")
                _check_records(file, size)
                try:
                    state = torch.load(file, map_location=device, weights_only=True)
                except UnpicklingError as error:
                    raise _corrupt(path, "contents that torch.load(weights_only=True) refuses") from error
                except (MemoryError, RuntimeError) as error:  # PyTorch raises either where memory is short
                    expected, got = f"to read {path}", str(error).partition("\n")[0] or type(error).__name__
                    remedy = "Free some memory, or use the version of PyTorch that wrote it"
                    raise CheckpointError(complaint(_OWNER, expected, got, remedy)) from error
        except CheckpointError:
            raise
        except OSError as error:
            if error.errno in _MISSING:
                raise _corrupt(path, str(error)) from error
            raise CheckpointError(refusal(_OWNER, f"to read {path}", error)) from error  # it may be undamaged
        except Exception as error:
            raise _corrupt(path, str(error).partition("\n")[0] or type(error).__name__) from error
        if not isinstance(state, dict):
            raise _corrupt(path, f"a {type_name(state)} instead of a dict")
        return state

    def _discard(self, step: int) -> None:
        """Rename a checkpoint before it is deleted, so that it is never read half deleted."""
        if self.path(step).exists():
            self.path(step).rename(self.folder / f".discarded-{step:08d}")

    def _sweep(self) -> None:
        for path in list(self.folder.iterdir()):
            if path.name.startswith((".partial-", ".discarded-")):
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path)
                else:
                    path.unlink()


def _check_records(file: IO[bytes], size: int) -> None:
    """Require an archive of uncompressed records, which cannot unpack to more than its size."""
    with zipfile.ZipFile(file) as archive:
        records = archive.infolist()
    compressed = any(record.compress_type != zipfile.ZIP_STORED for record in records)
    if compressed or sum(record.file_size for record in records) > size:
        raise ValueError("an archive that unpacks to more than its size")
    file.seek(0)


def _seal(manifest: Mapping[str, Any]) -> str:
    """Return a digest of the manifest, which detects changed bits."""
    return digest(json.dumps(manifest, sort_keys=True))


def _read_manifest(path: Path, step: int) -> dict[str, Any]:
    with (path / _MANIFEST).open("rb") as file:
        manifest = json.loads(file.read(_LARGEST_MANIFEST))
    if not isinstance(manifest, dict) or manifest.get("format") != _FORMAT:
        raise _corrupt(path, "a manifest of something else")
    if manifest.pop("seal", None) != _seal(manifest):
        raise _corrupt(path, "a manifest that was changed")
    version = manifest.get("version")
    if isinstance(version, int) and version > _VERSION:
        expected, remedy = f"format version {_VERSION} or older in {path}", "Install a newer advcontrast"
        raise CheckpointVersionError(complaint(_OWNER, expected, str(version), remedy))
    if manifest["step"] != step:
        raise _corrupt(path, f"the checkpoint of step {manifest['step']}")
    return manifest


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Raise :class:`CheckpointWriteError` where the system refuses to write ``path`` inside the block."""
    try:
        yield
    except OSError as error:
        text = refusal(_OWNER, f"to write {path}", error, "; earlier checkpoints are unchanged")
        raise CheckpointWriteError(text) from error


def _corrupt(path: Path, got: str) -> CheckpointCorruptError:
    return CheckpointCorruptError(complaint(_OWNER, f"a good checkpoint in {path}", got, "Delete that folder"))


def check_state(value: Any, where: str = "state") -> None:
    """Require a state that ``torch.load(weights_only=True)`` restores; ``where`` is its name in messages."""
    if isinstance(value, Tensor):
        if (got := _unsupported(value)) is not None:
            expected = f"{where} to be a dense Tensor or nn.Parameter with values"
            raise TypeError(complaint(_OWNER, expected, got, "Convert it, with .detach().to_dense() for example"))
    elif type(value) in (list, tuple):
        for i, item in enumerate(value):
            check_state(item, f"{where}[{i}]")
    elif type(value) in (dict, OrderedDict, Counter):
        for key, item in value.items():
            if not all(type(part) in _PLAIN for part in (key if type(key) is tuple else (key,))):
                expected = f"keys of {where} to be strings, numbers, None, or tuples of them"
                raise TypeError(complaint(_OWNER, expected, type(key).__name__, "Convert them, with str() for example"))
            check_state(item, f"{where}[{key!r}]")
    elif type(value) not in _PLAIN:
        expected = f"{where} to be a tensor, number, string, None, or a list, tuple or dict of them"
        raise TypeError(complaint(_OWNER, expected, type_name(value), "Convert it, with str() or .item() for example"))


def _unsupported(tensor: Tensor) -> str | None:
    if type(tensor) not in (Tensor, nn.Parameter):
        return type(tensor).__name__
    if tensor.is_meta or tensor.is_nested or tensor.is_quantized or tensor.layout != torch.strided:
        return f"one of {tensor.dtype} and {tensor.layout} on {tensor.device}"
    if tensor.numel() and not tensor.untyped_storage().nbytes():
        return "one whose memory was released"
    return None


def _same_state(a: Any, b: Any) -> bool:
    """Return whether two states are bit-identical."""
    if type(a) is not type(b):
        return False
    if isinstance(a, Tensor):
        return digest(a) == digest(b)
    if isinstance(a, dict):
        a, b = [*a.items()], [*b.items()]
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(_same_state, a, b))
    return repr(a) == repr(b)  # tells 0.0 from -0.0


_deprecated.serve_old_names(__name__)
