"""The benchmarks run, check what they compare, and say what they measured."""

import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

FOLDER = Path(__file__).parents[2] / "benchmarks"
SETTINGS = {"device": torch.device("cpu"), "repeats": 1, "quick": True}


@pytest.fixture
def bench(monkeypatch):
    """Return a function that imports a script of the folder."""
    monkeypatch.syspath_prepend(FOLDER)
    yield importlib.import_module
    for name in ("sidebyside", "step", "pgd", "nt_xent", "views", "trades", "end_to_end", "mixed"):
        sys.modules.pop(name, None)


@pytest.fixture
def table(bench):
    return bench("sidebyside").Table("Title", "About.", "images")


@pytest.mark.filterwarnings("ignore")  # of the other libraries
@pytest.mark.parametrize("name", ["step", "pgd", "nt_xent", "views", "trades", "mixed"])
def test_benchmark_runs_at_tiny_size(name, bench, monkeypatch):
    monkeypatch.setattr(nn.Module, "compile", lambda module, **settings: None)
    settings = bench("sidebyside").Settings(**SETTINGS)
    for found in bench(name).tables(settings):
        text = found.markdown()
        assert text.startswith("## ")
        assert any("ours" in line or "advcontrast" in line or "one pass" in line for line in text.splitlines())


def test_end_to_end_runs_at_tiny_size(bench, monkeypatch):
    monkeypatch.setattr(nn.Module, "compile", lambda module, **settings: None)
    script = bench("end_to_end")
    settings = bench("sidebyside").Settings(**SETTINGS)
    whole, growth = script.whole(settings, {"batch": 8, "width": 2}), script.growth(settings, {"batch": 8, "width": 2})
    assert [row[0] for row in whole.rows] == ["DS", "DS, compiled", "S2S", "S2S, compiled"]
    shares = [float(cell.removesuffix(" %")) for cell in whole.rows[0][4:]]
    assert sum(shares) == pytest.approx(100, abs=0.5)
    assert len(growth.rows) == 12


def test_reference_step_is_the_step_of_the_trainer(bench):
    step = bench("step")
    torch.manual_seed(0)
    x = torch.rand(8, 3, 32, 32)
    expected = step.reference_step(step.network(4, x.device), x, mode="DS", random_start=False)
    found = step.ours(4, x, mode="DS")(False)
    assert found.item() == pytest.approx(expected.item(), rel=1e-4)


def test_race_fills_a_row_for_each_candidate_and_returns_speeds(bench, table):
    calls = []
    side = bench("sidebyside")
    candidates = [side.Candidate(name, lambda name=name: calls.append(name), "same") for name in "ab"]
    speeds = table.race(candidates, side.Settings(torch.device("cpu"), 3, True), items=5, setting="five")
    assert "".join(calls[4:]) == "ababab"  # after warming up and measuring memory
    assert set(speeds) == {"a", "b"}
    assert speeds["a"] == 1
    assert [row[:2] for row in table.rows] == [["five", "a"], ["five", "b"]]


def test_speed_is_relative_to_the_first_candidate(bench, table, monkeypatch):
    side = bench("sidebyside")
    clock = iter([0, 4, 10, 11, 20, 22, 30, 31])
    monkeypatch.setattr(side.time, "perf_counter", lambda: next(clock))
    candidates = [side.Candidate(name, lambda: None) for name in "ab"]
    speeds = table.race(candidates, side.Settings(torch.device("cpu"), 2, True), items=4)
    assert speeds == {"a": 1, "b": 3}  # the median of 4 and 2
    assert table.rows[0][2:6] == ["3,000", "2,000 to 4,000", "1.00", "1.333"]


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs /proc")
def test_peak_memory_is_what_a_run_needs_at_most(bench):
    side = bench("sidebyside")

    def run():
        big = torch.ones(2**23)
        del big
        torch.ones(2**20)

    assert 28 <= side.peak_memory(run, torch.device("cpu")) / 2**20 < 48


def test_agreement_is_relative_to_the_largest_entry(bench):
    agree = bench("sidebyside").agree
    assert agree("a", torch.tensor([0.0, 2.02]), torch.tensor([0.0, 2.0]), 0.1) == "1e-02"
    assert agree("a", [torch.ones(2), torch.zeros(1)], [torch.ones(2), torch.zeros(1)], 0) == "0e+00"


@pytest.mark.parametrize("wrong", [2.3, float("nan")])
def test_candidate_that_computes_something_else_is_refused(bench, wrong):
    text = "a: expected what the first candidate computes to 1e-01, differs by"
    with pytest.raises(SystemExit, match=re.escape(text)):
        bench("sidebyside").agree("a", torch.tensor([wrong]), torch.tensor([2.0]), 0.1)


def test_package_that_is_missing_is_left_out_with_a_word(table):
    assert table.peer("no_such_module", "no-such-package") is None
    table.rows.append([""] * 8)
    assert "no-such-package left out: No module named 'no_such_module'." in table.markdown()


def test_columns_without_entries_are_left_out(table):
    table.rows.append(["", "a", "1", "1 to 1", "1.00", "5", "", ""])
    assert table.markdown().splitlines()[-3] == "| candidate | median ms | min to max | speed | images/s |"


def test_command_writes_tables_with_their_conditions(tmp_path):
    command = [sys.executable, "benchmarks/run.py", "nt_xent", "--quick", "--repeats", "1", "--threads", "1"]
    done = subprocess.run(
        [*command, "--out", tmp_path], cwd=FOLDER.parent, capture_output=True, text=True, timeout=300, check=True
    )
    text = (tmp_path / "nt_xent.md").read_text()
    assert text.startswith("# nt_xent\n\n`python benchmarks/run.py nt_xent --quick")
    assert f"torch {torch.__version__.split('+')[0]}" in text
    assert "1 threads of" in text
    assert done.stdout.strip() in text


@pytest.mark.parametrize("flags", [["nonsense"], ["pgd", "--repeats", "0"], ["pgd", "--threads", "0"]])
def test_bad_command_is_refused(flags):
    command = [sys.executable, "benchmarks/run.py", *flags]
    done = subprocess.run(command, cwd=FOLDER.parent, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 2
    assert "expected benchmarks of step, pgd" in done.stderr
