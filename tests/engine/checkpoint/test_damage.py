"""Damage is always detected, and what is good is always found."""

import json
import random
import re
import shutil

import pytest
import torch

from advcontrast.engine import CheckpointCorruptError, CheckpointError

from ..faults import filled, leftovers, same, state


@pytest.fixture
def checkpoint(tmp_path):
    return filled(tmp_path / "run", (1, 2))


def test_every_truncation_is_detected(checkpoint):
    file = checkpoint.path(2) / "state.pt"
    content = file.read_bytes()
    lengths = {*range(0, len(content), 29), *range(64), *range(len(content) - 64, len(content))}
    for length in lengths:
        file.write_bytes(content[:length])
        with pytest.raises(CheckpointCorruptError, match=f"got {length} bytes instead of {len(content)}"):
            checkpoint.read(2)
    assert len(lengths) > 200


def test_every_flipped_bit_is_detected(checkpoint, whole):
    file = checkpoint.path(2) / "state.pt"
    content = file.read_bytes()
    for bit in random.Random(0).sample(range(8 * len(content)), 1000 if whole else 200):
        changed = bytearray(content)
        changed[bit // 8] ^= 1 << bit % 8
        file.write_bytes(changed)
        with pytest.raises(CheckpointCorruptError, match="got contents that do not match their SHA-256"):
            checkpoint.read(2)


def test_torch_load_alone_does_not_detect_every_flipped_bit(checkpoint):
    file = checkpoint.path(2) / "state.pt"
    content = file.read_bytes()
    wrong = 0
    for bit in random.Random(0).sample(range(8 * len(content)), 200):
        changed = bytearray(content)
        changed[bit // 8] ^= 1 << bit % 8
        file.write_bytes(changed)
        try:
            wrong += not same(torch.load(file, weights_only=True), state(2))
        except Exception:
            continue
    assert wrong > 0


def test_appended_bytes_are_detected(checkpoint):
    with (checkpoint.path(2) / "state.pt").open("ab") as file:
        file.write(b"0")
    with pytest.raises(CheckpointCorruptError, match="bytes instead of"):
        checkpoint.read(2)


def edits(content, number):
    """Yield copies with one byte replaced, removed, inserted or doubled, at places spread over all of it."""
    chance = random.Random(0)
    for i in range(number):
        place = i * len(content) // number
        new = [
            bytes([chance.randrange(256)]),
            b"",
            bytes([content[place], chance.randrange(256)]),
            content[place:][:1] * 2,
        ]
        yield content[:place] + chance.choice(new) + content[place + 1 :]


def test_an_edited_manifest_is_an_error_or_makes_no_difference(checkpoint, whole):
    file = checkpoint.path(2) / "manifest.json"
    errors, number = [], 300 if whole else 100
    for changed in edits(file.read_bytes(), number):
        file.write_bytes(changed)
        try:
            assert same(checkpoint.read(2), state(2))
        except CheckpointError as error:
            errors.append(str(error))
    assert len(errors) > number * 5 / 6
    assert all(error.startswith("Checkpoint: expected ") for error in errors)


def test_every_changed_digit_and_letter_of_the_manifest_is_detected(checkpoint):
    file = checkpoint.path(2) / "manifest.json"
    content = file.read_bytes()
    for place in [match.start() for match in re.finditer(rb"[0-9a-zA-Z]", content)]:
        new = b"0" if content[place : place + 1] != b"0" else b"1"
        file.write_bytes(content[:place] + new + content[place + 1 :])
        with pytest.raises(CheckpointError):
            checkpoint.read(2)


ODD_MANIFESTS = {
    "empty": b"",
    "a number": b"3",
    "a list": b"[]",
    "an empty dict": b"{}",
    "null": b"null",
    "not text": bytes(range(256)),
    "deep": b"[" * 60_000,
    "huge": b" " * 100_000 + b"{}",
    "a large number": b'{"format": "advcontrast checkpoint", "version": ' + b"9" * 5000 + b"}",
    "infinity": b'{"format": "advcontrast checkpoint", "version": Infinity}',
    "true": b'{"format": "advcontrast checkpoint", "version": true}',
    "a surrogate": b'{"format": "\\ud800"}',
}


@pytest.mark.parametrize("name", ODD_MANIFESTS)
def test_a_manifest_of_something_else_is_refused(checkpoint, name):
    (checkpoint.path(2) / "manifest.json").write_bytes(ODD_MANIFESTS[name])
    with pytest.raises(CheckpointCorruptError, match="Delete that folder"):
        checkpoint.read(2)


@pytest.mark.parametrize("entry", ["format", "version", "step", "bytes", "sha256", "torch", "seal"])
def test_a_manifest_without_an_entry_is_refused(checkpoint, entry):
    file = checkpoint.path(2) / "manifest.json"
    manifest = json.loads(file.read_text())
    del manifest[entry]
    file.write_text(json.dumps(manifest))
    with pytest.raises(CheckpointCorruptError, match=r"got a manifest (of something else|that was changed)\."):
        checkpoint.read(2)


def swap(checkpoint, name):
    one, other = checkpoint.path(1) / name, checkpoint.path(2) / name
    first, second = one.read_bytes(), other.read_bytes()
    one.write_bytes(second)
    other.write_bytes(first)


@pytest.mark.parametrize("name", ["manifest.json", "state.pt"])
def test_swapped_files_are_detected(checkpoint, name):
    swap(checkpoint, name)
    for step in (1, 2):
        with pytest.raises(CheckpointCorruptError):
            checkpoint.read(step)


def test_swapped_folders_are_detected(checkpoint):
    checkpoint.path(1).rename(checkpoint.folder / "aside")
    checkpoint.path(2).rename(checkpoint.path(1))
    (checkpoint.folder / "aside").rename(checkpoint.path(2))
    with pytest.raises(CheckpointCorruptError, match="got the checkpoint of step 1"):
        checkpoint.read(2)


def remove(name):
    return lambda path: (path / name).unlink()


def overwrite(name, content):
    return lambda path: (path / name).write_bytes(content)


def replace_by_folder(path):
    (path / "state.pt").unlink()
    (path / "state.pt").mkdir()


def replace_by_file(path):
    shutil.rmtree(path)
    path.write_bytes(b"\x89PNG")


def dangling(path):
    (path / "state.pt").unlink()
    (path / "state.pt").symlink_to("nowhere")


def empty(path):
    shutil.rmtree(path)
    path.mkdir()


def with_a_picture_only(path):
    empty(path)
    (path / "cat.png").write_bytes(b"\x89PNG")


DAMAGE = {
    "no state": (remove("state.pt"), "[Errno 2] No such file or directory"),
    "no manifest": (remove("manifest.json"), "[Errno 2] No such file or directory"),
    "an empty state": (overwrite("state.pt", b""), "0 bytes instead of"),
    "an empty manifest": (overwrite("manifest.json", b""), "Expecting value"),
    "a folder for a state": (replace_by_folder, "[Errno 21] Is a directory"),
    "a file for a folder": (replace_by_file, "[Errno 20] Not a directory"),
    "a link to nowhere": (dangling, "[Errno 2] No such file or directory"),
    "nothing": (empty, "[Errno 2] No such file or directory"),
    "a picture": (with_a_picture_only, "[Errno 2] No such file or directory"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_the_newest_good_one_is_found_with_a_warning_that_names_the_damaged_one(checkpoint, name):
    damage, reason = DAMAGE[name]
    damage(checkpoint.path(2))
    message = re.escape(f"Checkpoint: expected a good checkpoint in {checkpoint.path(2)}, got {reason}")
    with pytest.warns(UserWarning, match=f"^{message}.*Falling back to step 1") as caught:
        step, loaded = checkpoint.load()
    assert len(caught) == 1
    assert caught[0].filename == __file__
    assert step == 1
    assert same(loaded, state(1))


@pytest.mark.parametrize("name", [name for name in DAMAGE if name != "a file for a folder"])
def test_training_goes_on_after_damage(checkpoint, name):
    DAMAGE[name][0](checkpoint.path(2))
    for step in (2, 3):
        checkpoint.save(step, state(step))
    assert checkpoint.steps() == [2, 3]
    assert same(checkpoint.read(2), state(2))
    assert same(checkpoint.read(3), state(3))
    assert leftovers(checkpoint.folder) == []


def test_each_damaged_one_is_named(tmp_path):
    checkpoint = filled(tmp_path, (1, 2, 3), keep=3)
    for step in (2, 3):
        remove("state.pt")(checkpoint.path(step))
    with pytest.warns(UserWarning, match="a good checkpoint") as caught:
        assert checkpoint.load()[0] == 1
    assert [re.search(r"step-\d+", str(warning.message))[0] for warning in caught] == ["step-00000003", "step-00000002"]


def test_an_old_damaged_one_is_not_looked_at(checkpoint):
    remove("state.pt")(checkpoint.path(1))
    assert checkpoint.load()[0] == 2


def test_all_damaged_is_an_error_that_names_the_newest(checkpoint):
    for step in (1, 2):
        overwrite("state.pt", b"")(checkpoint.path(step))
    message = f"Checkpoint: expected a good checkpoint in {checkpoint.path(2)}"
    with pytest.raises(CheckpointCorruptError, match=f"^{re.escape(message)}"):
        checkpoint.load()
