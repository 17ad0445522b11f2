"""Checkpoints with a manifest that fits, whatever the state is."""

import hashlib
import io
import json
import os
import pickle
import struct
import zipfile

import torch

from advcontrast.engine import checkpoint as module


def seal(entries):
    """Return the text of a manifest with these entries and the seal that belongs to them."""
    return json.dumps({**entries, "seal": module._seal(entries)})


def entries(step, content, changes):
    fitting = {
        "format": module._FORMAT,
        "version": module._VERSION,
        "step": step,
        "bytes": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
        "torch": torch.__version__,
    }
    return {**fitting, **changes}


def forge(checkpoint, number, content, **changes):
    """Write a checkpoint whose state file is ``content``, beside a manifest that is right but for the changes."""
    path = checkpoint.path(number)
    path.mkdir(parents=True)
    (path / "state.pt").write_bytes(content)
    (path / "manifest.json").write_text(seal(entries(number, content, changes)))


def saved(value):
    """Return what ``torch.save`` writes."""
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def repacked(content, *, compression=zipfile.ZIP_STORED, **changed):
    """Return an archive once more, with another compression or with other contents of some records."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(buffer, "w", compression) as new:
        for name in old.namelist():
            key = name.rpartition("/")[2].removesuffix(".pkl")
            new.writestr(name, changed.get(key, old.read(name)))
    return buffer.getvalue()


def claiming(content, record, size):
    """Return an archive in whose directory the stored and unpacked sizes of one record are ``size``."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        place = archive.start_dir
        for entry in archive.infolist():
            if entry.filename.endswith(record):
                break
            place += 46 + sum(struct.unpack_from("<HHH", content, place + 28))
    return content[: place + 20] + struct.pack("<II", size, size) + content[place + 28 :]


class Evil:
    """Runs code when it is unpickled by anything but a careful parser."""

    def __init__(self, canary):
        self.canary = str(canary)

    def __reduce__(self):
        return os.mkdir, (self.canary,)


def raw_pickle(canary):
    return pickle.dumps({"x": Evil(canary)})


def pickle_in_an_archive(canary):
    return repacked(saved({"x": torch.ones(3)}), data=pickle.dumps({"x": Evil(canary)}, protocol=2))


def saved_by_torch(canary):
    return saved({"optimizer": {"state": [Evil(canary)]}})


def saved_by_old_torch(canary):
    buffer = io.BytesIO()
    torch.save({"x": Evil(canary)}, buffer, _use_new_zipfile_serialization=False)
    return buffer.getvalue()


def pickle_before_an_archive(canary):
    """Return bytes that are a pickle to those who read from the front, and an archive to those who read the end."""
    buffer = io.BytesIO(raw_pickle(canary))
    buffer.seek(0, io.SEEK_END)
    with zipfile.ZipFile(buffer, "a") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({}, protocol=2))
    return buffer.getvalue()


MALICE = [raw_pickle, pickle_in_an_archive, saved_by_torch, saved_by_old_torch, pickle_before_an_archive]
