"""Conditions under which a progress bar is shown."""

import pytest

from advcontrast._progress import ProgressBar

pytest.importorskip("tqdm")


@pytest.mark.parametrize("stream", [None, object()], ids=["none", "without isatty"])
def test_other_kinds_of_standard_error_are_not_terminals(monkeypatch, stream):
    monkeypatch.setattr("sys.stderr", stream)
    with ProgressBar(3, unit="step", shown=None) as bar:
        bar.update()
        bar.set_postfix_str("nothing")
    assert bar.bar is None


def test_a_terminal_gets_a_bar_unless_it_is_hidden(monkeypatch):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    assert ProgressBar(3, unit="step", shown=None).bar is not None
    assert ProgressBar(3, unit="step", shown=False).bar is None
