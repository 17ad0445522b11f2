"""Joining the processes of a job."""

import re

import pytest

from advcontrast import distributed

VARIABLES = {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "localhost", "MASTER_PORT": "29500"}


@pytest.fixture
def started(monkeypatch):
    """Pretend that torchrun started this process."""
    for name, value in VARIABLES.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize(("timeout", "error"), [(0, ValueError), (-1.0, ValueError), ("60", TypeError)])
def test_a_timeout_is_positive(started, timeout, error):
    with pytest.raises(error, match="init_from_torchrun: expected timeout to be a finite number"):
        distributed.init_from_torchrun(timeout)


@pytest.mark.parametrize("name", VARIABLES)
def test_a_process_that_torchrun_did_not_start_is_told(started, monkeypatch, name):
    monkeypatch.delenv(name)
    message = f"init_from_torchrun: expected a process of torchrun, got no {name}"
    with pytest.raises(RuntimeError, match=re.escape(message)):
        distributed.init_from_torchrun(60)


def test_a_process_joins_once(started, monkeypatch):
    monkeypatch.setattr("torch.distributed.is_initialized", lambda: True)
    with pytest.raises(RuntimeError, match=r"init_from_torchrun: expected no process group yet"):
        distributed.init_from_torchrun(60)
