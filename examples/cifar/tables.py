"""Run Tables 1 to 5 and Figures 2 and 3 of the ACL paper at a chosen budget, and the comparison of later methods.

    python examples/cifar/tables.py --budget smoke --data embedded --data100 embedded --out runs/smoke
    python examples/cifar/tables.py --budget small --data embedded --out runs/small --jobs 2 --only few table2 table5
    python examples/cifar/tables.py --budget quick --data embedded --out runs/methods --jobs 2 --only methods
    python examples/cifar/tables.py --budget paper --data cifar10 --data100 cifar100 --out runs/paper

Each run is one of the scripts in this folder, and writes to ``OUT/seed<N>/<run>/``. The same command resumes what was
interrupted. Logs are in ``OUT/logs/``. On a CPU set ``--jobs`` to the number of cores: a run has one thread of PyTorch
unless the environment variable OMP_NUM_THREADS sets another number. The results do not depend on ``--jobs``.
``OUT/tables.md``, ``OUT/figure2.png`` and ``OUT/figure3.png`` show the results so far: mean and standard deviation over
the seeds, next to the paper's numbers; ``OUT/cards/`` has a JSON card for each run, and may hold those of earlier runs.

Budgets: ``paper`` has the settings of the paper (weeks on one GPU); ``hour`` cuts its pre-training to 40 epochs, for
``--amp bf16 --only finetune-random finetune-S2S finetune-DS`` on a GPU. ``medium`` has a ResNet-18 of
width 16 and the cost of ten epochs of ACL, ``small`` a narrow network and few epochs, for hours on a CPU, ``quick`` the
network of the quickstart. ``smoke`` only shows that every row runs.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from pathlib import Path

from _common.figures import draw_fine_tuning
from _common.flags import Parser
from _common.paper_tables import BUDGETS, FIGURES, PARTS, TABLES, needed, runs_of
from _common.report import draw_cost, mean_of, methods_table, paper_table
from _common.run_folder import write_json
from _common.runner import Runner, card_of
from advcontrast.evaluation import ResultCard
from advcontrast.evaluation.plots import plot_corruptions

KINDS = ("cifar10", "cifar100", "folder", "embedded")


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--budget", choices=BUDGETS, default="smoke", help="how much to spend")
    parser.add_argument("--data", choices=KINDS, default="cifar10", help="images in place of CIFAR-10")
    parser.add_argument("--data-dir", default="data", help="as for the scripts")
    parser.add_argument(
        "--data100", choices=KINDS, help="images in place of CIFAR-100; without it, its rows stay empty"
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


def require_same(given: argparse.Namespace) -> None:
    """Exit if the folder has runs of another budget or other images, which the tables would include."""
    path = Path(given.out) / "tables.json"
    ours = {name: getattr(given, name) for name in ("budget", "data", "data100", "amp")}
    theirs = json.loads(path.read_text()) if path.exists() else ours
    for name, value in ours.items():
        if theirs.get(name) not in (None, value):
            expected = f"--{name} {theirs[name]} as for the runs in {given.out}"
            Parser().error(f"expected {expected}, got {value}. Choose another folder.")
    write_json({**theirs, **{name: value for name, value in ours.items() if value is not None}}, path)


def write_report(out: Path, title: str) -> None:
    """Gather the cards of finished runs in ``cards/``, and write ``tables.md`` and the figures of all cards there."""
    folders: dict[str, list[Path]] = {}
    cards: dict[str, list[ResultCard]] = {}
    (out / "cards").mkdir(parents=True, exist_ok=True)
    for path in sorted(out.glob("seed*/*/card.json")):
        if card_of(path.parent / "card.json") is not None:
            folders.setdefault(path.parent.name, []).append(path.parent)
            shutil.copy(path, out / "cards" / f"{path.parent.name}-{path.parents[1].name}.json")
    for path in sorted((out / "cards").glob("*.json")):
        card = card_of(path)
        if card is not None:
            cards.setdefault(path.stem.rpartition("-")[0], []).append(card)
    measured = "Accuracy in percent on the test images, clean (TA) and under PGD-20 (RA)"
    parts = [f"# Tables of ACL: {title}", f"{measured}; mean ± standard deviation over the seeds."]
    methods = {name for name in cards if name.startswith("methods-")}
    others = cards.keys() - methods
    parts += [paper_table(one, cards) for one in TABLES.values() if others & {row.run for row in one.rows}]
    if methods:
        parts.append(methods_table(cards))
        draw_cost(cards).savefig(out / "methods.png", dpi=150)
        parts.append("![methods](methods.png)")
    shown = {name: {label: run for label, run in runs.items() if run in cards} for name, runs in FIGURES.items()}
    if shown["figure2"]:
        bars = {label: mean_of([card.corruptions for card in cards[run]]) for label, run in shown["figure2"].items()}
        plot_corruptions(bars).savefig(out / "figure2.png", dpi=150)
    if shown["figure3"]:
        lines = {label: folders[run] for label, run in shown["figure3"].items()}
        draw_fine_tuning(lines).savefig(out / "figure3.png", dpi=150)
    parts += [f"![{name}]({name}.png)" for name, runs in shown.items() if runs]
    (out / "tables.md").write_text("\n\n".join(parts) + "\n")


def main() -> int:
    """Run the missing runs, and report all results."""
    given = arguments()
    require_same(given)
    budget = BUDGETS[given.budget]
    seeds = range(1, (given.seeds or budget.seeds) + 1)
    runs = [run for run in needed(given.only, runs_of(budget)) if given.data100 or not run.second]
    runner = Runner(given)
    failures = runner.all(runs, seeds)
    second = f"; second data set {given.data100}, in the place of CIFAR-100" if given.data100 else ""
    write_report(Path(given.out), f"budget {given.budget}, {given.data} in the place of CIFAR-10{second}")
    print((Path(given.out) / "tables.md").read_text())
    for failure in failures:
        print(f"tables.py: {failure}", file=sys.stderr)
    return 0 if runner.ending else min(len(failures), 1)


if __name__ == "__main__":
    sys.exit(main())
