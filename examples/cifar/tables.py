"""Run Tables 1 to 5 and Figures 2 and 3 of the ACL paper at a chosen budget, and show them beside its numbers.

    python examples/cifar/tables.py --budget smoke --data embedded --data100 embedded --out runs/smoke
    python examples/cifar/tables.py --budget small --data embedded --out runs/small --jobs 2 --only few table2 table5
    python examples/cifar/tables.py --budget paper --data cifar10 --data100 cifar100 --out runs/paper

Each run is one of the scripts in this folder, and writes to ``OUT/seed<N>/<run>/``. The same command resumes what was
interrupted. Logs are in ``OUT/logs/``. On a CPU set ``--jobs`` to the number of cores: a run has one thread of PyTorch
unless the environment variable OMP_NUM_THREADS sets another number. The results do not depend on ``--jobs``.
``OUT/tables.md``, ``OUT/figure2.png`` and ``OUT/figure3.png`` show the results so far: mean and standard deviation over
the seeds, next to the paper's numbers; ``OUT/cards/`` has a JSON card for each run.

Budgets: ``paper`` has the settings of the paper (weeks on one GPU); ``hour`` cuts its pre-training to 40 epochs, for
``--amp bf16 --only finetune-random finetune-S2S finetune-DS`` on a GPU. ``small`` has a narrow network and few epochs,
for hours on a CPU. ``smoke`` shows that every row runs, and nothing else.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from pathlib import Path

from flags import Parser
from recipes import BUDGETS, PARTS, Run, needed, runs_of
from report import finished, write_report

HERE = Path(__file__).parent
KINDS = ("cifar10", "cifar100", "folder", "embedded")


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--budget", choices=BUDGETS, default="smoke", help="how much to spend")
    parser.add_argument("--data", choices=KINDS, default="cifar10", help="images in the place of CIFAR-10")
    parser.add_argument("--data-dir", default="data", help="as for the scripts")
    parser.add_argument(
        "--data100", choices=KINDS, help="images in the place of CIFAR-100; without, its rows stay empty"
    )
    parser.add_argument("--data100-dir", default="data", help="as for the scripts")
    parser.add_argument("--out", required=True, help="folder for all runs, the tables and the figures")
    parts = ", ".join(PARTS)
    parser.add_argument("--only", nargs="+", default=PARTS, metavar="PART", help=f"{parts}, or names of runs")
    parser.add_argument("--seeds", type=int, default=0, help="number of seeds; 0 for the budget's")
    parser.add_argument(
        "--jobs",
        type=int,
        default=1,
        help="runs at a time, each with one thread on the CPU unless OMP_NUM_THREADS is set",
    )
    parser.add_argument("--device", default="auto", help="as for the scripts")
    parser.add_argument("--amp", default="off", choices=("off", "bf16"), help="as for the scripts")
    given = parser.parse_args()
    known = {*PARTS, *runs_of(BUDGETS[given.budget])}
    for part in given.only:
        if part not in known:
            parser.error(f"expected --only some of {parts} or names of runs, got {part}.")
    for name, least in (("seeds", 0), ("jobs", 1)):
        if getattr(given, name) < least:
            parser.error(f"expected --{name} of at least {least}, got {getattr(given, name)}.")
    try:
        (Path(given.out) / "logs").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        parser.error(f"expected --out to be a folder for runs, got {given.out} ({error}).")
    return given


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
        flags["model" if run.script == "unforeseen" else "encoder"] = here / run.takes / "final.safetensors"
    line = [sys.executable, str(HERE / f"{run.script}.py")]
    return line + [str(word) for name, value in {**run.flags, **flags}.items() for word in (f"--{name}", value)]


class Runner:
    """Runs the scripts, several at a time, and ends them when it is ended itself."""

    def __init__(self, given: argparse.Namespace) -> None:
        self.given = given
        self.folder = Path(given.out)
        self.children: set[subprocess.Popen[bytes]] = set()
        self.lock, self.ending = threading.Lock(), False
        # Not the cores divided by the jobs: the number of threads changes the rounding of sums, and so the results.
        self.environment = {"OMP_NUM_THREADS": "1", **os.environ}

    def run(self, run: Run, seed: int, before: Future[str] | None) -> str:
        """Run a script to its end, unless it has ended before; return what went wrong, or nothing."""
        if before is not None and before.result():
            return f"{run.name}, seed {seed}: not run, as {run.takes} failed"
        folder = self.folder / f"seed{seed}" / run.name
        if finished(folder):
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
        if finished(folder):
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
        """Run everything, seed by seed; return what went wrong."""
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


def progress(text: str) -> None:
    """Print a line about the runs, for a terminal or a log."""
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


def require_same(given: argparse.Namespace) -> None:
    """End if the folder holds the runs of another budget or other images, which would get into the tables."""
    path = Path(given.out) / "tables.json"
    ours = {name: getattr(given, name) for name in ("budget", "data", "data100", "amp")}
    path.parent.mkdir(parents=True, exist_ok=True)
    theirs = json.loads(path.read_text()) if path.exists() else ours
    for name, value in ours.items():
        if theirs.get(name) not in (None, value):
            expected, got = f"--{name} {theirs[name]} as for the runs in {given.out}", value
            Parser().error(f"expected {expected}, got {got}. Choose another folder.")
    partial = path.with_name(".tables.json.partial")
    partial.write_text(json.dumps({**theirs, **{name: value for name, value in ours.items() if value is not None}}))
    partial.replace(path)


def main() -> int:
    """Run what is needed, and show what there is."""
    given = arguments()
    require_same(given)
    budget = BUDGETS[given.budget]
    seeds = range(1, (given.seeds or budget.seeds) + 1)
    runs = [run for run in needed(given.only, runs_of(budget)) if given.data100 or not run.second]
    runner = Runner(given)
    failures = runner.all(runs, seeds)
    write_report(Path(given.out), runner_title(given))
    print((Path(given.out) / "tables.md").read_text())
    for failure in failures:
        print(f"tables.py: {failure}", file=sys.stderr)
    return 0 if runner.ending else min(len(failures), 1)


def runner_title(given: argparse.Namespace) -> str:
    """Say what the numbers were measured on."""
    second = f"; second data set {given.data100}, in the place of CIFAR-100" if given.data100 else ""
    return f"budget {given.budget}, {given.data} in the place of CIFAR-10{second}"


if __name__ == "__main__":
    sys.exit(main())
