"""Progress bars: on terminals, where tqdm is installed."""

from __future__ import annotations

import sys
from typing import Any

from typing_extensions import Self

from ._checks import check_bool


class _Hidden:
    """A bar that is not shown, where tqdm is not installed."""

    disable = True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def update(self) -> None:
        pass

    def set_postfix_str(self, text: str) -> None:
        pass


def check_progress(owner: str, shown: Any) -> None:
    """Require ``True``, ``False`` or ``None``."""
    if shown is not None:
        check_bool(owner, "progress", shown, remedy="None shows a progress bar on terminals only")


def progress_bar(total: int | None, *, unit: str, shown: bool | None, done: int = 0, title: str | None = None) -> Any:
    """Return a bar for a ``with`` block.

    Args:
        total: number of updates, ``None`` where it is not known.
        unit: word for an update.
        shown: whether to show it; ``None`` asks whether standard error is a terminal. ``TQDM_DISABLE=1`` hides it.
        done: updates before the block.
        title: word before the bar.
    """
    try:
        from tqdm import tqdm
    except ImportError:
        return _Hidden()
    if shown is None:
        shown = getattr(sys.stderr, "isatty", lambda: False)()  # standard error may be None, or a writer of a user
    # tqdm reads TQDM_DISABLE where it is not passed the argument.
    hidden = {} if shown else {"disable": True}
    return tqdm(total=total, initial=done, unit=unit, desc=title, **hidden)
