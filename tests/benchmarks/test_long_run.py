"""The long run says what it read, and reads what a process holds."""

import sys
from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def long_run():
    sys.path.insert(0, str(BENCHMARKS))
    try:
        import long_run
    finally:
        sys.path.remove(str(BENCHMARKS))
    return long_run


def readings(long_run, leak=0.0, slower=0.0):
    """Return readings of two hours; each has ``leak`` MiB more and steps dearer by ``slower`` of the first cost."""
    found, cpu = [], 0.0
    for i in range(11):
        found.append(long_run.Reading(12.0 * i, 1000 * i, cpu, 500 + leak * i, 7, 100))
        cpu += 10 * (1 + slower * i)
    return found


def test_a_flat_run_is_flat(long_run):
    text = long_run.report(readings(long_run), "command")
    assert "resident memory changed by +0.00 MiB an hour" in text
    assert "A step took 10.0 CPU ms in the first quarter and 10.0 in the last (+0.0%)" in text


def test_a_leak_and_a_slow_down_show(long_run):
    text = long_run.report(readings(long_run, leak=1.0, slower=0.1), "command")
    assert "resident memory changed by +5.00 MiB an hour" in text
    assert "18.5 in the last (+76.2%)" in text


def test_a_reading_counts_files_and_tensors(long_run, tmp_path):
    before = long_run.read(0.0, 0)
    held = [torch.zeros(2, requires_grad=True) for _ in range(5)]
    with (tmp_path / "open").open("w"):
        after = long_run.read(0.0, 0)
    assert after.files == before.files + 1
    assert after.tensors >= before.tensors + len(held)
    assert after.cpu_seconds > before.cpu_seconds


def test_a_run_ends_when_its_time_is_over(long_run, tmp_path, monkeypatch):
    monkeypatch.setattr(long_run, "STEPS", 1)
    found = long_run.train(0.02, tmp_path)
    assert found[-1].minutes >= 0.02
    assert [reading.steps for reading in found] == sorted(reading.steps for reading in found)
    assert (tmp_path / "metrics.csv").exists()


def test_too_few_readings_are_no_report(long_run):
    with pytest.raises(SystemExit, match="long_run: expected three readings at least, got 2"):
        long_run.report(readings(long_run)[:2], "command")
