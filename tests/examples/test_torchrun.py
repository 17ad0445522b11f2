"""pretrain.py under torchrun: two processes, two machines, and a process that is killed."""

import csv
import os
import re
import signal
import socket
import time
from pathlib import Path

import pytest
import torch

from advcontrast.engine import Checkpoint
from tests.examples.cifar import CIFAR, FEW, PATIENCE, card, environment, process, weights
from tests.processes import Popen

pytestmark = [pytest.mark.distributed, pytest.mark.slow]
FLAGS = (*FEW, "--epochs", "3", "--batch-size", "20", "--attack-steps", "2", "--save-every", "1", "--seed", "3")


def torchrun(*meeting, out, home, cwd=None, flags=FLAGS):
    words = ["-m", "torch.distributed.run", *meeting, CIFAR / "pretrain.py", *flags, "--out", out]
    return Popen(*words, env=environment(home), cwd=cwd)


def finish(run, status=0):
    said, errors = run.communicate(timeout=PATIENCE)
    assert run.returncode == status, errors
    return said, errors


def rows(out):
    with (out / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return str(free.getsockname()[1])


def wait_for_step(out, step, run):
    end = time.monotonic() + PATIENCE
    while max(Checkpoint(out / "checkpoints").steps(), default=0) < step:
        assert run.poll() is None, "ended by itself"
        assert time.monotonic() < end
        time.sleep(0.005)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, home):
    out = tmp_path_factory.mktemp("runs") / "two"
    said, _ = finish(torchrun("--standalone", "--nproc-per-node=2", out=out, home=home))
    return out, said


def test_first_process_alone_speaks_and_writes(undisturbed):
    out, said = undisturbed
    assert sum("TA " in line for line in said.splitlines()) == 1
    assert card(out).settings["processes"] == 2
    assert all(value.isfinite().all() for value in weights(out).values())


def test_steps_and_rates_are_those_of_one_process(undisturbed, tmp_path, home):
    done = process("pretrain", *FLAGS, "--out", tmp_path / "one", home=home)
    assert done.returncode == 0, done.stderr
    for name in ("epoch", "step", "lr"):
        assert [row[name] for row in rows(tmp_path / "one")] == [row[name] for row in rows(undisturbed[0])]


@pytest.mark.nightly
def test_two_machines_of_one_process_are_one_machine_of_two(undisturbed, tmp_path, home):
    port, nodes = free_port(), []
    for node in range(2):
        (tmp_path / str(node)).mkdir()
        meeting = ["--nnodes=2", f"--node-rank={node}", "--nproc-per-node=1"]
        meeting += ["--master-addr=127.0.0.1", f"--master-port={port}"]
        nodes.append(torchrun(*meeting, out="run", home=home, cwd=tmp_path / str(node)))  # with disks of their own
    for node in nodes:
        finish(node)
    assert equal(weights(tmp_path / "0" / "run"), weights(undisturbed[0]))
    assert not (tmp_path / "1" / "run").exists()


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="finds the process to kill in /proc")
@pytest.mark.nightly
def test_run_with_a_killed_process_finishes_by_itself(undisturbed, tmp_path, home):
    out = tmp_path / "run"
    run = torchrun("--standalone", "--nproc-per-node=2", "--max-restarts=1", out=out, home=home)
    wait_for_step(out, 4, run)
    os.kill(ranks(run.pid)[1], signal.SIGKILL)
    _, errors = finish(run)
    # The killed process, or the other one, which ends with an error: torchrun reports the end that it notices first.
    assert re.search(r"Signal 9|exitcode: (-9|2)\b", errors)
    assert equal(weights(out), weights(undisturbed[0]))


def ranks(pid):
    """Return the processes that torchrun has forked, in order."""
    command = Path(f"/proc/{pid}/cmdline").read_text()
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(child) for child in children if Path(f"/proc/{child}/cmdline").read_text() == command]


@pytest.mark.nightly
def test_run_that_is_stopped_goes_on_in_one_process(undisturbed, tmp_path, home):
    out = tmp_path / "run"
    run = torchrun("--standalone", "--nproc-per-node=2", out=out, home=home)
    wait_for_step(out, 2, run)
    run.send_signal(signal.SIGTERM)
    run.communicate(timeout=PATIENCE)
    assert not (out / "card.json").exists()
    done = process("pretrain", *FLAGS, "--timeout", "60", "--out", out, home=home)
    assert done.returncode == 0, done.stderr
    assert "fit: expected as many processes as before, got 1 instead of 2." in done.stderr
    for name in ("epoch", "step", "lr"):
        assert [row[name] for row in rows(out)] == [row[name] for row in rows(undisturbed[0])]


def test_synchronised_norms_are_refused_on_a_cpu_before_anything_is_written(tmp_path, home):
    meeting = ("--standalone", "--nproc-per-node=2")
    run = torchrun(*meeting, out=tmp_path / "run", home=home, flags=(*FLAGS, "--sync-norms", "--device", "cpu"))
    _, errors = finish(run, status=1)
    assert (
        "pretrain.py: --sync-norms: expected an accelerator, as SyncBatchNorm does not train on a CPU, got cpu. "
        "Leave the flag out, or see --device." in errors
    )
    assert not (tmp_path / "run").exists()


@pytest.mark.nightly
def test_synchronised_norms_of_one_process_are_plain_ones(tmp_path, home):
    outs = [tmp_path / "plain", tmp_path / "synchronised"]
    for out, more in zip(outs, [(), ("--sync-norms",)], strict=True):
        done = process("pretrain", *FLAGS, *more, "--epochs", "1", "--out", out, home=home)
        assert done.returncode == 0, done.stderr
    assert equal(*map(weights, outs))


def test_folder_of_another_run_is_refused_and_all_processes_end(undisturbed, home):
    run = torchrun("--standalone", "--nproc-per-node=2", out=undisturbed[0], home=home, flags=(*FLAGS, "--lr", "1"))
    _, errors = finish(run, status=1)
    # torchrun may end the second process before it writes the error.
    assert errors.count("pretrain.py: --out: expected the settings of the run in ") in (1, 2)
    assert "lr 1.0 instead of 5.0. Choose another folder." in errors
