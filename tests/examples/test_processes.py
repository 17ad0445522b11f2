"""Calls in processes: threads, errors and termination."""

import multiprocessing
import operator
import os
import signal
import subprocess
import sys
import time
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
SLEEP = """
import sys, time
sys.path.insert(0, sys.argv[1])
from processes import in_processes
for arguments, _ in in_processes(time.sleep, [(0,), (600,), (600,)], 2):
    print("one has ended", flush=True)
"""


@pytest.fixture
def processes(monkeypatch):
    monkeypatch.syspath_prepend(EXAMPLES)
    import processes

    return processes


@pytest.mark.parametrize(("chosen", "expected"), [(None, "1"), ("3", "3")])
def test_a_process_has_one_thread_unless_the_user_chose_another_number(processes, monkeypatch, chosen, expected):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if chosen is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", chosen)
    assert list(processes.in_processes(os.getenv, [("OMP_NUM_THREADS",)], 1)) == [(("OMP_NUM_THREADS",), expected)]


@pytest.mark.parametrize(
    ("cores", "threads", "expected"),
    [(1, None, 1), (2, None, 2), (8, "1", 8), (8, "3", 2), (8, "2,1", 4), (2, "4", 1)],
)
def test_as_many_processes_as_the_cores_are_enough_for(processes, monkeypatch, cores, threads, expected):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(cores)), raising=False)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if threads is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", threads)
    assert processes.default_jobs() == expected


def test_the_order_of_the_calls_is_not_that_of_the_results(processes):
    found = dict(processes.in_processes(operator.add, [(1, 2), (3, 4), (5, 6)], 2))
    assert found == {(1, 2): 3, (3, 4): 7, (5, 6): 11}


def test_other_children_go_on(processes):
    other = multiprocessing.get_context("spawn").Process(target=time.sleep, args=(600,), daemon=True)
    other.start()
    list(processes.in_processes(operator.add, [(1, 2)], 1))
    other.join(0.5)
    assert other.is_alive()
    other.terminate()
    other.join()


def test_an_error_ends_the_other_calls(processes):
    others = multiprocessing.active_children()
    with pytest.raises(TypeError, match="str") as caught:
        list(processes.in_processes(time.sleep, [(600,), ("soon",)], 2))
    assert "Traceback" in str(caught.value.__cause__)  # that of the process
    assert set(multiprocessing.active_children()) <= set(others)


def test_a_process_that_is_killed_is_an_error(processes):
    with pytest.raises(BrokenProcessPool):
        list(processes.in_processes(os._exit, [(3,)], 1))


@pytest.mark.skipif(os.name == "nt", reason="needs signals")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_processes_end_with_their_parent(number):
    line = [sys.executable, "-c", SLEEP, EXAMPLES]
    with subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as parent:
        assert parent.stdout.readline() == "one has ended\n"
        parent.send_signal(number)
        _, errors = parent.communicate(timeout=300)  # until nobody holds the pipes any more
    assert parent.returncode == -number
    assert errors.count("Traceback") == (number == signal.SIGINT)  # that of the parent
