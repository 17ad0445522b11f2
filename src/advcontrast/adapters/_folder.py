"""A folder that appears when it is complete, and not before."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from .._checks import check_path, complaint
from .._durable import flush_folder


@contextmanager
def new_folder(owner: str, folder: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield an empty folder beside ``folder``, and give it that name when the block ends without an error.

    Raises:
        FileExistsError: there is something at ``folder`` already, other than an empty folder.
    """
    check_path(owner, "folder", folder, remedy="Pass the folder to write")
    target = Path(folder).absolute()
    _check_new(owner, target)
    draft = target.with_name(f".{target.name}.{secrets.token_hex(8)}")
    draft.mkdir(parents=True)
    try:
        yield draft
        for path in draft.iterdir():
            path.chmod(draft.stat().st_mode & 0o666)  # safetensors lets nobody but the owner read
            with path.open("rb+") as file:
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
