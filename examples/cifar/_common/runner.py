"""Scripts that run as processes, several at a time, each after the one whose weights it uses."""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from pathlib import Path

from advcontrast.evaluation import ResultCard

from .paper_tables import Run

SCRIPTS = Path(__file__).parents[1]


def command(run: Run, seed: int, given: argparse.Namespace) -> list[str]:
    """Return the command line of a run."""
    here = Path(given.out) / f"seed{seed}"
    data, where = (given.data100, given.data100_dir) if run.second else (given.data, given.data_dir)
    flags = {
        "data": data,
        "data-dir": where,
        "seed": seed,
        "out": here / run.name,
        "device": given.device,
        "amp": given.amp,
    }
    if run.takes is not None:
        flag = {"corruptions": "model", "pretrain": "teacher"}.get(run.script, "encoder")
        flags[flag] = here / run.takes / "final.safetensors"
    line = [sys.executable, str(SCRIPTS / f"{run.script}.py")]
    return line + [str(word) for name, value in {**run.flags, **flags}.items() for word in (f"--{name}", value)]


class Runner:
    """Runs the scripts, several at a time, and ends them if it is terminated."""

    def __init__(self, given: argparse.Namespace) -> None:
        self.given = given
        self.folder = Path(given.out)
        self.children: set[subprocess.Popen[bytes]] = set()
        self.lock, self.ending = threading.Lock(), False
        # Not the cores divided by the jobs: the number of threads changes the rounding of sums, and so the results.
        self.environment = {"OMP_NUM_THREADS": "1", **os.environ}

    def run(self, run: Run, seed: int, before: Future[str] | None) -> str:
        """Run a script to its end, unless it is finished; return the error, if any."""
        if before is not None and before.result():
            return f"{run.name}, seed {seed}: not run, as {run.takes} failed"
        folder = self.folder / f"seed{seed}" / run.name
        if card_of(folder / "card.json") is not None:
            return ""
        log = self.folder / "logs" / f"{run.name}-seed{seed}.log"
        with log.open("wb") as file:
            with self.lock:
                if self.ending:
                    return f"{run.name}, seed {seed}: not run"
                child = subprocess.Popen(command(run, seed, self.given), stdout=file, stderr=file, env=self.environment)
                self.children.add(child)
            progress(f"{run.name}, seed {seed}: running, see {log}")
            child.wait()
            with self.lock:
                self.children.discard(child)
        if card_of(folder / "card.json") is not None:
            return ""
        lines = log.read_text(errors="replace").splitlines() or [f"status {child.returncode}"]
        return f"{run.name}, seed {seed}: {lines[-1]}"

    def end(self, *_: object) -> None:
        """Ask all scripts to save and end."""
        with self.lock:
            self.ending = True
            for child in self.children:
                child.terminate()

    def all(self, runs: Sequence[Run], seeds: Sequence[int]) -> list[str]:
        """Run everything, seed by seed; return the errors."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self.end)
        waiting: dict[tuple[str, int], Future[str]] = {}
        with ThreadPoolExecutor(self.given.jobs) as pool:
            for seed in seeds:
                for run in runs:
                    before = None if run.takes is None else waiting[run.takes, seed]
                    waiting[run.name, seed] = pool.submit(self.run, run, seed, before)
            names = {future: f"{name}, seed {seed}" for (name, seed), future in waiting.items()}
            for done, future in enumerate(as_completed(names), 1):
                progress(f"{names[future]}: {'not ' * bool(future.result())}finished, {done} of {len(names)} runs")
        return [future.result() for future in names if future.result()]


def card_of(path: Path) -> ResultCard | None:
    """Return the card in a file; ``None`` if there is none, or if it is damaged."""
    try:
        return ResultCard.read(path)
    except (OSError, ValueError):
        return None


def progress(text: str) -> None:
    """Print a line about the runs, for a terminal or a log."""
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)
