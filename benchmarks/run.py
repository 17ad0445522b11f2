"""Time advcontrast side by side with the reference formulations and with other libraries.

    python -m benchmarks.run                                     # every benchmark, on the CPU
    python -m benchmarks.run pgd nt_xent                         # some of them
    python -m benchmarks.run --device cuda --out benchmarks/results/gpu
    python -m benchmarks.run --quick                             # tiny sizes, to check that it runs

Each benchmark first checks that the candidates compute the same thing. Libraries that are not installed are left out;
the table lists them. To install all: pip install adversarial-robustness-toolbox foolbox kornia lightly pyautoattack
pytorch-metric-learning torchattacks. Writes one Markdown file per benchmark to --out, with hardware, versions and date.
"""

from __future__ import annotations

import argparse
import importlib
import time
from collections.abc import Iterable
from pathlib import Path

import torch

from benchmarks.common import conditions
from benchmarks.timing.sidebyside import Settings, Table

BENCHMARKS = ("step", "pgd", "nt_xent", "views", "trades", "end_to_end", "mixed")
PEERS = (
    "torchvision",
    "adversarial-robustness-toolbox",
    "foolbox",
    "kornia",
    "lightly",
    "pyautoattack",
    "pytorch-metric-learning",
    "torchattacks",
)


def main() -> None:
    """Run the chosen benchmarks, print their tables and write them."""
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
        text = ""
        tables: Iterable[Table] = importlib.import_module(f"benchmarks.timing.{name}").tables(settings)
        for table in tables:
            print(table.markdown(), end="\n\n", flush=True)
            text += f"\n\n{table.markdown()}"
            if given.out is not None:  # now, since the next table may not be finished
                given.out.mkdir(parents=True, exist_ok=True)
                measured = conditions(__spec__.name, PEERS, seconds=time.monotonic() - started, device=given.device)
                (given.out / f"{name}.md").write_text(f"# {name}\n\n{measured}{text}\n")


if __name__ == "__main__":
    main()
