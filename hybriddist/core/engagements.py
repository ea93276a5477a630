"""Which workers work for maps; the driver keeps the book.

A map of the driver has all workers that it has work for, together with other maps of the driver. One that runs on a
worker, inside an item of another map perhaps, has only those that no map has: else each of n workers would compute for
n maps at once. It does not wait for them, so this is no pool: what it does not get now it may get when it asks again::

    engage ──► engaged ──► release: idle again, when no map has it
                  └─────── the process of the map is gone: likewise

What this module does not know: processes, and what a map is.
"""

from __future__ import annotations

from _thread import allocate_lock
from collections import Counter
from collections.abc import Container, Iterable


class Engagements:
    """Who works for whom. Callable from any thread."""

    def __init__(self) -> None:
        self._workers: dict[int, Counter[int]] = {}
        """By the process of the map: the workers, and for how many of its maps each works."""
        self._lock = allocate_lock()

    def engage(self, holder: int, pids: Iterable[int]) -> None:
        """A map of ``holder`` has these workers, whoever else has them."""
        with self._lock:
            self._workers.setdefault(holder, Counter()).update(pids)
            self._drop_empty(holder)

    def engage_idle(self, holder: int, pids: Iterable[int], most: float, living: Container[int]) -> list[int]:
        """Give a map of ``holder`` those of ``pids`` that no map has, the first ``most`` of them.

        Args:
            living: the processes that there are; what others had is let go.
        """
        with self._lock:
            for gone in [other for other in self._workers if other not in living]:
                del self._workers[gone]
            found: list[int] = []
            for pid in pids:
                if len(found) < most and not any(pid in workers for workers in self._workers.values()):
                    found.append(pid)
            self._workers.setdefault(holder, Counter()).update(found)
            self._drop_empty(holder)
            return found

    def release(self, holder: int, pids: Iterable[int]) -> None:
        """A map of ``holder`` has these no longer."""
        with self._lock:
            workers = self._workers.get(holder, Counter())
            for pid in pids:
                if workers[pid] > 1:
                    workers[pid] -= 1
                else:
                    del workers[pid]  # a counter does not mind if it was not there
            self._drop_empty(holder)

    def engaged_by_others(self, holder: int) -> set[int]:
        """The workers that maps of other processes have."""
        with self._lock:
            return {pid for other, workers in self._workers.items() if other != holder for pid in workers}

    def _drop_empty(self, holder: int) -> None:
        if not self._workers.get(holder):
            self._workers.pop(holder, None)
