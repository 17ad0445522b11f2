"""Exports to other libraries: copies of networks with single norms, and folders that are created atomically."""

import copy
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from torch import nn

from .._atomic_io import flush_folder, flushing, writing
from .._checks import check_copyable, check_path, complaint
from ..norm import DualNorm
from ..surgery import export_branch
from ..surgery.modules import check_surgery, check_values


def plain_copy(owner: str, model: nn.Module, branch: str | None) -> Any:
    """Return a copy of ``model`` in eval mode, with one branch only; ``branch`` is ``None`` if it has single norms."""
    check_surgery(owner, model)
    branches = next((module.branches for module in model.modules() if isinstance(module, DualNorm)), ())
    if bool(branches) != (branch is not None):
        expected = f"branch to be one of {', '.join(map(repr, branches))}" if branches else "branch to be None"
        remedy = 'Choose one, such as branch="adv"' if branches else "Leave it out, as the model has no dual norms"
        raise ValueError(complaint(owner, expected, repr(branch), remedy))
    check_values(owner, "model", model.state_dict(), remedy="Load its weights first")
    check_copyable(owner, model)
    return (copy.deepcopy(model) if branch is None else export_branch(model, branch)).eval()


@contextmanager
def saving(owner: str, folder: Path) -> Iterator[None]:
    """Reword an error of the file system from the block: add the folder and a remedy."""
    with writing(owner, folder):
        try:
            yield
        except Exception as error:
            found = re.search(r"os error (\d+)", str(error))  # safetensors raises its own error class
            if found is None:
                raise
            raise OSError(int(found[1]), os.strerror(int(found[1]))) from error


@contextmanager
def new_folder(owner: str, folder: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield an empty folder beside ``folder``, and give it that name, if it is free, when the block ends well."""
    target = check_path(owner, "folder", folder, remedy="Pass the folder to write").absolute()
    _check_new(owner, target)
    draft = target.with_name(f".{secrets.token_hex(8)}.partial")
    with saving(owner, target):
        draft.mkdir(parents=True)
        try:
            yield draft
            for path in draft.iterdir():
                with suppress(OSError):  # on a disk without permissions
                    path.chmod(draft.stat().st_mode & 0o666)  # safetensors makes files readable by the owner only
                with path.open("rb+") as file, flushing("files"):
                    os.fsync(file.fileno())
            flush_folder(draft)
            try:
                with suppress(OSError):
                    target.rmdir()  # an empty one
                draft.rename(target)
            except OSError:
                _check_new(owner, target)  # another process may have been first
                raise
            flush_folder(target.parent)
        finally:
            shutil.rmtree(draft, ignore_errors=True)


def _check_new(owner: str, target: Path) -> None:
    if target.is_symlink() or (target.exists() and not (target.is_dir() and not any(target.iterdir()))):
        remedy = "Pass another one, or remove it first"
        raise FileExistsError(complaint(owner, "folder to be a new one", f"{str(target)!r}, which exists", remedy))
