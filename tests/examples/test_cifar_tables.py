"""tables.py runs what is needed in order, goes on where it stopped, and reports what it finds."""

import argparse
import shutil
import signal
import sys
from itertools import chain
from types import SimpleNamespace

import pytest
import torch

from advcontrast import PGDAttack
from advcontrast.evaluation import Accuracy, ResultCard
from tests.examples.cifar import scripts_importable
from tests.processes import Popen

# Stands for a script: notes that it ran, and takes a card from the test unless it is told to fail.
SCRIPT = """
import os, shutil, sys
from itertools import chain
from pathlib import Path
flags = dict(zip(sys.argv[1::2], sys.argv[2::2]))
out = Path(flags["--out"])
with (out.parents[1] / "ran.txt").open("a") as file:
    print(out.name, file=file)
with (out.parents[1] / "threads.txt").open("a") as file:
    print(os.environ["OMP_NUM_THREADS"], file=file)
if (out.parents[1] / f"break-{out.name}").exists():
    sys.exit("pretrain.py: --lr: expected less, got more. Take less.")
if "--encoder" in flags:
    assert Path(flags["--encoder"]).exists()
out.mkdir(parents=True)
(out / "final.safetensors").touch()
(out / "metrics.csv").write_text("epoch,val_ra\\n1,0.1\\n")
shutil.copy(Path(__file__).with_name(f"card{flags['--seed']}.json"), out / "card.json")
"""
CLEAN = torch.arange(100)


def result(seed, ta, ra, corruptions=(), **training):
    """Return the card of a run that was right on so many of 100 images."""
    return ResultCard.from_verdicts(
        "run",
        {"TA": [Accuracy(ta > CLEAN)], "RA": [Accuracy(ra > CLEAN)]},
        seeds=[seed],
        data="some images",
        fingerprint="0" * 64,
        attacks={"RA": PGDAttack(steps=20)},
        corruptions=dict(corruptions),
        settings={"training": training},
    )


@pytest.fixture
def scripts():
    with scripts_importable() as patch:
        import tables
        from _common import figures, paper_tables, runner

        before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
        yield SimpleNamespace(recipes=paper_tables, figures=figures, runner=runner, tables=tables, patch=patch)
        for number, handler in before.items():
            signal.signal(number, handler)


@pytest.fixture
def run(scripts, tmp_path):
    """Run tables.py with scripts that do next to nothing."""
    here = tmp_path / "here"
    here.mkdir()
    for name in ("pretrain", "finetune", "linear", "semisupervised", "corruptions"):
        (here / f"{name}.py").write_text(SCRIPT)
    for seed in (1, 2):
        result(seed, 50 + seed, 20 + 3 * seed).write(here / f"card{seed}.json")
    scripts.patch.setattr(scripts.runner, "SCRIPTS", here)

    def run(*flags):
        scripts.patch.setattr(sys, "argv", ["tables.py", "--data", "embedded", "--out", str(tmp_path / "out"), *flags])
        return scripts.tables.main()

    return run


def fake(out, run, seed, ta=40, ra=10, **more):
    folder = out / f"seed{seed}" / run
    folder.mkdir(parents=True)
    result(seed, ta, ra, **more).write(folder / "card.json")
    (folder / "metrics.csv").write_text("epoch,val_ra\n1,0.1\n2,\n3,0.12\n")
    return folder


def report(scripts, out):
    scripts.tables.write_report(out, "a title")
    return (out / "tables.md").read_text()


def ran(out):
    return (out / "ran.txt").read_text().split()


def test_a_row_has_mean_and_deviation_over_the_seeds_beside_the_papers_numbers(scripts, tmp_path):
    for seed, ta, ra in ((1, 40, 10), (2, 50, 20), (3, 60, 30)):
        fake(tmp_path, "finetune-DS", seed, ta=ta, ra=ra)
    assert "| DS | 50.00 ± 10.00 | 20.00 ± 10.00 | 3 | 82.19 | 52.82 |" in report(scripts, tmp_path)


def test_a_single_seed_has_no_deviation_and_what_was_not_run_says_so(scripts, tmp_path):
    fake(tmp_path, "finetune-DS", 1)
    text = report(scripts, tmp_path)
    assert "| DS | 40.00 | 10.00 | 1 | 82.19 | 52.82 |" in text
    assert "Not run: random initialisation (RI); S2S; A2A; A2S." in text


