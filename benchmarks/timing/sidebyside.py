"""Candidates for the same work, timed in turn in one process, as a table.

The machine may be busy: every round runs each candidate once, and a candidate's speed is the median over the rounds of
its ratio to the first candidate in the same round. Memory is measured in a separate round.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from benchmarks.common import markdown_table


@dataclass(frozen=True)
class Settings:
    """Settings of a measurement. ``quick`` uses tiny sizes, which only show that a benchmark runs."""

    device: torch.device
    repeats: int
    quick: bool


@dataclass(frozen=True)
class Candidate:
    """An implementation: its name, one repetition, and the difference of its result to that of the first candidate."""

    name: str
    run: Callable[[], Any]
    agreement: str = ""


@dataclass
class Table:
    """The measurements of one kind of work.

    Attributes:
        title: name of the task.
        about: sizes, checks, and how to read the table.
        items: unit of the throughput, for example "images".
        columns: heading of each column; by default those of a race.
        rows: cells, one list a candidate.
        skipped: candidates that are left out, and why.
    """

    title: str
    about: str
    items: str
    columns: list[str] = field(default_factory=list)
    rows: list[list[str]] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)

    def race(
        self, candidates: Sequence[Candidate], settings: Settings, *, items: int, setting: str = ""
    ) -> dict[str, float]:
        """Time the candidates in turn and add a row for each; return their speeds relative to the first one."""
        for candidate in candidates:
            candidate.run()
            wait(settings.device)
        peaks = [peak_memory(candidate.run, settings.device) for candidate in candidates]
        seconds: list[list[float]] = [[] for _ in candidates]
        for _ in range(settings.repeats):
            for candidate, taken in zip(candidates, seconds, strict=True):
                gc.collect()
                wait(settings.device)
                started = time.perf_counter()
                candidate.run()
                wait(settings.device)
                taken.append(time.perf_counter() - started)
        speeds = [statistics.median(a / b for a, b in zip(seconds[0], taken, strict=True)) for taken in seconds]
        for candidate, peak, taken, speed in zip(candidates, peaks, seconds, speeds, strict=True):
            median = statistics.median(taken)
            memory = "" if peak is None else f"{peak / 2**20:,.0f}"
            spread = f"{_short(1e3 * min(taken))} to {_short(1e3 * max(taken))}"
            times = [_short(1e3 * median), spread, f"{speed:.2f}", _short(items / median)]
            self.rows.append([setting, candidate.name, *times, memory, candidate.agreement])
        return {candidate.name: speed for candidate, speed in zip(candidates, speeds, strict=True)}

    def peer(self, module: str, package: str) -> ModuleType | None:
        """Return a package to compare with; without it, note that it is left out and return ``None``."""
        try:
            return importlib.import_module(module)
        except ImportError as error:
            self.skipped.append(f"{package} left out: {error}")
            return None

    def markdown(self) -> str:
        """Return the table under its heading."""
        race = ["setting", "candidate", "median ms", "min to max", "speed", f"{self.items}/s", "peak MiB", "agreement"]
        head = self.columns or race
        kept = [i for i in range(len(head)) if any(row[i] for row in self.rows)]
        table = markdown_table([head[i] for i in kept], ([row[i] for i in kept] for row in self.rows))
        skipped = "".join(f"\n{word}.\n" for word in self.skipped)
        return f"## {self.title}\n\n{self.about}\n{skipped}\n{table}"


def _short(number: float) -> str:
    return f"{number:,.0f}" if number >= 1000 else f"{number:.4g}"


def wait(device: torch.device) -> None:
    """Wait until the device has finished its work."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def peak_memory(run: Callable[[], Any], device: torch.device) -> int | None:
    """Return the peak memory of a run beyond that in use before it, in bytes; ``None`` where it is not counted."""
    gc.collect()
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        run()
        return torch.cuda.max_memory_allocated(device) - before
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)  # what was freed would hide in the process, and the run in it
    try:
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here
        before = _resident("VmRSS")
        run()
        return _resident("VmHWM") - before
    except OSError:
        return None


def _resident(entry: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(entry))


def agree(name: str, ours: Any, expected: Any, tolerance: float) -> str:
    """Return the largest difference of tensors, relative to their largest entry; raise if it is too large."""
    pairs = list(zip(_tensors(ours), _tensors(expected), strict=True))
    worst = max(float((a - b).abs().max() / b.abs().max().clamp_min(1e-30)) for a, b in pairs)
    if not worst <= tolerance:
        raise SystemExit(
            f"{name}: expected what the first candidate computes to {tolerance:.0e}, differs by {worst:.1e}."
        )
    return f"{worst:.0e}"


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    for tensor in [value] if isinstance(value, torch.Tensor) else value:
        yield tensor.detach().double().cpu()
