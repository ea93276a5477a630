"""The values behind references, on the process that holds them.

An entry is a `Completion` whose content is the value itself (never its pickle), or the `CapturedException` of the call
that failed. Entries are made on first touch, by whoever comes first: the call that computes the value or the request
that waits for it. They go when the last claim on the reference is gone.

What this module does not know: how values travel, and where claims come from.
"""

from __future__ import annotations

from _thread import allocate_lock
from collections.abc import Iterable
from typing import Any

from hybriddist.core.messages import Outcome
from hybriddist.core.references import OwnerBook
from hybriddist.errors import InvalidStateException
from hybriddist.ids import RRID
from hybriddist.runtime.completion import Completion


class Store:
    """Entries by reference, and who claims them."""

    def __init__(self) -> None:
        self._lock = allocate_lock()
        self._entries: dict[RRID, Completion] = {}
        self._book = OwnerBook()

    def entry(self, rrid: RRID) -> Completion:
        """The entry of a reference, made if there is none."""
        entry = self._entries.get(rrid)
        if entry is None:
            entry = self._entries.setdefault(rrid, Completion())
        return entry

    def complete(self, rrid: RRID, outcome: int, content: Any) -> None:
        """Set a reference's value, or its error, once.

        Raises:
            InvalidStateException: it is set already; the first value stays.
        """
        with self._lock:
            entry = self.entry(rrid)
            if entry.done or entry.outcome:
                raise InvalidStateException(f"Future can be set only once: {rrid} already has its value")
            # Claimed under the lock, completed outside of it: callbacks may come back to the store.
            entry.outcome = -2
        entry.complete(outcome, content)

    def put(self, rrid: RRID, value: Any) -> None:
        """`complete` with a value."""
        self.complete(rrid, Outcome.VALUE, value)

    def finish(self, rrid: RRID, outcome: int, content: Any) -> None:
        """`complete` with the end of a call, unless nobody holds the reference any more."""
        with self._lock:
            wanted = bool(self._book.holders(rrid))
        if wanted:
            try:
                self.complete(rrid, outcome, content)
            except InvalidStateException:
                pass  # somebody put a value into a call's future; the first one stays

    def created(self, rrid: RRID) -> None:
        """A call that keeps its value under ``rrid`` has come; its sender holds the first claim."""
        with self._lock:
            self._book.created(rrid)

    def change(self, changes: Iterable[tuple[int, int, int, int]]) -> None:
        """Apply (whence, id, edge, delta) changes; the entries that nobody claims any more go."""
        freed = []
        with self._lock:
            for whence, id_, edge, delta in changes:
                if self._book.apply(whence, id_, edge, delta):
                    freed.append(self._entries.pop(RRID(whence, id_), None))
        # The values die here, outside of the lock: their finalisers may come back to the store.
        freed.clear()

    def drop_process(self, pid: int) -> None:
        """The claims of a process that is gone vanish."""
        with self._lock:
            freed = [self._entries.pop(rrid, None) for rrid in self._book.drop_process(pid)]
        freed.clear()

    def claims(self) -> dict[RRID, set[int]]:
        """Who claims what, now."""
        with self._lock:
            return {rrid: set(self._book.holders(rrid)) for rrid in self._book.held()}

    def __len__(self) -> int:
        return len(self._entries)