def test_only_tables_with_a_row_are_shown(scripts, tmp_path):
    fake(tmp_path, "few-DS", 1)
    text = report(scripts, tmp_path)
    assert [row for row in text.splitlines() if row.startswith("## ")] == [f"## {scripts.recipes.TABLES['few'].title}"]


def test_pseudo_label_accuracy_stands_with_its_row(scripts, tmp_path):
    fake(tmp_path, "semi0.1-DS", 1, pseudo_label_accuracy=0.61)
    fake(tmp_path, "semi0.1-DS", 2, pseudo_label_accuracy=0.63)
    assert "| 10 % labels, ACL (DS) (pseudo-labels 62.0) | 40.00 ± 0.00 |" in report(scripts, tmp_path)


@pytest.mark.parametrize("text", ['{"finished": true}', '{"finis', "[]"])
def test_a_card_of_an_earlier_version_or_a_damaged_one_is_no_result(scripts, tmp_path, text):
    fake(tmp_path, "finetune-DS", 1)
    (fake(tmp_path, "finetune-DS", 2) / "card.json").write_text(text)
    assert "| DS | 40.00 | 10.00 | 1 | 82.19 | 52.82 |" in report(scripts, tmp_path)


def test_the_cards_are_gathered(scripts, tmp_path):
    fake(tmp_path, "finetune-DS", 2)
    report(scripts, tmp_path)
    assert ResultCard.read(tmp_path / "cards" / "finetune-DS-seed2.json").results["TA"].mean == 0.4


def test_a_card_without_its_run_counts_too(scripts, tmp_path):
    fake(tmp_path, "finetune-DS", 1, ta=40, ra=10)
    report(scripts, tmp_path)
    shutil.rmtree(tmp_path / "seed1")
    fake(tmp_path, "finetune-DS", 2, ta=60, ra=10)
    assert "| DS | 50.00 ± 14.14 | 10.00 ± 0.00 | 2 | 82.19 | 52.82 |" in report(scripts, tmp_path)


@pytest.mark.slow
def test_figures_are_drawn_of_what_there_is(scripts, tmp_path):
    for seed in (1, 2):
        fake(tmp_path, "finetune-DS", seed)
        fake(tmp_path, "unforeseen-DS", seed, corruptions={"fog": 0.3})
    text = report(scripts, tmp_path)
    for name in ("figure2", "figure3"):
        assert f"![{name}]({name}.png)" in text
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def test_a_curve_leaves_out_the_epochs_that_were_not_validated(scripts, tmp_path):
    folder = fake(tmp_path, "finetune-DS", 1)
    assert scripts.figures.validation_curve(folder / "metrics.csv") == {1: 0.1, 3: 0.12}


def test_every_row_and_figure_has_a_run(scripts):
    runs = scripts.recipes.runs_of(scripts.recipes.SMOKE)
    names = {row.run for table in scripts.recipes.TABLES.values() for row in table.rows}
    names |= {name for figure in scripts.recipes.FIGURES.values() for name in figure.values()}
    assert names <= runs.keys()


@pytest.mark.parametrize("budget", ["smoke", "quick", "small", "medium", "hour", "paper"])
def test_the_inputs_of_a_run_come_before_it(scripts, budget):
    recipes = scripts.recipes
    order = [run.name for run in recipes.needed(recipes.PARTS, recipes.runs_of(recipes.BUDGETS[budget]))]
    takes = {run.name: run.takes for run in recipes.runs_of(recipes.BUDGETS[budget]).values()}
    assert len(order) == len(set(order))
    for i, name in enumerate(order):
        assert takes[name] is None or takes[name] in order[:i]


def test_a_part_needs_its_rows_and_what_these_take_and_nothing_else(scripts):
    recipes = scripts.recipes
    names = {run.name for run in recipes.needed(["figure2"], recipes.runs_of(recipes.SMOKE))}
    ends = {"random", "selfie", "DS"}
    tested = {f"{script}-{end}" for script in ("finetune", "unforeseen") for end in ends}
    assert names == tested | {"pretrain-selfie", "pretrain-DS"}


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        (("--budget", "small", "--data", "embedded"), "--budget smoke"),
        (("--budget", "smoke", "--data", "folder"), "--data embedded"),
    ],
)
def test_a_folder_with_other_runs_is_refused(run, tmp_path, capsys, flags, text):
    assert run("--budget", "smoke", "--data", "embedded", "--only", "few") == 0
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        run(*flags, "--only", "few")
    assert stop.value.code == 2
    assert f"expected {text} as for the runs in {tmp_path}" in capsys.readouterr().err


