"""The function cache of one connection: a function's pickle travels once, later calls name it by a key.

::

    1st call of f      Call key=0, body (f, args, kwargs)          most functions are called once; nothing is kept
    2nd call           Define key=7, body f;  Call key=7, (args, kwargs)
    3rd call ...       Call key=7, (args, kwargs)
    f changed, died    Forget key=7

A function of `__main__` that uses a global which may change (a list, an object) is defined at the first call, and again
when the content has changed: such a global may be large, and what the other end does to it is to stay. One that has
nothing of its own (no closure, no defaults) is known by its code: a lambda in a loop is one function, not many.

A function found by name in a module is always the same. One that goes by value is sent with its defaults, closure and
globals, so a key may stand for it only while sending it again would give the same (`core/snapshots.py`). Everything
else goes inline with each call, as if there were no cache.

What this module does not know: sockets, messages, threads. The caller holds the connection's lock around each method.
"""

from __future__ import annotations

import functools
import types
import weakref
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from typing import Any, Final

from hybriddist.core import mainspace, payload
from hybriddist.core.snapshots import Snapshot
from hybriddist.errors import DeserializeError, LocalProtocolError, RemoteProtocolError
from hybriddist.transport import Buffer

Definition = tuple[bytes, list[memoryview]]
"""Body and buffers of a `Define` message."""

CAPACITY: Final = 1024
"""Functions remembered for one connection, by default. Lambdas made in a loop must not pile up at the other end."""


class FunctionSender:
    """Decides for each call whether its function goes inline or by key."""

    def __init__(self, capacity: int = CAPACITY) -> None:
        if capacity < 1:
            raise LocalProtocolError(f"a function cache needs room for one function, not {capacity}")
        self._capacity = capacity
        self._entries: OrderedDict[int, _Entry] = OrderedDict()  # by the function's id; the least recently used first
        self._dead: deque[_Death] = deque()  # filled by the garbage collector, in any thread
        self._note_death = self._dead.append
        self._forgotten: list[int] = []
        self._last_key = 0

    def key_for(self, function: Callable[..., Any]) -> tuple[int, Definition | None]:
        """The cheapest way to name the function in a call.

        Returns:
            ``(0, None)``: it goes inline. ``(key, None)``: the other end knows it. ``(key, definition)``: as before,
            once the definition is sent. Send it at once, before anything that may fail, such as pickling the arguments.

        Raises:
            SerializeError: the function cannot be pickled.
        """
        if self._dead:
            self._bury()
        # The address alone does not tell: it may be another function's since the first one died.
        code = function.__code__ if type(function) is types.FunctionType else None
        ident = id(code)
        entry = self._entries.get(ident)
        if entry is None or entry.alive() is not code or entry.namespace is not function.__globals__:
            ident = id(function)
            entry = self._entries.get(ident)
            if entry is None or entry.alive() is not function:
                return self._first_call(function)
        self._entries.move_to_end(ident)
        if entry.is_inline:
            return 0, None
        if entry.snapshot is None:
            return self._define(entry, function) if self._look_at(entry, function) else (0, None)
        if entry.snapshot.is_current(function):
            return (entry.key, None) if entry.key else self._define(entry, function)
        self._retire(entry)
        entry.key = 0
        if self._look_at(entry, function) and entry.has_contents:
            return self._define(entry, function)
        # Changed since. It may change with every call (a loop's variable): it is defined again when it has stayed.
        return 0, None

    @property
    def has_forgotten(self) -> bool:
        """Whether `take_forgotten` has something to tell."""
        return bool(self._dead or self._forgotten)

    def take_forgotten(self) -> list[int]:
        """The keys that stand for nothing any more, each once: to be sent as `Forget`, after the calls before it."""
        if self._dead:
            self._bury()
        forgotten, self._forgotten = self._forgotten, []
        return forgotten

    def _first_call(self, function: Any) -> tuple[int, Definition | None]:
        subject = _subject(function)
        ident = id(subject)
        stale = self._entries.pop(ident, None)
        if stale is not None:
            self._retire(stale)
        if isinstance(function, types.FunctionType | types.BuiltinFunctionType | type | functools.partial):
            entry = self._entries[ident] = _Entry(subject, function, self._note_death)
            if len(self._entries) > self._capacity:
                self._retire(self._entries.popitem(last=False)[1])
            if _is_of_main(function) and self._look_at(entry, function) and entry.has_contents:
                return self._define(entry, function)
            entry.snapshot, entry.is_inline = None, False
        # Bound methods and objects with __call__ carry state that may change with every call, and a bound method is
        # a new object each time.
        return 0, None

    def _look_at(self, entry: _Entry, function: Any) -> bool:
        """Remember what the function is made of; False if it may never have a key."""
        entry.snapshot = Snapshot.take(function, by_code=entry.namespace is not None)
        entry.is_inline = entry.snapshot is None
        return not entry.is_inline

    def _define(self, entry: _Entry, function: Any) -> tuple[int, Definition | None]:
        definition = payload.dumps(function)
        # If another thread rebound something meanwhile, this call goes inline; the next one will find it settled.
        before = entry.snapshot
        entry.snapshot = before and before.settled(function, by_code=entry.namespace is not None)
        if entry.snapshot is None:
            entry.snapshot = before
            return 0, None
        self._last_key += 1
        entry.key = self._last_key
        return entry.key, definition

    def _retire(self, entry: _Entry) -> None:
        if entry.key:
            self._forgotten.append(entry.key)

    def _bury(self) -> None:
        while self._dead:
            reference = self._dead.popleft()
            entry = self._entries.get(reference.ident)
            if entry is not None and entry.alive is reference:
                del self._entries[reference.ident]
                self._retire(entry)


