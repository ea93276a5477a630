"""The function cache of one connection: a function's definition travels once, and calls name it by a key.

::

    1st call of f      Define key=7, body f;  Call key=7, (args, kwargs)
    2nd call ...       Call key=7, (args, kwargs)
    f has changed      Define key=7, body f;  Call key=7, (args, kwargs)
    f has died         Forget key=7, or Define key=7 for another function

The definition is the process's, and the same for all connections (`core/definitions.py`): over any number of them and
of calls an unchanged function is pickled once. A function that has nothing of its own (no closure, no defaults) is
known by its code: a lambda in a loop is one function, not many.

A function found by name in a module is always the same. One that goes by value is sent with its defaults, closure and
globals, so a key may stand for it only while sending it again would give the same (`core/snapshots.py`). Everything
else goes inline with each call, as if there were no cache.

What this module does not know: sockets, messages, threads. The caller holds the connection's lock around each method.
"""

from __future__ import annotations

import types
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from hybriddist.core import payload
from hybriddist.core.definitions import CACHEABLE, CAPACITY, Death, Definition, check_capacity, subject_of
from hybriddist.core.dismantle import chain, own_attribute
from hybriddist.core.snapshots import Snapshot
from hybriddist.errors import DeserializeError, RemoteProtocolError
from hybriddist.transport import Buffer


class FunctionSender:
    """Decides for each call whether its function goes inline or by key."""

    def __init__(self, capacity: int = CAPACITY) -> None:
        check_capacity(capacity)
        self._capacity = capacity
        self._entries: OrderedDict[int, _Entry] = OrderedDict()  # by the subject's id; the least recently used first
        self._dead: deque[Death] = deque()  # filled by the garbage collector, in any thread
        self._note_death = self._dead.append
        self._forgotten: list[int] = []
        self._in_use: list[int] = []
        self._last_key = 0

    def key_for(self, function: Callable[..., Any]) -> int | None:
        """The cheapest way to name the function in a call.

        Returns:
            0: it goes inline. A key: the other end knows it; to be released once the call is sent. None: it is to be
            defined first, with `adopt`.
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
                return None if isinstance(function, CACHEABLE) else 0
        self._entries.move_to_end(ident)
        if entry.snapshot is None:
            return 0
        if not entry.snapshot.is_current(function):
            return None
        self._in_use.append(entry.key)
        return entry.key

    def adopt(self, function: Any, definition: Definition | None) -> tuple[int, bool]:
        """Name a function for which `key_for` had no name.

        Args:
            definition: what `Definitions.define` said.

        Returns:
            The key, 0 if the function goes inline; and whether the definition has to be sent first. The key is to be
            released once the call is sent.
        """
        snapshot = definition.snapshot if definition is not None else None
        if definition is None or (snapshot is not None and not snapshot.is_current(function)):
            return 0, False  # another thread has just changed something: the next call will find it settled
        entry = self._entry(function)
        is_new = snapshot is not entry.snapshot
        if is_new:
            self._retire(entry)
            entry.snapshot = snapshot
            entry.key = 0 if snapshot is None else self._unused_key()
        if entry.key:
            self._in_use.append(entry.key)
        return entry.key, is_new and entry.key != 0

    def release(self, key: int) -> None:
        """The call that names the key is sent, or never will be. Needs no lock."""
        self._in_use.remove(key)

    def withdraw(self, key: int) -> None:
        """The definition that `adopt` wanted to be sent may not have been: the next call begins anew."""
        self._in_use.remove(key)
        for ident, entry in self._entries.items():
            if entry.key == key:
                del self._entries[ident]
                self._retire(entry)
                break

    @property
    def has_forgotten(self) -> bool:
        """Whether `take_forgotten` may have something to tell."""
        return bool(self._dead or self._forgotten)

    def take_forgotten(self) -> list[int]:
        """The keys that stand for nothing any more, each once: to be sent as `Forget`.

        A key that another thread is about to name in a call comes later, when that is sent.
        """
        if self._dead:
            self._bury()
        retired, self._forgotten = self._forgotten, []
        if self._in_use:
            self._forgotten = [key for key in retired if key in self._in_use]
            return [key for key in retired if key not in self._forgotten]
        return retired

    def _unused_key(self) -> int:
        """One that stands for nothing any more is told by a definition alone: a message less."""
        for position, key in enumerate(self._forgotten):
            if key not in self._in_use:
                return self._forgotten.pop(position)
        self._last_key += 1
        return self._last_key

    def _entry(self, function: Any) -> _Entry:
        subject = subject_of(function)
        namespace = None if subject is function else function.__globals__
        entry = self._entries.get(id(subject))
        if entry is None or entry.alive() is not subject or entry.namespace is not namespace:
            if entry is not None:
                self._retire(entry)
            entry = self._entries[id(subject)] = _Entry(subject, namespace, self._note_death)
            if len(self._entries) > self._capacity:
                self._retire(self._entries.popitem(last=False)[1])
        return entry

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


class _Entry:
    """What the other end knows of one function."""

    __slots__ = ("alive", "key", "namespace", "snapshot")

    def __init__(self, subject: Any, namespace: Any, note_death: Callable[[Any], None]) -> None:
        self.alive = Death(subject, note_death)
        self.alive.ident = id(subject)
        self.namespace = namespace
        """The globals of all functions of this code; None if it is not about a code."""
        self.snapshot: Snapshot | None = None
        """Of the definition that it has; None if the function always goes inline."""
        self.key = 0


class FunctionReceiver:
    """The functions that the other end has defined."""

    def __init__(self) -> None:
        self._definitions: dict[int, ReceivedFunction] = {}

    def define(self, key: int, definition: ReceivedFunction) -> None:
        """Keep a definition. It is unpickled by the first call that needs it, on that call's thread: unpickling may
        run any code, and who receives must not wait for it."""
        self._definitions[key] = definition

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


class Failure:
    """What a definition cannot be unpickled for, to be raised for each call that names it."""

    __slots__ = ("_frames", "_why")

    def __init__(self, why: DeserializeError) -> None:
        self._why = why
        self._frames = [(each, own_attribute(each, "__traceback__")) for each in chain(why)]

    def raise_again(self) -> NoReturn:
        # A new one for each call: raising adds to an exception's traceback. And who keeps it drops the frames.
        for each, frames in self._frames:
            BaseException.with_traceback(each, frames)
        raise DeserializeError(*self._why.args) from self._why.__cause__


class ReceivedFunction:
    """A function that came from the other end, unpickled when it is first needed."""

    __slots__ = ("_body", "_buffers", "_found")

    def __init__(self, body: Buffer, buffers: Sequence[Buffer] = ()) -> None:
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
                found = self._unpickle(body, buffers)
            except DeserializeError as error:
                found = Failure(error)
            self._keep(found)
        if type(found) is Failure:
            found.raise_again()
        return found  # type: ignore[no-any-return]

    def _unpickle(self, body: Buffer, buffers: Sequence[Buffer]) -> Any:
        return payload.loads(body, buffers)

    def _keep(self, found: Any) -> None:
        self._found = found
        self._body, self._buffers = b"", ()