@pytest.mark.parametrize("budget", ["smoke", "quick", "small", "medium", "hour", "paper"])
def test_every_run_has_flags_that_its_script_takes(scripts, budget):
    from _common.flags import parse

    given = argparse.Namespace(
        out="out", data="embedded", data_dir="d", data100="embedded", data100_dir="d", device="cpu", amp="off"
    )
    for run in scripts.recipes.runs_of(scripts.recipes.BUDGETS[budget]).values():
        kind = __import__(run.script).Settings
        settings = parse(
            kind, {"": {"epochs": 1}, "selfie": {"epochs": 1}}, "", scripts.runner.command(run, 2, given)[2:]
        )
        assert settings.out == f"out/seed2/{run.name}"
        assert settings.seed == 2


def test_the_numbers_of_the_paper_are_its_own(scripts):
    rows = {(name, row.run): (row.ta, row.ra) for name, table in scripts.recipes.TABLES.items() for row in table.rows}
    assert rows["table1", "finetune-DS-wide"] == (85.12, 56.72)
    assert rows["table1", "finetune-DS-second"] == (56.77, 28.33)
    assert rows["table2", "semi0.01-DS"] == (75.66, 50.67)
    assert rows["table3", "finetune-A2S"] == (80.82, 52.11)
    assert rows["table4", "finetune-DS-single"] == (73.15, 40.10)
    assert rows["table5", "linear-adversarial-adv"] == (74.22, 44.22)


def test_all_runs_of_a_part_are_made_and_reported(run, tmp_path, capsys):
    assert run("--only", "few", "--seeds", "2") == 0
    assert sorted(ran(tmp_path / "out")) == sorted(
        2 * ["pretrain-S2S", "pretrain-DS", "few-random", "few-S2S", "few-DS"]
    )
    assert "| ACL (DS) | 51.50 ± 0.71 | 24.50 ± 2.12 | 2 |\n" in capsys.readouterr().out


def test_a_second_call_runs_nothing_again(run, tmp_path):
    assert run("--only", "few") == 0
    once = ran(tmp_path / "out")
    assert run("--only", "few") == 0
    assert ran(tmp_path / "out") == once


def test_a_run_that_fails_is_reported_with_those_that_need_it_and_the_others_run(run, tmp_path, capsys):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "break-pretrain-DS").touch()
    assert run("--only", "few") == 1
    said = capsys.readouterr()
    complaints = [text for text in said.err.splitlines() if text.startswith("tables.py")]
    assert complaints == [
        "tables.py: pretrain-DS, seed 1: pretrain.py: --lr: expected less, got more. Take less.",
        "tables.py: few-DS, seed 1: not run, as pretrain-DS failed",
    ]
    assert "| SimCLR (S2S) | 51.00 | 23.00 | 1 |" in said.out
    assert "Not run: ACL (DS)." in said.out


def test_a_second_call_makes_up_for_what_failed(run, tmp_path):
    (tmp_path / "out").mkdir()
    flaw = tmp_path / "out" / "break-pretrain-DS"
    flaw.touch()
    assert run("--only", "few") == 1
    flaw.unlink()
    before = ran(tmp_path / "out")
    assert run("--only", "few") == 0
    assert ran(tmp_path / "out")[len(before) :] == ["pretrain-DS", "few-DS"]


def test_runs_side_by_side_wait_for_what_they_take(run):
    assert run("--only", "few", "table5", "--jobs", "3") == 0


@pytest.mark.parametrize("jobs", ["1", "2"])
@pytest.mark.parametrize(("chosen", "expected"), [(None, "1"), ("3", "3")])
def test_the_threads_of_a_run_do_not_depend_on_the_jobs(run, monkeypatch, tmp_path, jobs, chosen, expected):
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    monkeypatch.delenv("OMP_NUM_THREADS")
    if chosen is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", chosen)
    assert run("--only", "few-random", "--jobs", jobs) == 0
    assert set((tmp_path / "out" / "threads.txt").read_text().split()) == {expected}


