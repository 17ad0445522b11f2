"""Time advcontrast side by side with the reference formulations and with other libraries.

    python benchmarks/run.py                                     # every benchmark, on the CPU
    python benchmarks/run.py pgd nt_xent                         # some of them
    python benchmarks/run.py --device cuda --out benchmarks/results/gpu
    python benchmarks/run.py --quick                             # tiny sizes: does it run?

Each benchmark first checks that the candidates compute the same thing. Peers that are not installed are left out with a
word; all of them: pip install adversarial-robustness-toolbox foolbox kornia lightly pyautoattack
pytorch-metric-learning torchattacks. Writes one Markdown file a benchmark to --out, with hardware, versions and date.
"""

from __future__ import annotations

import argparse
import datetime
import importlib
import platform
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from sidebyside import Settings, Table

BENCHMARKS = ("step", "pgd", "nt_xent", "views", "trades", "end_to_end", "mixed")
PACKAGES = {
    "advcontrast": "advcontrast",
    "torch": "torch",
    "torchvision": "torchvision",
    "adversarial-robustness-toolbox": "ART",
    "foolbox": "foolbox",
    "kornia": "kornia",
    "lightly": "lightly",
    "pyautoattack": "pyautoattack",
    "pytorch-metric-learning": "pytorch-metric-learning",
    "torchattacks": "torchattacks",
}


def main() -> None:
    """Run the benchmarks that were asked for, print their tables and write them down."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("benchmarks", nargs="*", metavar="NAME", help=f"of {', '.join(BENCHMARKS)}; by default all")
    parser.add_argument("--device", default="cpu", help="cpu | cuda")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of PyTorch on the CPU")
    parser.add_argument("--repeats", type=int, default=7, help="rounds; the table has medians over them")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to see that everything runs")
    parser.add_argument("--out", type=Path, help="folder for the tables; by default they are only printed")
    given = parser.parse_args()
    unknown = [name for name in given.benchmarks if name not in BENCHMARKS]
    if unknown or given.repeats < 1 or given.threads < 1:
        parser.error(f"expected benchmarks of {', '.join(BENCHMARKS)}, and repeats and threads of at least 1")
    torch.set_num_threads(given.threads)
    settings = Settings(torch.device(given.device), given.repeats, given.quick)
    for name in given.benchmarks or BENCHMARKS:
        started = time.monotonic()
        tables: list[Table] = importlib.import_module(name).tables(settings)
        text = "\n\n".join(table.markdown() for table in tables) + "\n"
        print(text, flush=True)
        if given.out is not None:
            given.out.mkdir(parents=True, exist_ok=True)
            seconds = time.monotonic() - started
            (given.out / f"{name}.md").write_text(f"# {name}\n\n{conditions(settings, seconds)}\n\n{text}")


def conditions(settings: Settings, seconds: float) -> str:
    """Return what the numbers depend on: the command, the machine, versions, the date."""
    command = " ".join(["python", "benchmarks/run.py", *sys.argv[1:]])
    installed = [f"{name} {found}" for package, name in PACKAGES.items() if (found := _version(package))]
    on = f"{torch.get_num_threads()} threads of {processor()}"
    if settings.device.type == "cuda":
        on = f"{torch.cuda.get_device_name(settings.device)}, {on}"
    when = f"{datetime.date.today():%d %B %Y}, {seconds:.0f} s"
    return f"`{command}`: {when}. {on}. Python {platform.python_version()}, {', '.join(installed)}."


def processor() -> str:
    """Return the name of the processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


if __name__ == "__main__":
    main()
