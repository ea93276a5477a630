"""What a map has to give out: its input, read as late as can be, retries when they are due, and what came back.

What this module does not know: to whom it is given.
"""

from __future__ import annotations

import itertools
import math
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

Entry = tuple[int, Any]
"""One item of a map: its index, and its arguments as a tuple, or the only one."""


class Supply:
    """The items of a map that nobody has.

    Args:
        items: the input.
        length: how many there are, if that is known.

    Attributes:
        may_read: how many items more may be read: who wants no more at once says so.
    """

    def __init__(self, items: Iterator[Any], length: int | None) -> None:
        self._items = items
        self._length = length
        self._read = 0
        self._exhausted = False
        self._again: list[tuple[float, Entry]] = []
        self._returned: deque[Entry] = deque()
        self.may_read: float = math.inf

    def is_empty(self) -> bool:
        """Whether everything is given out, and the input has ended."""
        return self._exhausted and not self._again and not self._returned

    def is_held_back(self) -> bool:
        """Whether there is nothing to give out before more may be read."""
        return self.may_read <= 0 and not self._again and not self._returned

    def left(self) -> int | None:
        """How many items are to be given out, if that is known."""
        if self._exhausted:
            unread = 0
        elif self._length is None:
            return None
        else:
            unread = self._length - self._read
        return unread + len(self._again) + len(self._returned)

    def seconds(self) -> float:
        """Until the next retry is due; infinite if none waits."""
        now = time.monotonic()
        return min((due - now for due, _ in self._again if due > now), default=math.inf)

    def take(self, count: int) -> tuple[Sequence[int], Sequence[Any]]:
        """Indices and arguments of items to give out: a retry that is due, alone; else at most so many."""
        if self._again:
            now = time.monotonic()
            for position, (due, (index, item)) in enumerate(self._again):
                if due <= now:
                    del self._again[position]
                    return (index,), (item,)
        if self._returned:
            entries = [self._returned.popleft() for _ in range(min(count, len(self._returned)))]
            return [index for index, _ in entries], [item for _, item in entries]
        count = int(min(count, self.may_read))
        if self._exhausted or count <= 0:
            return (), ()
        items = list(itertools.islice(self._items, count))
        first, self._read = self._read, self._read + len(items)
        self._exhausted = len(items) < count
        self.may_read -= len(items)
        return range(first, self._read), items

    def give_back(self, entries: Iterable[Entry]) -> None:
        """Items that nobody has begun."""
        self._returned.extend(entries)

    def again(self, entry: Entry, seconds: float) -> None:
        """Give an item out once more, alone, after so many seconds."""
        self._again.append((time.monotonic() + seconds, entry))
