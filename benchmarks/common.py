"""Helpers that several benchmarks share: the conditions of a result, tables in Markdown, a group of processes."""

from __future__ import annotations

import datetime
import multiprocessing
import os
import platform
import shlex
import socket
import sys
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

import advcontrast


def conditions(module: str, packages: Iterable[str] = (), *, seconds: float | None = None, device: str = "cpu") -> str:
    """Return the conditions of a result: command, date, duration, hardware, versions of torch and other packages."""
    command = shlex.join(["python", "-m", module.removesuffix(".__main__"), *sys.argv[1:]])
    when = f"{datetime.date.today():%d %B %Y}" + ("" if seconds is None else f", {seconds:.0f} s")
    threads = torch.get_num_threads()
    on = f"{threads} thread{'s' if threads > 1 else ''} of {processor()}"
    if device != "cpu":
        timed = "on" if torch.backends.cudnn.conv.fp32_precision == "tf32" else "off"
        on = f"{torch.cuda.get_device_name(device)}, TF32 off in comparisons and {timed} in timed convolutions, {on}"
    return f"`{command}`: {when}. {on}. {', '.join(f'{k} {v}' for k, v in versions(*packages).items())}."


def versions(*packages: str) -> dict[str, str]:
    """Return the versions of Python, the library, torch, and those of the other packages that are installed."""
    found = {"Python": platform.python_version(), "advcontrast": advcontrast.__version__}
    for package in ("torch", *packages):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def processor() -> str:
    """Return the name of the processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Return a table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(str(cell).replace('|', '/') for cell in line)} |" for line in lines)


def in_group(world: int, function: Callable[..., Any], *args: Any) -> Any:
    """Call a function in each of ``world`` new processes that form a gloo group; return the result of rank 0."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    with ProcessPoolExecutor(world, multiprocessing.get_context("spawn")) as pool:
        first, *others = [pool.submit(_member, rank, world, port, function, args) for rank in range(world)]
        for other in others:
            other.result()
        return first.result()


def _member(rank: int, world: int, port: int, function: Callable[..., Any], args: tuple[Any, ...]) -> Any:
    os.environ.update(MASTER_ADDR="localhost", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=world)
    try:
        result = function(*args)
        return result if rank == 0 else None
    finally:
        dist.destroy_process_group()
