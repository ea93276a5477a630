"""Each function's pickle, made once for all connections, and again only when it would be another.

::

    connection to 2 ──┐                          ┌ snapshot: what the function is made of (core/snapshots.py)
    connection to 3 ──┼── define(f) ──► f's entry┤
    connection to 4 ──┘                          └ its pickle, as long as the snapshot is current

The first that asks has the function pickled; whoever asks meanwhile waits for that. Only the function's own lock is
held, for pickling runs code of the user's, which may call other functions and wait for other threads.

A pickle that is kept is a copy: its buffers are no longer views of the user's arrays. A view would show what the array
became later under a body that tells what it was before, and would forbid its owner to resize or close it.

What this module does not know: keys, messages, and which connection has which function (`core/functions.py`).
"""

from __future__ import annotations

import functools
import threading
import types
import weakref
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from typing import Any, Final, Protocol

from hybriddist import limits
from hybriddist.core import closures, mainspace, payload
from hybriddist.core.snapshots import Snapshot
from hybriddist.errors import LocalProtocolError
from hybriddist.records import Record

CAPACITY: Final = 1024
"""Functions remembered by a process, and for one connection. Lambdas made in a loop must not pile up."""

MOST_LARGE: Final = 16
"""So many pickles that are placed are kept, however large: else each connection would get a copy of its own."""

MOST_PLACED: Final = 128
"""No more than that, however small: each takes one or two descriptors."""

CACHEABLE: Final = (
    types.FunctionType,
    types.BuiltinFunctionType,
    type,
    functools.partial,
    closures.CachedFunction,
)
"""Bound methods and objects with `__call__` carry state that may change with every call, and a bound method is a new
object each time."""


class Definition(Record):
    """A function as it is sent: what a `Define` message carries. Good as long as the snapshot is current."""

    snapshot: Snapshot | None
    body: bytes
    buffers: Sequence[memoryview]
    place: list[Any] | None = None
    """If the pickle is in memory that others can see: the handle to that, which is sent instead. The memory is freed
    with it, so the list is emptied when the function dies; not while anybody who sends it has the function."""


INLINE: Final = Definition(None, b"", ())
"""Of a function that goes inline with each call, because nobody could tell whether it has changed, or because it has
references in it: each process is given claims of its own with them."""


class Pickle(Protocol):
    """Pickles a function for whoever may get it; None if each process has to get another pickle."""

    def __call__(self, value: Any, labels: Sequence[str] = ..., /) -> tuple[bytes, Sequence[memoryview]] | None: ...


class Place(Protocol):
    """Puts a pickle into memory that others can see: the handle that is to be sent; None if it is to be sent itself."""

    def __call__(self, body: bytes, buffers: Sequence[memoryview], /) -> Any: ...


