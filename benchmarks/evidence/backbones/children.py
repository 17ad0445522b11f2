"""Run a function on many items, each in its own process, so that a crash affects one item only."""

from __future__ import annotations

import math
import multiprocessing
import os
import resource
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

Item = TypeVar("Item")
_FORK = multiprocessing.get_context("fork")  # a fresh interpreter would import PyTorch for every item


PATIENCE = 10  # seconds on the clock for one of processor time


class Limits(NamedTuple):
    """Limits of an item: seconds of processor time, and memory beyond that of the parent."""

    seconds: float
    gigabytes: float


class Died(NamedTuple):
    """The reason why an item returned nothing."""

    reason: str
    too_big: bool


def each(
    function: Callable[[Item], Any], items: Iterable[Item], *, jobs: int, limits: Limits
) -> Iterator[tuple[Item, Any]]:
    """Yield each item with the result of ``function``, or :class:`Died`, in the order of completion."""
    waiting = list(items)[::-1]
    running: dict[Connection, tuple[Item, BaseProcess, float]] = {}
    while running or waiting:
        while waiting and len(running) < jobs:
            item = waiting.pop()
            ours, theirs = _FORK.Pipe(duplex=False)
            process = _FORK.Process(target=_child, args=(function, item, theirs, limits), daemon=True)
            process.start()
            theirs.close()
            running[ours] = (item, process, time.monotonic() + PATIENCE * limits.seconds)
        answered = wait(list(running), timeout=1)
        for pipe, (item, process, deadline) in list(running.items()):
            if pipe in answered:
                yield item, _answer(pipe, process, limits)
            elif time.monotonic() > deadline:
                process.kill()
                process.join()
                yield item, Died(f"no answer within {PATIENCE * limits.seconds:g} s", True)
            else:
                continue
            pipe.close()
            del running[pipe]


def _answer(pipe: Any, process: BaseProcess, limits: Limits) -> Any:
    try:
        answer = pipe.recv()
    except EOFError:
        process.join()
        code = process.exitcode or 0
        if code == -signal.SIGXCPU:
            return Died(f"needs more than {limits.seconds:g} s", True)
        return Died(f"killed by {signal.Signals(-code).name}" if code < 0 else f"exited with status {code}", False)
    process.join()
    return answer


def _child(function: Callable[[Item], Any], item: Item, pipe: Connection, limits: Limits) -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    seconds = math.ceil(limits.seconds)
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 5))
    own = _data_bytes() + int(limits.gigabytes * 1e9)
    resource.setrlimit(resource.RLIMIT_DATA, (own, own))
    with Path(os.devnull).open("w") as nothing:
        for output in (1, 2):
            os.dup2(nothing.fileno(), output)
    try:
        answer = function(item)
    except Exception as error:
        # PyTorch reports memory that it does not get as a RuntimeError.
        if isinstance(error, MemoryError) or "allocate memory" in str(error):
            answer = Died(f"needs more than {limits.gigabytes:g} GB", True)
        else:
            answer = Died(f"{type(error).__name__}: {error}", False)
    pipe.send(answer)


def _data_bytes() -> int:
    with Path("/proc/self/status").open() as status:
        return next(1024 * int(line.split()[1]) for line in status if line.startswith("VmData"))
