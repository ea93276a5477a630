"""Large data that a function has captured: put into shared memory once, instead of being sent to each worker.

::

    pmap, CachingPool                                     worker 2, worker 3, ... of the node
      f ── pickled once ──► block ◄── mapped by all ─── f' = unpickled over it; its arrays are writable, and a page
      │                                                      is copied when it is first written to
      └─ call: (function 17)(item) ───────────────────────► f'(item)         a few bytes, however much f has captured

The function is placed on each worker before its first item, behind a reference, and freed with that. It is what it was
when it was pickled, at the beginning of the map. Where that cannot be done (no room in shared memory, references in
what it has captured) each worker gets a copy of its own, once too.

A loop's chunks are few, so they carry the handle itself (`by_reference`).

What this module does not know: who calls what is placed.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Final

from hybriddist.calls import remotecall
from hybriddist.core import payload
from hybriddist.core.burden import captured_bytes
from hybriddist.core.messages import Outcome
from hybriddist.errors import InvalidStateException, SerializeError
from hybriddist.future import Future
from hybriddist.limits import MIB
from hybriddist.runtime.context import this_process
from hybriddist.runtime.pickled_blocks import PickledBlock
from hybriddist.runtime.process import Process

MUCH: Final = MIB
"""Captured arrays of so many bytes are placed. For 8 items on two workers placing took 2.1 ms with 256 KiB, sending
1.5; with 1 MiB 2.9 and 4.0, with 8 MiB 6.9 and 11.4."""

_UNKNOWN: Final = object()


class CapturedFunction(PickledBlock):
    """A function in shared memory."""

    __slots__ = ("_found",)

    def _adopt(self, parts: tuple[Any, ...]) -> None:
        super()._adopt(parts)
        self._found: Any = None

    @property
    def _function(self) -> Callable[..., Any]:
        """The function, with arrays of this process's own; where it comes from, the function itself."""
        found: Callable[..., Any] | None = self._found
        if found is None:
            found = self._found = self._load(own=True)
        return found


class Placing:
    """One function on its way to several workers.

    Args:
        process: this process.
    """

    def __init__(self, process: Process) -> None:
        self._process = process
        self._is_much: bool | None = None
        self._captured: Any = _UNKNOWN

    def function_on(self, pid: int, f: Callable[..., Any]) -> tuple[Callable[..., Any], Any]:
        """What is to be called on worker ``pid`` for ``f``, and what is to be kept until that has ended.

        It is ``f`` itself, and nothing, if it has not captured much, or the worker is this process.

        Raises:
            ProcessExitedException: the worker is gone.
        """
        if self._is_much is None:
            self._is_much = captured_bytes(f) >= MUCH
        if not self._is_much or pid == self._process.pid:
            return f, None
        try:
            return self.place(pid, f)
        except SerializeError:
            return f, None  # the first call will say so, and name what cannot be pickled

    def place(self, pid: int, f: Callable[..., Any]) -> tuple[Callable[..., Any], Future]:
        """Send ``f`` to worker ``pid``: what calls it there, and the reference that keeps it.

        Raises:
            SerializeError: it cannot be pickled.
            ProcessExitedException: the worker is gone.
        """
        if self._captured is _UNKNOWN:
            self._captured = _capture(self._process, f)
        captured = self._captured
        future = remotecall(itself, pid, f) if captured is None else remotecall(_load, pid, captured)
        # Always the same object for one worker: so the connection sends it by a key of its own, from the second on.
        return partial(call_stored, *future._rrid), future


def by_reference(process: Process, f: Callable[..., Any]) -> Any:
    """What stands for ``f`` in calls that know of `CapturedFunction`; ``f`` itself if it has not captured much."""
    try:
        captured = _capture(process, f)
    except SerializeError:
        return f  # see `Placing.function_on`
    if captured is None:
        return f
    captured._found = f
    return captured


def _capture(process: Process, f: Callable[..., Any]) -> CapturedFunction | None:
    """The function in shared memory. None: it has not captured much, or each process has to get another pickle."""
    if captured_bytes(f) < MUCH:
        return None
    encoded = process.references.encode_for_all(f, payload.FUNCTION_LABELS)
    if encoded is None or sum(buffer.nbytes for buffer in encoded[1]) < MUCH:
        return None
    return CapturedFunction._with(process, *encoded, "what a function has captured")


# ---- on the worker --------------------------------------------------------------------------------------------------


def itself(f: Any) -> Any:
    """What it was given: it stays, behind the reference of this call."""
    return f


def _load(captured: CapturedFunction) -> Any:
    return captured._load(own=True)


def call_stored(whence: int, id: int, /, *args: Any, **kwargs: Any) -> Any:
    """Call the function that is stored under a reference.

    Raises:
        DeserializeError: it could not be unpickled here.
    """
    entry = this_process().store.peek((whence, id))
    if entry is None:
        raise InvalidStateException("the function of this call was cleared before the call began")
    if not entry.done:  # its own call was begun before, and another thread is at it
        entry.wait()
    if entry.outcome != Outcome.VALUE:
        raise entry.content.ex
    return entry.content(*args, **kwargs)


__all__ = ["CapturedFunction", "Placing", "by_reference", "call_stored", "itself"]