class Definitions:
    """The definitions that a process has at hand. Any thread may ask.

    Args:
        pickle: how a function is pickled.
        place: where large pickles are put.
        capacity: how many functions are remembered.
        most_bytes: of all pickles that are kept together.
    """

    def __init__(
        self,
        pickle: Pickle = payload.dumps,
        place: Place | None = None,
        *,
        capacity: int = CAPACITY,
        most_bytes: int = limits.KEPT_DEFINITIONS_BYTES,
    ) -> None:
        check_capacity(capacity)
        self._pickle = pickle
        self._place = place
        self._capacity = capacity
        self._most_bytes = most_bytes
        self._bytes = 0
        self._entries: OrderedDict[int, _Entry] = OrderedDict()  # by the subject's id; the least recently used first
        self._dead: deque[Death] = deque()  # filled by the garbage collector, in any thread
        self._note_death = functools.partial(note_death, self._dead)
        # Around the books, never while something is pickled or sent. One thread may come twice: what is dropped here
        # may have a __del__ that calls.
        self._lock = threading.RLock()

    def define(self, function: Any) -> Definition | None:
        """The definition of a function that is `CACHEABLE`.

        Returns:
            `INLINE` if it never has one; None if it has none now: another thread has just changed something in it.

        Raises:
            SerializeError: the function cannot be pickled.
        """
        entry = self._entry(function)
        with entry.lock:
            if entry.definition is INLINE:
                return INLINE
            snapshot = entry.snapshot
            if snapshot is None or not snapshot.is_current(function):
                if entry.definition is not None:
                    self._keep(entry, None)
                snapshot = entry.snapshot = Snapshot.take(function, by_code=entry.namespace is not None)
                if snapshot is None:
                    return self._keep(entry, INLINE)
            if entry.definition is not None:
                return entry.definition
            return self._pickled(entry, snapshot, function)

    def clear(self) -> None:
        """Forget all. Not left to the collector of garbage, which may come late: it may hold memory of the node."""
        with self._lock:
            for entry in list(self._entries.values()):
                self._drop(entry)

    def __len__(self) -> int:
        """How many functions are remembered."""
        return len(self._entries)

    @property
    def kept_bytes(self) -> int:
        """Of all pickles that are kept."""
        return self._bytes

    def _entry(self, function: Any) -> _Entry:
        subject = subject_of(function)
        namespace = None if subject is function else function.__globals__
        with self._lock:
            self._bury()
            entry = self._entries.get(id(subject))
            # The address alone does not tell: it may be another function's since the first one died.
            if entry is None or entry.alive() is not subject or entry.namespace is not namespace:
                if entry is not None:
                    self._drop(entry)
                entry = self._entries[id(subject)] = _Entry(subject, namespace, self._note_death)
                if len(self._entries) > self._capacity:
                    self._drop_oldest()
            else:
                self._entries.move_to_end(id(subject))
        return entry

    def _pickled(self, entry: _Entry, snapshot: Snapshot, function: Any) -> Definition | None:
        pickled = self._pickle(function, payload.FUNCTION_LABELS)
        if pickled is None:
            entry.snapshot = None
            return self._keep(entry, INLINE)
        settled = entry.snapshot = snapshot.settled(function, by_code=entry.namespace is not None)
        if settled is None:
            return None
        body, buffers = pickled
        size = len(body) + sum(view.nbytes for view in buffers)
        handle = None if self._place is None else self._place(body, buffers)
        if handle is not None:
            size = min(max(size, self._most_bytes // MOST_PLACED), self._most_bytes // MOST_LARGE)
            return self._keep(entry, Definition(settled, b"", (), [handle]), size)
        if size > self._most_bytes:
            return Definition(settled, body, buffers)
        return self._keep(entry, Definition(settled, body, [memoryview(bytes(view)) for view in buffers]), size)

    # ---- the books ----------------------------------------------------------------------------------------------

    def _keep(self, entry: _Entry, definition: Definition | None, size: int = 0) -> Definition | None:
        """Have an entry keep a definition, in the place of what it kept before."""
        with self._lock:
            if self._entries.get(entry.alive.ident) is entry:  # not dropped meanwhile
                self._bytes += size - entry.size
                entry.definition, entry.size = definition, size
                entry.alive.place = None if definition is None else definition.place
                while self._bytes > self._most_bytes:
                    self._drop_oldest()
        return definition

    def _drop_oldest(self) -> None:
        self._drop(next(iter(self._entries.values())))

    def _drop(self, entry: _Entry) -> None:
        self._entries.pop(entry.alive.ident, None)
        size, entry.size, entry.definition = entry.size, 0, None
        self._bytes -= size

    def _bury(self) -> None:
        while self._dead:
            reference = self._dead.popleft()
            entry = self._entries.get(reference.ident)
            if entry is not None and entry.alive is reference:
                self._drop(entry)


class _Entry:
    """What is known of one function."""

    __slots__ = ("alive", "definition", "lock", "namespace", "size", "snapshot")

    def __init__(self, subject: Any, namespace: Any, note_death: Callable[[Any], None]) -> None:
        self.alive = Death(subject, note_death)
        self.alive.ident = id(subject)
        self.alive.place = None
        self.namespace = namespace
        """The globals of all functions of this code; None if it is not about a code."""
        self.lock = threading.RLock()
        """Held while the function is pickled. One thread may come twice: the function's pickling may call it."""
        self.snapshot: Snapshot | None = None
        self.definition: Definition | None = None
        self.size = 0


class Death(weakref.ref[Any]):
    """A weak reference that knows which address its object had."""

    __slots__ = ("ident", "place")
    ident: int
    place: list[Any] | None
    """Of its definition."""


def note_death(dead: deque[Death], death: Death) -> None:
    """The finaliser of functions: memory that others can see is not kept until somebody asks for another function."""
    dead.append(death)
    if death.place is not None:
        death.place.clear()


def subject_of(function: Any) -> Any:
    """What a function is known by: its code, if functions of `__main__` with that code are all the same; or itself."""
    if (
        type(function) is types.FunctionType
        and function.__globals__ is mainspace.namespace()
        and function.__closure__ is None
        and function.__defaults__ is None
        and function.__kwdefaults__ is None
        and not function.__dict__
        and function.__name__ == function.__code__.co_name
    ):
        return function.__code__
    return function


def check_capacity(capacity: int) -> None:
    if capacity < 1:
        raise LocalProtocolError(f"a function cache needs room for one function, not {capacity}")
