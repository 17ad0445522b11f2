"""Termination of a run by a signal, after the current step."""

import logging
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from .. import distributed

_LOG = logging.getLogger(__name__)


class Termination:
    """Request to end a run: ``signal`` is the number of the signal that was received, or ``None``."""

    signal: int | None = None

    def stop_requested(self) -> bool:
        """Return whether any process has received a signal; all processes must call this."""
        return any(distributed.all_gather_object(self.signal is not None))

    def exit(self) -> None:
        """End the process: with status 0 after SIGTERM, with ``KeyboardInterrupt`` after Ctrl-C."""
        if self.signal == signal.SIGINT:
            raise KeyboardInterrupt
        if distributed.rank() == 0:
            _LOG.warning("fit was stopped by SIGTERM and has saved a checkpoint; call it again to resume")
        raise SystemExit(0)


@contextmanager
def termination(*, deferred: bool) -> Iterator[Termination]:
    """Record SIGTERM and SIGINT in the block instead of ending at once, if ``deferred``; a second signal ends at once.

    Handlers can only be set in the main thread; in other threads signals keep their usual effect.
    """
    request = Termination()
    if not deferred or threading.current_thread() is not threading.main_thread():
        yield request
        return
    before = {number: signal.getsignal(number) or signal.SIG_DFL for number in (signal.SIGTERM, signal.SIGINT)}

    def reset() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def record(number: int, _: FrameType | None) -> None:
        request.signal = number
        reset()

    try:
        for number in before:
            signal.signal(number, record)
        yield request
    finally:
        reset()
