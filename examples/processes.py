"""A function called with several arguments at a time, each call in a process of its own: ``quickstart.py`` uses it.

Networks that are small do not gain from the threads of PyTorch, which wait for each other actively and take the time of
all other programs meanwhile. One thread in each of several processes does.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from multiprocessing import active_children, get_context, parent_process
from typing import Any


def default_jobs() -> int:
    """Return how many processes it takes to use all CPU cores that this one may use."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = int(os.environ.get("OMP_NUM_THREADS", "1").partition(",")[0])
    return max(1, cores // threads)


def in_processes(
    function: Callable[..., Any], calls: Sequence[tuple[Any, ...]], jobs: int
) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """Yield the arguments and the result of each call, in the order in which they end.

    PyTorch has one thread in each process, or as many as the environment variable OMP_NUM_THREADS says. The first error
    of a call is raised, and ends all processes; so does Ctrl-C.

    Args:
        function: a function of a module, which can be imported.
        calls: tuples of arguments; the first ones begin first.
        jobs: number of processes, at least 1.
    """
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    pool = ProcessPoolExecutor(jobs, get_context("spawn"), initializer=_follow_parent)
    try:
        with _interrupts_later():
            futures = {pool.submit(function, *arguments): arguments for arguments in calls}
        for future in as_completed(futures):
            yield futures[future], future.result()
    finally:
        for process in active_children():
            process.terminate()
        pool.shutdown(cancel_futures=True)


@contextmanager
def _interrupts_later() -> Iterator[None]:
    """Hold Ctrl-C back, and block it in the processes that begin meanwhile: it is for their parent to handle."""
    pressed: list[bool] = []
    handler = signal.signal(signal.SIGINT, lambda *_: pressed.append(True))
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        if hasattr(signal, "pthread_sigmask"):
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        signal.signal(signal.SIGINT, handler)
    if pressed:
        raise KeyboardInterrupt


def _follow_parent() -> None:
    """Ignore Ctrl-C, and end this process with its parent, however that ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=lambda: (parent_process().join(), os._exit(1)), daemon=True).start()
