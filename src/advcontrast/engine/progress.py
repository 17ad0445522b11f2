"""A progress bar, where tqdm is installed."""

from __future__ import annotations

from typing import Any

from typing_extensions import Self

from .. import distributed


class _Silent:
    """What stands in for a bar that nobody wants to see."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def update(self) -> None:
        pass

    def set_postfix_str(self, text: str) -> None:
        pass


def progress(steps: int, done: int) -> Any:
    """Return a bar over so many steps, some of them done, for a ``with`` block; only the first process shows one."""
    if distributed.rank() != 0:
        return _Silent()
    try:
        from tqdm import tqdm
    except ImportError:
        return _Silent()
    return tqdm(total=steps, initial=done, unit="step")
