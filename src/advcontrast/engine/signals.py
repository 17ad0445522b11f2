"""Ending when asked to, after the step at hand."""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from .. import distributed

_LOG = logging.getLogger(__name__)


class Termination:
    """What has been asked for so far: ``signal`` is the number of the signal that came, or ``None``."""

    signal: int | None = None

    def wanted(self) -> bool:
        """Tell whether any process was asked; all of them must ask this, and end together."""
        return any(distributed.all_gather_object(self.signal is not None))

    def end(self) -> None:
        """End the process as the signal asks: quietly for SIGTERM, with ``KeyboardInterrupt`` for Ctrl-C."""
        if self.signal == signal.SIGINT:
            raise KeyboardInterrupt
        if distributed.rank() == 0:
            _LOG.warning("fit was stopped by SIGTERM and has saved a checkpoint; called again, it goes on from there")
        raise SystemExit(0)


@contextmanager
def termination(noted: bool = True) -> Iterator[Termination]:
    """Note SIGTERM and SIGINT instead of obeying them inside the block, if ``noted``; a second one is obeyed at once.

    Handlers can only be set in the main thread; in others signals keep their usual effect.
    """
    asked = Termination()
    if not noted or threading.current_thread() is not threading.main_thread():
        yield asked
        return
    before = {number: signal.getsignal(number) or signal.SIG_DFL for number in (signal.SIGTERM, signal.SIGINT)}

    def note(number: int, _: FrameType | None) -> None:
        asked.signal = number
        for known, handler in before.items():
            signal.signal(known, handler)

    try:
        for number in before:
            signal.signal(number, note)
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
