"""The timings run, check that the candidates compute the same, and write their conditions."""

import importlib
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch import nn
from torch._dynamo.exc import TorchDynamoException

from benchmarks import charts
from benchmarks.run import BENCHMARKS, main
from benchmarks.timing import end_to_end, sidebyside, step
from benchmarks.timing.sidebyside import Candidate, Settings, Table, agree

pytestmark = pytest.mark.nightly
SETTINGS = Settings(torch.device("cpu"), repeats=1, quick=True)


@pytest.fixture
def table():
    return Table("Title", "About.", "images")


@pytest.mark.filterwarnings("ignore")  # of the other libraries
@pytest.mark.parametrize("name", [name for name in BENCHMARKS if name not in ("end_to_end", "nt_xent")])
def test_benchmark_runs_at_tiny_size(name, monkeypatch):
    monkeypatch.setattr(nn.Module, "compile", lambda module, **settings: None)
    for found in importlib.import_module(f"benchmarks.timing.{name}").tables(SETTINGS):
        text = found.markdown()
        assert text.startswith("## ")
        assert any("ours" in line or "advcontrast" in line or "one pass" in line for line in text.splitlines())


def test_a_step_that_does_not_compile_is_left_out(monkeypatch):
    def fail(x):
        raise TorchDynamoException("no Triton\nlong report")

    monkeypatch.setattr(nn.Module, "compile", lambda module, **settings: setattr(module, "forward", fail))
    text = next(step.tables(SETTINGS)).markdown()
    assert "ours, channels last, compiled not run: no Triton.\n" in text
    assert "| ours, channels last |" in text
    whole = end_to_end.whole(SETTINGS, {"batch": 8, "width": 2})
    assert [row[0] for row in whole.rows] == ["DS", "S2S"]
    assert "DS, compiled not run: no Triton" in whole.skipped


def test_end_to_end_runs_at_tiny_size(monkeypatch):
    monkeypatch.setattr(nn.Module, "compile", lambda module, **settings: None)
    whole, growth = (table(SETTINGS, {"batch": 8, "width": 2}) for table in (end_to_end.whole, end_to_end.growth))
    assert [row[0] for row in whole.rows] == ["DS", "DS, compiled", "S2S", "S2S, compiled"]
    shares = [float(cell.removesuffix(" %")) for cell in whole.rows[0][4:]]
    assert sum(shares) == pytest.approx(100, abs=0.5)
    assert len(growth.rows) == 12


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["step", "pgd", "nt_xent", "trades", "mixed"])
def test_candidates_are_compared_without_tf32(name, monkeypatch):
    def note(*_):
        if torch.is_grad_enabled():
            found.add(torch.backends.cudnn.conv.fp32_precision)

    found = set()
    monkeypatch.setattr(nn.Module, "compile", lambda module, **settings: None)
    monkeypatch.setattr(Table, "race", lambda *_, **__: {})
    hook = nn.modules.module.register_module_forward_hook(note)
    try:
        list(importlib.import_module(f"benchmarks.timing.{name}").tables(SETTINGS))
    finally:
        hook.remove()
    assert found == {"ieee"}


def test_the_gpu_script_collects_its_tests_without_xdist():
    options = re.search(r"-m pytest .*", (charts.ROOT / "benchmarks" / "gpu.sh").read_text())[0].split()[3:]
    command = [sys.executable, "-m", "pytest", "tests/test_gpu.py", *options, "-p", "no:xdist", "--collect-only"]
    found = subprocess.run(command, capture_output=True, text=True, cwd=charts.ROOT, check=False)
    assert found.returncode == 0, found.stdout + found.stderr


def test_the_gpu_script_keeps_what_is_done_when_it_is_killed(tmp_path):
    python, out = tmp_path / "python", tmp_path / "out"
    python.write_text("""#!/bin/bash
if [[ $1 == -c ]]; then echo cpu; exit; fi
if [[ $1 == *finetune.py ]]; then exec sleep 10; fi
while [[ $# -gt 1 && $1 != --out ]]; do shift; done
mkdir -p "$2" && echo '{}' > "$2/card.json" && echo finished
""")
    python.chmod(0o755)
    command = ["bash", str(charts.ROOT / "benchmarks" / "gpu.sh"), str(out)]
    environment = {**os.environ, "PYTHON": str(python), "TMPDIR": str(tmp_path)}
    script = subprocess.Popen(command, env=environment, start_new_session=True)
    try:
        deadline = time.monotonic() + 60
        while not (out / "cards.json").exists() or len((out / "cards.json").read_text()) < 6:  # of both pre-trainings
            assert time.monotonic() < deadline
            time.sleep(0.1)
    finally:
        os.killpg(script.pid, signal.SIGKILL)
        script.wait()
    assert (out / "cards.json").read_text() == "{}\n{}\n"
    assert re.search(r"step: status 0 after \d+ s\nfinished\n", (out / "log.txt").read_text())