class FunctionReceiver:
    """The functions that the other end has defined."""

    def __init__(self) -> None:
        self._definitions: dict[int, ReceivedFunction] = {}

    def define(self, key: int, body: Buffer, buffers: Sequence[Buffer] = ()) -> None:
        """Keep a definition. It is unpickled by the first call that needs it, on that call's thread: unpickling may
        run any code, and who receives must not wait for it."""
        self._definitions[key] = ReceivedFunction(body, buffers)

    def find(self, key: int) -> ReceivedFunction:
        """The function of a key.

        Raises:
            RemoteProtocolError: there is no such key.
        """
        try:
            return self._definitions[key]
        except KeyError:
            raise RemoteProtocolError(f"a call names function {key}, which is not defined") from None

    def forget(self, key: int) -> None:
        """Drop a function. Calls that have found it already are not affected."""
        self._definitions.pop(key, None)

    def __len__(self) -> int:
        return len(self._definitions)


class ReceivedFunction:
    """A function that came from the other end, unpickled when it is first needed."""

    __slots__ = ("_body", "_buffers", "_found")

    def __init__(self, body: Buffer, buffers: Sequence[Buffer]) -> None:
        self._body: Buffer = body
        self._buffers = buffers
        self._found: Any = None

    def load(self) -> Callable[..., Any]:
        """The function.

        Raises:
            DeserializeError: it cannot be unpickled here; so it is for each call that names it, and nothing else fails.
        """
        # The body before the result: who finds no result yet has read the body before another thread cleared it.
        body, buffers, found = self._body, self._buffers, self._found
        if found is None:
            # Two threads may do this at once: both get a good function, and one of them stays.
            try:
                found = payload.loads(body, buffers)
            except DeserializeError as error:
                found = error
            self._found = found
            self._body, self._buffers = b"", ()
        if isinstance(found, DeserializeError):
            # A new one for each call: raising adds to an exception's traceback.
            raise DeserializeError(*found.args) from found.__cause__
        return found  # type: ignore[no-any-return]


def _is_of_main(function: Any) -> bool:
    return type(function) is types.FunctionType and function.__globals__ is mainspace.namespace()


def _subject(function: Any) -> Any:
    """What a function is known by: its code, if functions of `__main__` with that code are all the same; or itself."""
    if (
        _is_of_main(function)
        and function.__closure__ is None
        and function.__defaults__ is None
        and function.__kwdefaults__ is None
        and not function.__dict__
        and function.__name__ == function.__code__.co_name
    ):
        return function.__code__
    return function


class _Death(weakref.ref[Any]):
    """A weak reference that knows which address its object had."""

    __slots__ = ("ident",)
    ident: int


class _Entry:
    """What is known of one function."""

    __slots__ = ("alive", "is_inline", "key", "namespace", "snapshot")

    def __init__(self, subject: Any, function: Any, note_death: Callable[[Any], None]) -> None:
        self.alive = _Death(subject, note_death)
        self.alive.ident = id(subject)
        self.namespace: Any = None if subject is function else function.__globals__
        """The globals of all functions of this code; None if it is not about a code."""
        self.key = 0
        self.snapshot: Snapshot | None = None
        self.is_inline = False

    @property
    def has_contents(self) -> bool:
        """Whether the function is to be defined whenever it has changed."""
        return self.snapshot is not None and self.snapshot.has_contents
