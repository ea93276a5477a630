"""Chunks of a loop: how items are cut, what a process does with its chunk, and the calls under way.

Only the chunk itself travels: a slice of what can be sliced (a range stays a range, an array a view), else a list of
the items. Of a shared array the chunk is a `Portion`: inside the node nothing travels but the handle, and the chunk
becomes a view of the same memory; another node gets its part by value. What this module does not know: which process
gets which chunk, and what becomes of the values.
"""

from __future__ import annotations

import functools
import operator
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

from hybriddist.calls import remotecall
from hybriddist.core.messages import Operation
from hybriddist.deadline import Deadline
from hybriddist.errors import HybridDistError
from hybriddist.future import Future
from hybriddist.placing import CapturedFunction
from hybriddist.runtime.asking import LOST
from hybriddist.runtime.blocks import BlockHandle
from hybriddist.runtime.completion import Completion
from hybriddist.runtime.context import this_process
from hybriddist.runtime.peer import Peer
from hybriddist.runtime.process import Process

_COROUTINE = 0x80
"""The flag of an ``async def`` in its code object (`inspect.CO_COROUTINE`, whose module takes 10 ms to import)."""


class Portion:
    """A part of what travels by reference; where it arrives, it is the part itself."""

    __slots__ = ("_start", "_stop", "_whole")

    def __init__(self, whole: Any, part: range) -> None:
        self._whole = whole
        self._start, self._stop = part.start, part.stop

    def take(self) -> Any:
        """The part, here."""
        return self._whole[self._start : self._stop]

    def __reduce__(self) -> tuple[Any, ...]:
        if self._whole._goes_by_reference():
            return operator.getitem, (self._whole, slice(self._start, self._stop))
        return _same, (self.take(),)


def _same(thing: Any) -> Any:
    return thing


def cut(items: Any, part: range) -> Any:
    """The items at these positions: a slice where ``items`` has slices, else a list; a `Portion` of what is shared.

    What a container that knows only single positions makes of a slice is anybody's guess. So the result counts as a
    slice only if it has the right length; and not if it is a tuple of something that is none, such as the pair that a
    data set of pairs gives.
    """
    if isinstance(items, BlockHandle):
        return Portion(items, part)
    try:
        chunk = items[part.start : part.stop]
        if len(chunk) == len(part) and (not isinstance(chunk, tuple) or isinstance(items, tuple)):
            return chunk
    except Exception:
        pass  # no slices; if single positions fail as well, that is raised
    return [items[position] for position in part]


def run_chunk(f: Callable[..., Any], chunk: Any, reduce: Callable[[Any, Any], Any] | None, chunked: bool) -> Any:
    """One chunk, on the process that has it: fold from the first item, without an identity element."""
    if isinstance(f, CapturedFunction):
        f = f._function
    if getattr(getattr(f, "__code__", None), "co_flags", 0) & _COROUTINE:
        f = functools.partial(_awaited, f)
    if type(chunk) is Portion:  # a process that calls itself passes what it has
        chunk = chunk.take()
    if chunked:
        value = f(chunk)
        return None if reduce is None else value
    values = map(f, chunk if hasattr(chunk, "__iter__") else map(chunk.__getitem__, range(len(chunk))))
    if reduce is None:
        deque(values, maxlen=0)
        return None
    return functools.reduce(reduce, values)


def _awaited(f: Callable[..., Any], item: Any) -> Any:
    return this_process().coroutines.run(f(item))


def when_ended(future: Future, ended: Callable[[bool], None]) -> None:
    """Have the end of a call come here unasked, and ``ended(lost)`` called on the thread that brings it.

    ``lost``: the process is gone.
    """
    source = future._begin()
    if source is None:  # the process went after the call was sent
        ended(True)
    else:
        source[0].add_callback(lambda completion: ended(completion.outcome == LOST))


def cancel(futures: Iterable[Future]) -> None:
    """Have calls dropped or interrupted, without waiting for the answers: who is stuck in C code gives none."""
    for future in futures:
        process = future._process
        if future.where == process.pid:
            future.cancel()
            continue
        try:
            process.start_request(future._peer(), Operation.CANCEL, future._rrid)
        except HybridDistError:
            pass  # the process is gone


class UnderWay:
    """Calls under way for a thread that waits for their ends, each known by a key."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self._calls: dict[int, Future] = {}
        self._ended: deque[int] = deque()
        self._news = Completion()

    def __len__(self) -> int:
        return len(self._calls)

    def begin(self, key: int, pid: int, function: Callable[..., Any], *args: Any) -> None:
        """Call a function on a process.

        Raises:
            SerializeError, ProcessExitedException: as `remotecall`.
        """
        self._calls[key] = future = remotecall(function, pid, *args)
        when_ended(future, functools.partial(self._note, key))

    def next(self, timeout: float | None) -> tuple[int, Future] | None:
        """Wait for the next call that ends; None if none does within so many seconds."""
        while not self._ended:
            self._news = news = Completion()
            if not self._ended and not self._wait(news, timeout) and not self._ended:
                return None
        key = self._ended.popleft()
        return key, self._calls.pop(key)

    def cancel(self) -> None:
        """Have all that is under way dropped or interrupted. Does not wait for that."""
        cancel(self._calls.values())

    def _wait(self, news: Completion, timeout: float | None) -> bool:
        process = self._process
        peers: list[Peer] = []
        for pid in {future.where for future in self._calls.values()}:
            peer = process.peers.get(pid)
            if peer is not None:
                peers.append(peer)
        if peers and all(future.where != process.pid for future in self._calls.values()):
            return process.wait_for_any(news, peers, timeout)
        return process.wait_here(news, None, Deadline(timeout))

    def _note(self, key: int, _: bool) -> None:
        self._ended.append(key)
        news = self._news
        if not news.done:
            news.complete(0, None)
