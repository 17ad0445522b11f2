"""Calls of a function in parallel, each in a separate process, and their progress, for ``quickstart.py``.

Small networks do not benefit from several PyTorch threads: waiting threads spin, which takes CPU time from other
programs. Several processes with one thread each are faster.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from multiprocessing import active_children, get_context, parent_process
from typing import Any


def default_jobs() -> int:
    """Return how many processes use all CPU cores that are available to this one."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = int(os.environ.get("OMP_NUM_THREADS", "1").partition(",")[0])
    return max(1, cores // threads)


def report(text: str) -> None:
    """Print a line of progress to a terminal or a log that several processes share."""
    print(f"{text}\n", end="", file=sys.stderr, flush=True)  # one write, which lines of other processes cannot split


def progress(stage: str, epochs: int) -> Callable[[int], dict[str, float]]:
    """Report the start of a stage; return a function to call after each epoch, which reports every ten seconds."""
    report(f"{stage}: {epochs} epochs")
    started = shown = time.monotonic()

    def after(epoch: int) -> dict[str, float]:
        nonlocal shown
        now = time.monotonic()
        if now > shown + 10 or epoch == epochs:
            report(f"{stage}: {epoch} of {epochs} epochs, {(now - started) / epoch * (epochs - epoch):.0f} s left")
            shown = now
        return {}  # metrics for the training loop to record

    return after


def in_processes(
    function: Callable[..., Any], calls: Sequence[tuple[Any, ...]], jobs: int
) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """Yield the arguments and the result of each call, in the order of completion.

    PyTorch has one thread in each process, or as many as the environment variable OMP_NUM_THREADS sets. The first error
    of a call is raised and ends all processes; so does Ctrl-C.

    Args:
        function: a function that can be imported from a module.
        calls: tuples of arguments, started in this order.
        jobs: number of processes, at least 1.
    """
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    others = active_children()
    pool = ProcessPoolExecutor(jobs, get_context("spawn"), initializer=_follow_parent)
    try:
        with _interrupts_later():
            futures = {pool.submit(function, *arguments): arguments for arguments in calls}
        for future in as_completed(futures):
            yield futures[future], future.result()
    finally:
        for process in active_children():
            if process not in others:
                process.terminate()
        pool.shutdown(cancel_futures=True)


@contextmanager
def _interrupts_later() -> Iterator[None]:
    """Defer Ctrl-C until the end of the block, and block it in processes started inside: the parent handles it."""
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
    """Ignore Ctrl-C, and end this process when its parent has ended for any reason."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=lambda: (parent_process().join(), os._exit(1)), daemon=True).start()
