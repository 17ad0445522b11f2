"""What an evaluation in stages has found so far, batch by batch; in a folder it outlives the process."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..._checks import complaint
from ...engine import Checkpoint, CheckpointMismatchError


@dataclass
class Page:
    """What is known of one batch.

    Attributes:
        digest: of its images and labels.
        classes: how many the model tells apart.
        verdicts: one for each image, int8 ``[N]`` on the CPU.
        done: how many stages it has been through.
    """

    digest: str
    classes: int
    verdicts: Tensor
    done: int = 0


class Ledger:
    """The pages of a run, in the order of its batches.

    Only the last page can be unfinished. Whatever does not belong to the run is therefore noticed before a stage runs.

    Args:
        owner: who evaluates, for messages.
        checkpoint: where to keep the pages, ``None`` to keep them in memory only.
        identity: what must be the same when the run goes on, as plain data.

    Raises:
        CheckpointMismatchError: the folder belongs to another run.
        CheckpointError: what is in the folder is damaged or cannot be read.
    """

    def __init__(self, owner: str, checkpoint: Checkpoint | None, identity: Mapping[str, str | int | float]) -> None:
        self._owner, self._checkpoint, self._identity = owner, checkpoint, dict(identity)
        self._pages: list[Page] = []
        found = checkpoint and checkpoint.load()
        if found:
            self._require_same_run(found[1])
            self._pages = [Page(**page) for page in found[1]["pages"]]

    def digest(self, x: Tensor, y: Tensor) -> str:
        """Return what tells this batch from others, or nothing where pages are not kept."""
        return digest([x, y]) if self._checkpoint else ""

    def page(self, i: int, fingerprint: str) -> Page | None:
        """Return what is known of batch number ``i``, ``None`` for a new one.

        Raises:
            CheckpointMismatchError: it was another batch.
        """
        if i >= len(self._pages):
            return None
        if self._pages[i].digest != fingerprint:
            remedy = "Pass the same batches in the same order, unshuffled, or choose another folder"
            raise self._mismatch(f"batch {i} of the run in {self._folder}", "other images or labels", remedy)
        return self._pages[i]

    def write(self, i: int, page: Page) -> None:
        """Keep the page of batch number ``i``; it has been through one stage more."""
        self._pages[i:] = [page]
        if self._checkpoint:
            pages = [vars(page) for page in self._pages]
            stages = sum(page.done for page in self._pages)
            self._checkpoint.save(stages, {"identity": self._identity, "pages": pages})

    @property
    def _folder(self) -> str:
        return str(self._checkpoint and self._checkpoint.folder)

    def _require_same_run(self, state: Mapping[str, Any]) -> None:
        theirs = state.get("identity")
        if set(state) != {"identity", "pages"} or not isinstance(theirs, dict):
            remedy = "Choose another folder"
            raise self._mismatch(f"{self._folder} to hold verdicts", "something else", remedy)
        keys = theirs.keys() | self._identity.keys()
        differing = sorted(key for key in keys if theirs.get(key) != self._identity.get(key))
        if differing:
            remedy = "Call it as it was called first, or choose another folder"
            raise self._mismatch(f"the run in {self._folder}", f"another {' and '.join(differing)}", remedy)

    def _mismatch(self, expected: str, got: str, remedy: str) -> CheckpointMismatchError:
        return CheckpointMismatchError(complaint(self._owner, expected, got, remedy))


@contextmanager
def locked(checkpoint: Checkpoint | None) -> Iterator[None]:
    """Keep other processes from writing to the folder, where there is one."""
    if checkpoint is None:
        yield
        return
    with checkpoint.locked():
        yield


def digest(values: list[Any]) -> str:
    """Return the SHA-256 of tensors, to the bit and wherever they lie, and of the ``repr`` of anything else."""
    sha = hashlib.sha256()
    for value in values:
        if isinstance(value, Tensor):
            sha.update(f"{value.dtype} {list(value.shape)}".encode())
            sha.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
        else:
            # An address in memory differs from process to process.
            sha.update(re.sub(r" at 0x[0-9a-f]+", "", repr(value)).encode())
    return sha.hexdigest()


def digest_of_model(model: nn.Module) -> str:
    """Return the SHA-256 of what a module is made of, its batch-norm branches included, and of its weights.

    The modes of the modules do not count, and neither does the device.
    """
    return digest([model, *(part for item in model.state_dict().items() for part in item)])
