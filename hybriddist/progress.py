"""A progress bar on stderr: tqdm where it is installed, a plain line otherwise; nothing at all when not asked for."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Any

_REDRAW_SECONDS = 0.2


class Progress:
    """Counts finished items.

    Args:
        shown: False makes every method do nothing; so does a program without stderr.
        total: how many items there will be, if that is known.

    Attributes:
        shown: whether there is anything to see.
    """

    def __init__(self, shown: bool, total: int | None) -> None:
        self.shown = shown and sys.stderr is not None
        self._total = total
        self._count = 0
        self._drawn = 0.0
        self._bar: Any = None

    def __enter__(self) -> Progress:
        if self.shown:
            try:
                from tqdm.auto import tqdm
            except ImportError:
                pass  # the plain line does
            else:
                self._bar = tqdm(total=self._total, file=sys.stderr)
        return self

    def advance(self, count: int = 1) -> None:
        """So many more items are finished."""
        if not self.shown:
            return
        self._count += count
        if self._bar is not None:
            self._bar.update(count)
        elif time.monotonic() - self._drawn > _REDRAW_SECONDS:
            self._draw()

    def _draw(self) -> None:
        self._drawn = time.monotonic()
        total = "" if self._total is None else f"/{self._total}"
        print(f"\r{self._count}{total}", end="", file=sys.stderr, flush=True)

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self.shown:
            return
        if self._bar is not None:
            self._bar.close()
        else:
            self._draw()
            print(file=sys.stderr)
