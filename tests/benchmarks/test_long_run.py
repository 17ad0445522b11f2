"""The long run reports leaks and slow steps, and reads the memory, files and tensors of a process."""

import pytest
import torch

from benchmarks.evidence import long_run


def readings(leak=0.0, slower=0.0):
    """Return readings of two hours; each has ``leak`` MiB more and steps dearer by ``slower`` of the first cost."""
    found, cpu = [], 0.0
    for i in range(11):
        found.append(long_run.Reading(12.0 * i, 1000 * i, cpu, 500 + leak * i, 7, 100))
        cpu += 10 * (1 + slower * i)
    return found


def test_a_flat_run_is_flat():
    text = long_run.report(readings())
    assert "resident memory changed by +0.00 MiB per hour" in text
    assert "A step took 10.0 CPU ms in the first quarter and 10.0 in the last (+0.0%)" in text


def test_a_leak_and_a_slow_down_show():
    text = long_run.report(readings(leak=1.0, slower=0.1))
    assert "resident memory changed by +5.00 MiB per hour" in text
    assert "18.5 in the last (+76.2%)" in text


def test_a_reading_counts_files_and_tensors(tmp_path):
    before = long_run.read(0.0, 0)
    held = [torch.zeros(2, requires_grad=True) for _ in range(5)]
    with (tmp_path / "open").open("w"):
        after = long_run.read(0.0, 0)
    assert after.files == before.files + 1
    assert after.tensors >= before.tensors + len(held)
    assert after.cpu_seconds > before.cpu_seconds


def test_a_run_ends_when_its_time_is_over(tmp_path, monkeypatch):
    monkeypatch.setattr(long_run, "STEPS", 1)
    found = long_run.train(0.02, tmp_path)
    assert found[-1].minutes >= 0.02
    assert [reading.steps for reading in found] == sorted(reading.steps for reading in found)
    assert (tmp_path / "metrics.csv").exists()


def test_too_few_readings_are_no_report():
    with pytest.raises(SystemExit, match="long_run: expected three readings at least, got 2"):
        long_run.report(readings()[:2])
