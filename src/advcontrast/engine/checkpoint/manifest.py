"""Manifest of a checkpoint: size and digest of its state, to verify it before it is read."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import torch

from ..._checks import complaint
from ..._digest import digest, file_digest
from .errors import CheckpointVersionError, corrupt

MANIFEST = "manifest.json"
_FORMAT, _VERSION = "advcontrast checkpoint", 1
_KINDS = {"format": str, "version": int, "step": int, "bytes": int, "sha256": str, "torch": str}
_LARGEST_MANIFEST = 1 << 16


def sealed_manifest(step: int, size: int, sha256: str) -> bytes:
    """Return the manifest of a state of ``size`` bytes."""
    manifest = {"format": _FORMAT, "version": _VERSION, "step": step, "bytes": size, "sha256": sha256}
    manifest["torch"] = torch.__version__
    return json.dumps({**manifest, "seal": _seal(manifest)}, indent=1).encode()


def _seal(manifest: Mapping[str, Any]) -> str:
    """Return a digest of the manifest, which detects changed bits."""
    return digest(json.dumps(manifest, sort_keys=True))


def read_manifest(path: Path, step: int) -> dict[str, Any]:
    """Read and verify the manifest."""
    with (path / MANIFEST).open("rb") as file:
        text = file.read(_LARGEST_MANIFEST)
    manifest = json.loads(text)
    if not isinstance(manifest, dict) or manifest.get("format") != _FORMAT:
        raise corrupt(path, "a manifest of something else")
    if manifest.pop("seal", None) != _seal(manifest):
        raise corrupt(path, "a manifest that was changed")
    version = manifest.get("version")
    if isinstance(version, int) and version > _VERSION:
        expected, remedy = f"format version {_VERSION} or older in {path}", "Install a newer advcontrast"
        raise CheckpointVersionError(complaint("Checkpoint", expected, str(version), remedy))
    if {key: type(value) for key, value in manifest.items()} != _KINDS:
        raise corrupt(path, "a manifest with other entries")
    if manifest["step"] != step:
        raise corrupt(path, f"the checkpoint of step {manifest['step']}")
    return manifest


def verify(file: IO[bytes], manifest: Mapping[str, Any]) -> None:
    """Require the size and digest of the manifest."""
    path, size = Path(file.name).parent, os.fstat(file.fileno()).st_size
    if size != manifest["bytes"]:
        raise corrupt(path, f"{size} bytes instead of {manifest['bytes']}")
    if file_digest(file) != manifest["sha256"]:
        raise corrupt(path, "other contents than were written")
