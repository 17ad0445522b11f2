"""Progress bars, shown on terminals if tqdm is installed."""

import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

from ._checks import check_bool

_SECONDS = 2.0  # between two texts


def check_progress(owner: str, shown: Any) -> None:
    """Require ``True``, ``False`` or ``None``."""
    if shown is not None:
        check_bool(owner, "progress", shown, remedy="None shows a progress bar on terminals only")


class ProgressBar(AbstractContextManager["ProgressBar"]):
    """Progress bar for a ``with`` block, hidden where tqdm is not installed.

    Args:
        total: number of updates, ``None`` if unknown.
        unit: name of an update.
        shown: whether to show it; ``None`` asks whether standard error is a terminal. ``TQDM_DISABLE=1`` hides it.
        done: updates before the block.
        title: word before the bar.
    """

    def __init__(
        self, total: int | None, *, unit: str, shown: bool | None, done: int = 0, title: str | None = None
    ) -> None:
        self.bar: Any = None  # of tqdm, unless it is hidden
        self._due = 0.0
        if shown is None:
            shown = getattr(sys.stderr, "isatty", lambda: False)()  # standard error may be None, or a user's writer
        if not shown:
            return  # tqdm makes a lock for several processes even for a bar that it hides
        try:
            from tqdm import tqdm
        except ImportError:
            return
        bar = tqdm(total=total, initial=done, unit=unit, desc=title)
        self.bar = None if bar.disable else bar

    def __exit__(self, *_: object) -> None:
        if self.bar is not None:
            self.bar.close()

    def update(self, text: Callable[[], str] | None = None) -> None:
        """Count an update, and show ``text()`` after the bar.

        ``text`` may wait for the device: it is called every two seconds, and only if the bar is shown.
        """
        if self.bar is not None:
            self.bar.update()
            if text is not None and time.monotonic() >= self._due:
                self.set_postfix_str(text())
                self._due = time.monotonic() + _SECONDS

    def set_postfix_str(self, text: str) -> None:
        """Show ``text`` after the bar."""
        if self.bar is not None:
            self.bar.set_postfix_str(text)
