"""The membership with a lock around it, ways to hear of changes, and what each process said last of itself.

`Membership` decides; several threads ask and tell it at once. Each question and each change here holds one lock for
a few microseconds; nothing is called back under it. Those who watch are told after it, by the thread that changed.
"""

from __future__ import annotations

from collections.abc import Callable
from threading import Condition, RLock
from typing import Any, Protocol
from weakref import WeakSet

from hybriddist.core.exits import ExitReason
from hybriddist.core.membership import Member, Membership
from hybriddist.deadline import Deadline
from hybriddist.ids import DRIVER


class Watcher(Protocol):
    """Somebody who wants to know when processes come and go."""

    def membership_changed(self) -> None:
        """Called on the thread that has changed the membership, perhaps one that receives: must not block or raise."""


class Roster(Membership):
    """A `Membership` that threads may share.

    Attributes:
        changes: counts up with each change; who has seen this number has seen all there is.
    """

    __slots__ = ("_changed", "_lock", "_statuses", "_watchers", "changes")

    def __init__(self, my_pid: int = DRIVER) -> None:
        self._lock = RLock()
        """Taken as it is, and not by way of the condition: a Ctrl-C in the Python code of the condition's `__enter__`
        left it taken for ever, and the end of the program waited for it (seen after some 200 during maps)."""
        self._changed = Condition(self._lock)
        self._statuses: dict[int, bytes] = {}
        self._watchers: WeakSet[Watcher] = WeakSet()
        self.changes = 0
        super().__init__(my_pid)

    def watch(self, watcher: Watcher) -> None:
        """Tell ``watcher`` of each change from now on, for as long as it lives; nobody is kept alive for it."""
        with self._lock:
            self._watchers.add(watcher)

    def wait_gone(self, pid: int, seconds: float | None) -> bool:
        """Wait until process ``pid`` is known to be gone, for at most ``seconds``; whether it is."""
        return self.wait_until(lambda: self.why_gone(pid) is not None or self.get(pid) is None, seconds)

    def wait_until(self, condition: Callable[[], bool], seconds: float | None) -> bool:
        """Wait until ``condition()``, looked at after each change."""
        deadline = Deadline(seconds)
        with self._lock:
            return self._changed.wait_for(condition, deadline.remaining())

    def set_status(self, pid: int, status: bytes) -> None:
        """Process ``pid`` says how it is; the last word of each is kept, also of those that are gone."""
        with self._lock:
            self._statuses[pid] = status

    def status(self, pid: int) -> bytes | None:
        """What process ``pid`` said last; None: nothing.

        Raises:
            TypeError, NoSuchProcessError: there is no such process, and never was.
        """
        with self._lock:
            if pid not in self._gone:
                super().require(pid)
            return self._statuses.get(pid)

    def allocate_pid(self) -> int:
        with self._lock:
            return super().allocate_pid()

    def add(self, member: Member) -> Member:
        with self._lock:
            return super().add(member)

    def joined(self, pid: int, *, same_node_as: int | None = None) -> Member:
        with self._lock:
            member = super().joined(pid, same_node_as=same_node_as)
            watchers = self._note_change()
        _tell(watchers)
        return member

    def leaving(self, pid: int) -> Member:
        with self._lock:
            member = super().leaving(pid)
            watchers = self._note_change()
        _tell(watchers)
        return member

    def gone(self, pid: int, reason: ExitReason) -> bool:
        with self._lock:
            first = False
            if pid in self._members or pid in self._gone:
                first = super().gone(pid, reason)
            else:  # a worker may hear of its end first; it is not to come to life here when that is told
                self._gone[pid] = reason
            watchers = self._note_change()
        _tell(watchers)
        return first

    def learn(self, fields: dict[str, Any]) -> None:
        with self._lock:
            super().learn(fields)
            watchers = self._note_change()
        _tell(watchers)

    def choose_topology(self, topology: str, lazy: bool | None = None) -> None:
        with self._lock:
            super().choose_topology(topology, lazy)

    def procs(self, pid: int | None = None) -> list[int]:
        with self._lock:
            return super().procs(pid)

    def procs_on_node(self, pid: int | None = None) -> list[int]:
        with self._lock:
            return super().procs_on_node(pid)

    def nodes(self) -> list[list[int]]:
        with self._lock:
            return super().nodes()

    def is_news(self, pid: int) -> bool:
        with self._lock:
            return super().is_news(pid)

    def require(self, pid: int) -> Member:
        with self._lock:
            return super().require(pid)

    def may_connect(self, a: int, b: int) -> bool:
        with self._lock:
            return super().may_connect(a, b)

    def snapshot(self) -> dict[str, Any]:
        with self._lock:
            return super().snapshot()

    def replace(self, snapshot: dict[str, Any]) -> None:
        with self._lock:
            super().replace(snapshot)
            watchers = self._note_change()
        _tell(watchers)

    def _note_change(self) -> list[Watcher]:
        """Who is to be told of a change, once the lock, which the caller holds, is free."""
        self.changes += 1
        self._changed.notify_all()
        return list(self._watchers)


def _tell(watchers: list[Watcher]) -> None:
    for watcher in watchers:
        watcher.membership_changed()
