"""The same kills, injected by the kernel's tracer, which sees calls that are not made through ``os``."""

import os
import re
import shutil
import signal
import subprocess
from functools import partial

import pytest
import torch

from advcontrast import _atomic_io
from advcontrast.engine import Checkpoint

from ..faults import exit_code, fork, require_recovery, state

SYSCALLS = "mkdir,mkdirat,openat,write,fsync,rename,renameat,renameat2,unlink,unlinkat,rmdir,ftruncate"


def traced(job, *options):
    """Run the job in a child under strace and return its exit code; strace counts from where the job begins."""
    reading, writing = os.pipe()

    def wait_then_do():
        os.close(writing)
        os.read(reading, 1)
        job()

    pid = fork(wait_then_do)
    os.close(reading)
    command = ["strace", "-f", "-y", "-e", f"trace={SYSCALLS}", *options, "-p", str(pid)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as strace:
        greeting = strace.stderr.readline()
        os.write(writing, b"0")
        os.close(writing)
        code = exit_code(pid)
        strace.communicate()
    if "attached" not in greeting:
        pytest.skip(f"strace may not trace here: {greeting}")
    return code


def points(job, folder, log):
    """Return ``(syscall, k)`` for each change that the job makes to files below the folder."""
    assert traced(partial(job, folder), "-o", str(log)) == 0
    counts, found = {}, []
    for line in log.read_text().splitlines():
        name = re.match(r"(?:\d+ +)?(\w+)\(", line)
        if name:
            counts[name[1]] = counts.get(name[1], 0) + 1
            if str(folder) in line:
                found.append((name[1], counts[name[1]]))
    return found


def sweep(template, job, check, log, most):
    """Kill the job at up to ``most`` points, evenly spread, and return what ``check(folder)`` returned after each."""
    job(shutil.copytree(template, template.with_name("warm-up")))  # Imports what is imported late.
    found = points(job, shutil.copytree(template, template.with_name("rehearsal")), log)
    chosen = [found[i * len(found) // most] for i in range(most)] if most < len(found) else found
    results = []
    for syscall, k in chosen:
        folder = shutil.copytree(template, template.with_name(f"{syscall} {k}"))
        inject = f"inject={syscall}:signal=SIGKILL:when={k}"
        assert traced(partial(job, folder), "-e", inject, "-o", str(log)) == -signal.SIGKILL, (syscall, k)
        results.append(check(folder))
        shutil.rmtree(folder)
    return results


def save_twice(folder):
    for step in (2, 3):
        Checkpoint(folder).save(step, state(step))


@pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace")
def test_killed_by_the_kernel_at_any_call_that_changes_a_file(tmp_path, monkeypatch, whole):
    monkeypatch.setattr(_atomic_io, "_CHUNK", 2048)
    template = Checkpoint(tmp_path / "run").save(1, state(1)).parent
    check = partial(require_recovery, allowed=(1, 2, 3))
    found = sweep(template, save_twice, check, tmp_path / "log", 1000 if whole else 8)
    assert len(found) >= 8
    assert set(found) == {1, 2, 3}


@pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace")
def test_torch_save_does_not_survive_them(tmp_path):
    (tmp_path / "run").mkdir()
    torch.save(state(1), tmp_path / "run/state.pt")

    def naive(folder):
        torch.save(state(2), folder / "state.pt")

    def is_lost(folder):
        try:
            torch.load(folder / "state.pt", weights_only=True)
        except Exception:
            return True
        return False

    lost = sweep(tmp_path / "run", naive, is_lost, tmp_path / "log", 8)
    print(f"strace, torch.save: {sum(lost)} of {len(lost)} kills lost the only checkpoint")
    assert any(lost)
