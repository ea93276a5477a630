"""Which workers work for maps; the driver keeps the book.

A map of the driver shares its workers with other maps of the driver, and leaves those that maps on workers have, if
there are others. One that runs on a worker, inside an item of another map perhaps, has only those that no map has: else
each of n workers would compute for n maps at once. It does not wait for them, so this is no pool: what it does not get
now it may get when it asks again::

    engage ──► engaged ──► release, end: idle again, when no map has it
                  └─────── the process of the map is gone: likewise

To release twice does no harm, so whoever was interrupted in it does it again. What this module does not know:
processes, and what a map is.
"""

from __future__ import annotations

import itertools
from _thread import allocate_lock
from collections.abc import Container, Iterable

Key = tuple[int, int]
"""Of a map: the pid of its process, and a number there."""


class Engagements:
    """Who works for which map. Callable from any thread.

    Attributes:
        numbers: for the maps of this process.
    """

    def __init__(self) -> None:
        self.numbers = itertools.count()
        self._workers: dict[Key, set[int]] = {}
        self._lock = allocate_lock()

    def engage(self, key: Key, pids: Iterable[int]) -> None:
        """A map has these workers, whoever else has them."""
        with self._lock:
            self._workers.setdefault(key, set()).update(pids)

    def engage_idle(self, key: Key, pids: Iterable[int], most: float, living: Container[int]) -> list[int]:
        """Give a map those of ``pids`` that no map has, the first ``most`` of them.

        Args:
            living: the processes that there are; what others had is let go.
        """
        with self._lock:
            self._drop_gone(living)
            found: list[int] = []
            for pid in pids:
                if len(found) < most and not any(pid in workers for workers in self._workers.values()):
                    found.append(pid)
            self._workers.setdefault(key, set()).update(found)
            return found

    def release(self, key: Key, pids: Iterable[int]) -> None:
        """A map has these no longer."""
        with self._lock:
            self._workers.get(key, set()).difference_update(pids)

    def end(self, key: Key) -> None:
        """A map has nobody any more."""
        with self._lock:
            self._workers.pop(key, None)

    def engaged_by_others(self, pid: int, living: Container[int]) -> set[int]:
        """The workers that maps of other processes have; what those had that are gone is let go."""
        with self._lock:
            self._drop_gone(living)
            return {worker for key, workers in self._workers.items() if key[0] != pid for worker in workers}

    def _drop_gone(self, living: Container[int]) -> None:
        for gone in [key for key in self._workers if key[0] not in living]:
            del self._workers[gone]