def test_a_line_for_the_beginning_and_the_end_of_each_run(run, tmp_path, capsys):
    assert run("--only", "few-S2S") == 0
    lines = [line.partition(" ")[2] for line in capsys.readouterr().err.splitlines()]
    assert lines[0] == f"pretrain-S2S, seed 1: running, see {tmp_path / 'out' / 'logs' / 'pretrain-S2S-seed1.log'}"
    assert {"pretrain-S2S, seed 1: finished, 1 of 2 runs", "few-S2S, seed 1: finished, 2 of 2 runs"} < set(lines)


def test_without_a_second_data_set_its_rows_stay_empty(run, tmp_path):
    assert run("--only", "table1") == 0
    assert not any("second" in name for name in ran(tmp_path / "out"))
    assert "second data set, ACL (DS)." in (tmp_path / "out" / "tables.md").read_text()


@pytest.mark.parametrize(
    "flags",
    [
        ["--only", "table9"],
        ["--budget", "large"],
        ["--seeds", "-1"],
        ["--jobs", "0"],
        ["--data", "imagenet"],
        ["--out", "{tmp}/file"],
        ["--out", "/proc/nowhere"],
    ],
)
def test_a_mistake_takes_one_line(run, flags, tmp_path, capsys):
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit) as stop:
        run(*(flag.format(tmp=tmp_path) for flag in flags))
    assert stop.value.code == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


@pytest.mark.slow
@pytest.mark.nightly
def test_the_smoke_budget_runs_the_scripts_themselves(scripts, tmp_path):
    warm = SimpleNamespace(Popen=lambda words, env, **_: Popen(*words[1:], env=env))
    scripts.patch.setattr(scripts.runner, "subprocess", warm)
    flags = ["--data", "embedded", "--only", "few", "--out", str(tmp_path)]
    scripts.patch.setattr(sys, "argv", ["tables.py", *flags])
    assert scripts.tables.main() == 0
    assert "Not run" not in (tmp_path / "tables.md").read_text()


def test_methods_are_compared_in_one_table_and_one_figure(scripts):
    from _common import report as reports

    training = {"cost": 20.0, "knn_ra": [0.1, 0.3]}
    cards = {
        "methods-DS": [result(1, 70, 30, **training), result(2, 72, 34, **training)],
        "methods-DS-linear": [result(1, 60, 40)],
        "methods-deacl": [result(1, 71, 20, **training)],
    }
    for card in chain(*cards.values()):
        card.settings["flags"] = {"passes": 60.0}
    lines = reports.methods_table(cards).splitlines()
    assert [line.split(" | ")[0].lstrip("| ") for line in lines[4:]] == ["DS", "deacl"]
    assert "| 71.0 ± 1.4 | 32.0 ± 2.8 |  | 60.0 | 40.0 |" in lines[4]
    ours, theirs = reports.draw_cost(cards).axes[0].lines
    assert [ours.get_label(), theirs.get_label()] == ["DS", "deacl"]
    assert ours.get_xdata().tolist() == [20.0, 40.0]
    assert theirs.get_xdata().tolist() == pytest.approx([60.0, 80.0])  # the teacher has spent 40
    assert ours.get_ydata().tolist() == pytest.approx([10.0, 30.0])


def test_the_best_methods_have_a_colour_and_the_others_their_name_beside_them(scripts):
    from _common import report as reports

    last = {"S2S": 0.1, "DS": 0.2, "air": 0.25, "rocl": 0.5, "taro": 0.3, "cfamc": 0.45}
    cards = {f"methods-{name}": [result(1, 70, 30, cost=20.0, knn_ra=[value])] for name, value in last.items()}
    for card in chain(*cards.values()):
        card.settings["flags"] = {"passes": 60.0}
    axes = reports.draw_cost(cards).axes[0]
    labels = [line.get_label() for line in axes.lines if not line.get_label().startswith("_")]
    assert labels == ["S2S", "DS", "taro", "cfamc", "rocl"]
    assert [text.get_text() for text in axes.texts] == ["air"]
