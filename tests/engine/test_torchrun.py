"""Processes that are killed, hang or fail: the others stop in time, and a restart ends where it would have."""

import os
import socket
from pathlib import Path

import pytest
import torch

from advcontrast.engine import Checkpoint
from tests.engine.learners import last_step, same
from tests.processes import Popen, run

pytestmark = [pytest.mark.distributed, pytest.mark.slow]
MEMBER = Path(__file__).with_name("member.py")
PATIENCE = 120  # seconds for what takes about ten
LAST = "Look for the first error among all processes; when restarted, the run resumes from the last intact checkpoint."
TOGETHER = "RuntimeError: fit: expected all 2 processes to stay connected, got"
GONE = f"{TOGETHER} a lost connection on process 0. {LAST}"
LATE = f"{TOGETHER} a timeout on process 0. {LAST}"


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return str(free.getsockname()[1])


def members(folder, accident="none", step=0, world=2):
    """Run all processes without anyone to watch over them; return status and messages of the first one."""
    network = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port(), "WORLD_SIZE": str(world)}
    environments = [{**os.environ, **network, "RANK": str(rank)} for rank in range(world)]
    processes = [Popen(MEMBER, folder, accident, step, env=environment) for environment in environments]
    try:
        _, messages = processes[0].communicate(timeout=PATIENCE)
        if accident != "hang":
            for process in processes[1:]:
                process.communicate(timeout=PATIENCE)
    finally:
        for process in processes:
            process.kill()
            process.wait()
    return processes[0].returncode, messages


def torchrun(*arguments, folder, accident="none", step=0):
    return Popen("-m", "torch.distributed.run", *arguments, MEMBER, folder, accident, step)


def final(folder, rank=0):
    return torch.load(folder / f"final-{rank}.pt", weights_only=True)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "undisturbed"
    status, messages = members(folder)
    assert status == 0, messages
    assert same(final(folder, 0), final(folder, 1))
    return final(folder)


@pytest.mark.parametrize(("accident", "message"), [("kill", GONE), ("raise", GONE), ("hang", LATE)])
@pytest.mark.sample(1)
def test_others_stop_with_a_clear_error_and_a_restart_ends_where_it_would_have(
    tmp_path, undisturbed, accident, message
):
    status, messages = members(tmp_path / "run", accident, 5)
    assert status == 1
    assert messages.rstrip().endswith(message), messages
    assert (tmp_path / "run" / "happened").exists()
    step, _ = Checkpoint(tmp_path / "run" / "checkpoints").load()
    assert step == last_step(tmp_path / "run") == 4
    status, messages = members(tmp_path / "run")
    assert status == 0, messages
    assert same(final(tmp_path / "run"), undisturbed)


@pytest.mark.parametrize("meeting", ["--standalone", "--master-port"])
@pytest.mark.sample(1)
def test_elastic_restart_ends_as_if_nothing_had_happened(tmp_path, undisturbed, meeting):
    where = meeting if meeting == "--standalone" else f"{meeting}={free_port()}"
    process = torchrun(
        where, "--nproc-per-node=2", "--max-restarts=1", folder=tmp_path / "run", accident="kill", step=5
    )
    _, messages = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, messages
    assert (tmp_path / "run" / "happened").exists()
    assert same(final(tmp_path / "run", 0), undisturbed)
    assert same(final(tmp_path / "run", 1), undisturbed)


LEAVES = """
import gc, os, sys
from torch import distributed as dist, nn
from advcontrast.distributed import init_from_torchrun

def threads():
    return len(os.listdir("/proc/self/task"))

before = threads()
init_from_torchrun(timeout=30)
nn.parallel.DistributedDataParallel(nn.Linear(2, 2))
gc.collect()
during = threads()
dist.destroy_process_group()
print(during > before, threads() - before, file=sys.stderr)
"""


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="counts the threads of a process in /proc")
def test_a_process_group_ends_before_the_interpreter_does():
    network = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0", "WORLD_SIZE": "1", "RANK": "0"}
    done = run("-c", LEAVES, env={**os.environ, **network})
    assert done.stderr.rstrip().endswith("True 0"), done.stderr


def test_two_machines_are_as_good_as_one(tmp_path, undisturbed):
    port = free_port()
    nodes = [
        torchrun(
            "--nnodes=2",
            f"--node-rank={rank}",
            "--nproc-per-node=1",
            "--master-addr=127.0.0.1",
            f"--master-port={port}",
            folder=tmp_path / "run",
        )
        for rank in range(2)
    ]
    for node in nodes:
        _, messages = node.communicate(timeout=PATIENCE)
        assert node.returncode == 0, messages
    assert same(final(tmp_path / "run", 0), undisturbed)
    assert same(final(tmp_path / "run", 1), undisturbed)