def test_charts_have_every_row_of_the_committed_tables_that_they_name():
    points = sum(len(candidates) for *_, candidates in charts.SPEEDS)
    assert len(charts.draw_speed().axes[0].lines) == points + 1  # the line at 1
    charts.draw_launches()


def test_reference_step_is_the_step_of_the_trainer():
    torch.manual_seed(0)
    x = torch.rand(8, 3, 32, 32)
    expected = step.reference_step(step.network(4, x.device), x, mode="DS", random_start=False)
    found = step.ours(4, x, mode="DS")(False)
    assert found.item() == pytest.approx(expected.item(), rel=1e-4)


def test_race_fills_a_row_for_each_candidate_and_returns_speeds(table):
    calls = []
    candidates = [Candidate(name, lambda name=name: calls.append(name), "same") for name in "ab"]
    speeds = table.race(candidates, Settings(torch.device("cpu"), 3, True), items=5, setting="five")
    assert "".join(calls[4:]) == "ababab"  # after warming up and measuring memory
    assert set(speeds) == {"a", "b"}
    assert speeds["a"] == 1
    assert [row[:2] for row in table.rows] == [["five", "a"], ["five", "b"]]


def test_speed_is_relative_to_the_first_candidate(table, monkeypatch):
    clock = iter([0, 4, 10, 11, 20, 22, 30, 31])
    monkeypatch.setattr(sidebyside.time, "perf_counter", lambda: next(clock))
    candidates = [Candidate(name, lambda: None) for name in "ab"]
    speeds = table.race(candidates, Settings(torch.device("cpu"), 2, True), items=4)
    assert speeds == {"a": 1, "b": 3}  # the median of 4 and 2
    assert table.rows[0][2:6] == ["3,000", "2,000 to 4,000", "1.00", "1.333"]


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs /proc")
def test_peak_memory_is_what_a_run_needs_at_most():
    def run():
        big = torch.ones(2**23)
        del big
        torch.ones(2**20)

    assert 28 <= sidebyside.peak_memory(run, torch.device("cpu")) / 2**20 < 48


def test_agreement_is_relative_to_the_largest_entry():
    assert agree("a", torch.tensor([0.0, 2.02]), torch.tensor([0.0, 2.0]), 0.1) == "1e-02"
    assert agree("a", [torch.ones(2), torch.zeros(1)], [torch.ones(2), torch.zeros(1)], 0) == "0e+00"


@pytest.mark.parametrize("wrong", [2.3, float("nan")])
def test_candidate_that_computes_something_else_is_refused(wrong):
    text = "a: expected what the first candidate computes to 1e-01, differs by"
    with pytest.raises(SystemExit, match=re.escape(text)):
        agree("a", torch.tensor([wrong]), torch.tensor([2.0]), 0.1)


def test_missing_package_is_named_in_the_table(table):
    assert table.peer("no_such_module", "no-such-package") is None
    table.rows.append([""] * 8)
    assert "no-such-package left out: No module named 'no_such_module'." in table.markdown()


def test_columns_without_entries_are_left_out(table):
    table.rows.append(["", "a", "1", "1 to 1", "1.00", "5", "", ""])
    assert table.markdown().splitlines()[-3] == "| candidate | median ms | min to max | speed | images/s |"


def test_command_writes_tables_with_their_conditions(tmp_path, monkeypatch, capsys):
    flags = ["nt_xent", "--quick", "--repeats", "1", "--threads", str(torch.get_num_threads()), "--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["benchmarks", *flags])
    main()
    text = (tmp_path / "nt_xent.md").read_text()
    assert "| advcontrast, dense |" in text
    assert text.startswith("# nt_xent\n\n`python -m benchmarks.run nt_xent --quick")
    assert f"torch {torch.__version__.split('+')[0]}" in text
    assert re.search(r"\d threads? of ", text)
    assert capsys.readouterr().out.strip() in text


def test_a_table_that_is_finished_is_kept_if_the_next_one_fails(table, tmp_path, monkeypatch):
    def tables(_):
        yield table
        raise KeyboardInterrupt

    table.rows.append(["", "a", "1", "1 to 1", "1.00", "5", "", ""])
    monkeypatch.setattr(step, "tables", tables)
    monkeypatch.setattr(sys, "argv", ["benchmarks", "step", "--out", str(tmp_path)])
    with pytest.raises(KeyboardInterrupt):
        main()
    assert (tmp_path / "step.md").read_text().endswith(f"\n\n{table.markdown()}\n")


@pytest.mark.parametrize("flags", [["nonsense"], ["pgd", "--repeats", "0"], ["pgd", "--threads", "0"]])
def test_bad_command_is_refused(flags, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["benchmarks", *flags])
    with pytest.raises(SystemExit):
        main()
    assert "expected benchmarks of step, pgd" in capsys.readouterr().err
