"""The values behind references, on the process that holds them.

An entry is a `Completion` whose content is the value itself (never its pickle), or the `CapturedException` of the call
that failed. Entries are made on first touch, by whoever comes first: the call that computes the value or the request
that waits for it. They go when the last claim on the reference is gone.

A request may come before the claim of whoever sends it: the claim is told by the process that gave the reference away,
on another connection. So an entry without claims is no error. Only when some process has died may a claim have died
with it, and the value have been freed too early; then such a request gets an error, after a while of doubt.

What this module does not know: how values travel, and where claims come from.
"""

from __future__ import annotations

from _thread import allocate_lock
from collections.abc import Callable, Iterable
from typing import Any, Final

from hybriddist.core import captured
from hybriddist.core.messages import Outcome
from hybriddist.core.references import OwnerBook
from hybriddist.deadline import Deadline
from hybriddist.errors import InvalidStateException
from hybriddist.ids import RRID
from hybriddist.runtime.completion import Completion

_TAKEN: Final = -2
"""Outcome of an entry that somebody is about to complete."""

DOUBT_SECONDS: Final = 20.0
"""After a death: for claims that are still under way from the living, perhaps behind large arrays."""

_Spawn = Callable[[Callable[[], None], str], object]


class Store:
    """Entries by reference, and who claims them.

    Args:
        spawn: runs a function on a thread of its own, with a name.
        doubt_seconds: how long a request waits for the claim on its reference once some process has died.
    """

    def __init__(self, spawn: _Spawn, doubt_seconds: float = DOUBT_SECONDS) -> None:
        self._lock = allocate_lock()
        self._entries: dict[RRID, Completion] = {}
        self._book = OwnerBook()
        self._spawn = spawn
        self._doubt_seconds = doubt_seconds
        self._unheard: dict[RRID, Completion] = {}
        """Entries that were asked for while no claim on them was known."""
        self._somebody_died = False
        self._doubting = False
        self._closed = Completion()

    def entry(self, rrid: RRID) -> Completion:
        """The entry of a reference that this process holds itself, made if there is none."""
        entry = self._entries.get(rrid)
        if entry is None:
            entry = self._entries.setdefault(rrid, Completion())
        return entry

    def requested(self, rrid: RRID) -> Completion:
        """The entry of a reference that another process asks for, made if there is none."""
        with self._lock:
            entry = self.entry(rrid)
            if not entry.done and not self._book.holders(rrid):
                self._unheard[rrid] = entry
                self._begin_to_doubt()
        return entry

    def peek(self, rrid: tuple[int, int]) -> Completion | None:
        """The entry of a reference, if there is one."""
        return self._entries.get(rrid)  # type: ignore[call-overload,no-any-return]  # an RRID is a plain tuple to a dict

    def made(self, rrid: RRID, content: Any) -> Completion:
        """The entry of a channel, which has ``content`` unless somebody else was quicker."""
        with self._lock:
            entry = self.entry(rrid)
            mine = _take(entry)
        if mine:
            entry.complete(Outcome.VALUE, content)
        return entry

    def cancel(self, rrid: RRID) -> bool:
        """End a reference without a value, for everybody; False if it has one, or an error."""
        with self._lock:
            entry = self.entry(rrid)
            mine = _take(entry)
        if mine:
            entry.complete(Outcome.CANCELLED, None)
        return mine

    def complete(self, rrid: RRID, outcome: int, content: Any) -> None:
        """Set a reference's value, or its error, once.

        Raises:
            InvalidStateException: it is set already; the first value stays.
        """
        with self._lock:
            entry = self.entry(rrid)
            if not _take(entry):
                raise InvalidStateException(cannot_be_set(rrid, entry.outcome), state="set")
        entry.complete(outcome, content)  # outside of the lock: callbacks may come back to the store

    def put(self, rrid: RRID, value: Any) -> None:
        """`complete` with a value."""
        self.complete(rrid, Outcome.VALUE, value)

    def finish(self, rrid: RRID, outcome: int, content: Any) -> None:
        """`complete` with the end of a call, unless nobody wants it any more or somebody has put a value before."""
        with self._lock:
            entry = self._entries.get(rrid)
            mine = entry is not None and _take(entry)
        if entry is not None and mine:
            entry.complete(outcome, content)

    def created(self, rrid: RRID) -> Completion | None:
        """A call that keeps its value under ``rrid`` has come; its sender holds the first claim. The entry for it."""
        with self._lock:
            return None if self._book.created(rrid) else self.entry(rrid)

    def change(self, changes: Iterable[tuple[int, int, int, int]]) -> None:
        """Apply (whence, id, edge, delta) changes; the entries that nobody claims any more go."""
        freed: list[Completion] = []
        with self._lock:
            for whence, id_, edge, delta in changes:
                if delta > 0 and self._unheard:
                    self._unheard.pop(RRID(whence, id_), None)
                if self._book.apply(whence, id_, edge, delta):
                    self._free(RRID(whence, id_), freed)
        _end(freed)

    def drop_process(self, pid: int) -> None:
        """The claims of a process that is gone vanish."""
        freed: list[Completion] = []
        with self._lock:
            for rrid in self._book.drop_process(pid):
                self._free(rrid, freed)
            self._somebody_died = True
            self._begin_to_doubt()
        _end(freed)

    def claims(self) -> dict[RRID, set[int]]:
        """Who claims what, now."""
        with self._lock:
            return {rrid: set(self._book.holders(rrid)) for rrid in self._book.held()}

    def live(self, pid: int) -> list[RRID]:
        """The references with an entry, sorted, without those that only ``pid`` claims: this process itself."""
        with self._lock:
            return sorted(rrid for rrid in self._entries if self._book.holders(rrid) != [pid])

    def discard(self, rrid: RRID) -> None:
        """Let go of an entry, whoever claims it: nobody can ask for it any more."""
        with self._lock:
            entry = self._entries.pop(rrid, None)
        del entry  # outside of the lock: finalisers of values may come back to the store

    def close(self) -> None:
        """End the thread that doubts, if there is one."""
        self._closed.complete(0, None)

    def __len__(self) -> int:
        return len(self._entries)

    # ---- inside -----------------------------------------------------------------------------------------------

    def _free(self, rrid: RRID, freed: list[Completion]) -> None:
        entry = self._entries.pop(rrid, None)
        self._unheard.pop(rrid, None)
        if entry is not None:
            freed.append(entry)

    def _begin_to_doubt(self) -> None:
        """The caller holds the lock."""
        if self._somebody_died and self._unheard and not self._doubting:
            self._doubting = True
            self._spawn(self._doubt, "hybriddist-doubt")

    def _doubt(self) -> None:
        """Give those who ask for what nobody claims some time, then an error."""
        while True:
            with self._lock:
                doubted = list(self._unheard.items())
                if not doubted or self._closed.done:
                    self._doubting = False
                    return
            self._closed.wait(Deadline(self._doubt_seconds))
            lost: list[Completion] = []
            with self._lock:
                for rrid, entry in doubted:
                    if self._unheard.get(rrid) is not entry:
                        continue
                    del self._unheard[rrid]
                    if not entry.done and not self._book.holders(rrid):
                        self._free(rrid, lost)
            _end(lost)


def cannot_be_set(reference: object, outcome: int | None) -> str:
    """What is wrong with a value for a reference that has ended."""
    why = "was cancelled" if outcome == Outcome.CANCELLED else "already has its value"
    return f"Future can be set only once: {reference!r} {why}"


def _take(entry: Completion) -> bool:
    """Claim the right to complete an entry; the caller holds the lock."""
    if entry.done or entry.outcome:
        return False
    entry.outcome = _TAKEN
    return True


def _end(entries: list[Completion]) -> None:
    """Let go of entries that are out of the store, outside of its lock: finalisers of values may come back to it.

    Whoever still waits for one of them is told: it never gets a value.
    """
    for entry in entries:
        if _take(entry):
            text = "the reference was released: there is no value behind it any more"
            error = InvalidStateException(text, state="released")
            entry.complete(Outcome.ERROR, captured.capture(error))
    entries.clear()
