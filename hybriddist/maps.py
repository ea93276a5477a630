"""`pmap`: apply a function to every item, each on the next free worker.

One thread, the caller's, feeds the workers and collects the results; iterators, `on_error` and `retry_check` run there
and nowhere else. Results are noted by whichever thread receives them and handled in order of arrival::

    items ─► feed ─► calls under way, by worker ─► results noted ─► handle ─► results in input order
                 ▲                                                     │
                 └──────────── again ◄──────────────── retry ──────────┘

A worker that gets its next item only after the last result has come idles for a round trip; with items of
microseconds that is most of the time. So a worker's window, the number of items under way to it, grows to what fits
in 2 ms, and stays 1 for anything slower: a slow item never holds back another that a free worker could take. What a
window has room for goes in one message; the worker answers item by item. It says so when it begins one while an older
one has no result, so when a worker dies it is known which items had begun, and which never did.

A worker that calls `pmap` takes its share too: one item at a time, on another thread, while this one waits.

What this module does not know: how calls travel, and maps without workers (``maps_here.py``).
"""

from __future__ import annotations

import itertools
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from hybriddist.calls import remotecall
from hybriddist.core.messages import Outcome
from hybriddist.deadline import Deadline
from hybriddist.errors import HybridDistError, ProcessExitedException, SerializeError
from hybriddist.future import Future
from hybriddist.ids import DRIVER
from hybriddist.maps_here import run_here
from hybriddist.outcomes import Outcomes, checked_delays, common_length, common_shape, flat, in_shape
from hybriddist.progress import Progress
from hybriddist.runtime.asking import LOST
from hybriddist.runtime.completion import Completion
from hybriddist.runtime.current import current
from hybriddist.runtime.peer import Peer
from hybriddist.runtime.process import Process

_AHEAD_SECONDS = 0.002
"""Work that may wait at a worker behind the item it is at."""

_MOST_AHEAD = 256

_LOOK_SECONDS = 0.1
"""While there is something to give out, how often new workers are looked for at least."""

_NOT_SENT = -2
"""Outcome of an item that cannot be pickled; the content is the exception."""


def pmap(
    f: Callable[..., Any],
    /,
    *iterables: Iterable[Any],
    distributed: bool = True,
    batch_size: int = 1,
    on_error: Callable[[BaseException], Any] | None = None,
    retry_delays: Iterable[float] = (),
    retry_check: Callable[[Any, BaseException], Any] | None = None,
    progress: bool = False,
) -> Any:
    """``[f(x) for x in iterable]`` on the workers; of several iterables elementwise, as long as the shortest.

    Args:
        f: the function; anything callable that can be pickled.
        *iterables: read lazily, on the calling thread. A numpy array gives an array of the same shape.
        distributed: False runs everything in this process, on one thread per worker.
        batch_size: items a request.
        on_error: called here with the original exception of an item; what it returns stands in the result. It runs
            inside an ``except`` block: a bare ``raise`` re-raises. It comes before any retry.
        retry_delays: seconds to wait before each further attempt of an item.
        retry_check: ``check(state, exception)`` returns whether to try again, or a new state and that.
        progress: show a progress bar on stderr (with tqdm where it is installed).

    Returns:
        A list in input order.

    Raises:
        RemoteException: of the first item that failed, with ``.index``; the others' work is cancelled.
        ProcessExitedException: its worker died, likewise with ``.index``.

    Example::

        hd.pmap(str.upper, ["a", "b"])      # ["A", "B"]

    Source: Julia's Distributed, ``pmap``.
    """
    if not callable(f):
        raise TypeError(f"pmap needs a function, not {type(f).__name__}")
    if not iterables:
        raise TypeError("pmap needs at least one iterable")
    if type(batch_size) is not int or batch_size < 1:
        raise ValueError(f"batch_size must be a whole number of 1 and more, not {batch_size!r}")
    shape = common_shape(iterables)
    for name, function in (("on_error", on_error), ("retry_check", retry_check)):
        if function is not None and not callable(function):
            raise TypeError(f"{name} must be a function, not {type(function).__name__}")
    delays = checked_delays(retry_delays)
    with Progress(progress, common_length(iterables)) as bar:
        outcomes = Outcomes(on_error, delays, retry_check, bar)
        items = enumerate(zip(*(flat(iterable) for iterable in iterables), strict=False))
        process = current()
        if not distributed or process.membership.workers() == [process.pid]:
            results = run_here(process, f, items, outcomes, process.membership.nworkers() if not distributed else 1)
        else:
            results = _Map(process, f, items, outcomes, batch_size).run()
    if shape is None:
        return results
    return in_shape(results, shape)


class _Item(Completion):
    """One item under way; its completion is noted in the map."""

    __slots__ = ("args", "future", "index", "map", "peer", "pid", "shared")

    map: _Map
    pid: int
    peer: Peer | None
    """None: it runs in this process, and ``future`` brings its result."""
    future: Future
    shared: bool
    """Whether it was sent in one message with others."""

    def __init__(self, index: int, args: tuple[Any, ...]) -> None:
        super().__init__()
        self.index = index
        self.args = args

    def complete(self, outcome: int, content: Any) -> None:
        """The result is here, or the worker is gone. Called by whoever received it."""
        self.outcome = outcome
        self.content = content
        self.done = True
        self.map.note(self)

    def end_here(self, _: Future) -> None:
        """It ran in this process, and its future has ended."""
        self.complete(Outcome.VALUE, None)

    def value(self, process: Process) -> Any:
        """Its value, or the exception raised here."""
        if self.outcome == _NOT_SENT:
            raise self.content
        return self.future.fetch() if self.peer is None else process.value_of(self, self.peer)


class _Lane:
    """The items under way to one worker, in the order in which they were sent."""

    __slots__ = ("ended", "since", "under_way", "victim", "window")

    def __init__(self) -> None:
        self.under_way: deque[_Item] = deque()
        self.window = 1
        """How many items may be under way."""
        self.victim: _Item | None = None
        self.ended = 0
        self.since = 0.0

    def widen(self, now: float) -> None:
        """Set the window to what took `_AHEAD_SECONDS` lately; it grows by doubling, and shrinks at once."""
        if self.ended:
            seconds = max((now - self.since) / self.ended, 1e-7)
            self.window = max(1, min(_MOST_AHEAD, self.window * 2, int(_AHEAD_SECONDS / seconds)))
        self.ended = 0
        self.since = now


class _Map:
    """One distributed `pmap`."""

    def __init__(
        self,
        process: Process,
        f: Callable[..., Any],
        items: Iterator[tuple[int, tuple[Any, ...]]],
        outcomes: Outcomes,
        batch_size: int,
    ) -> None:
        self._process = process
        self._f = f
        self._items = items
        self._outcomes = outcomes
        self._batch_size = batch_size
        self._lanes: dict[int, _Lane] = {}
        self._ended: deque[_Item] = deque()
        self._again: list[tuple[float, _Item]] = []
        self._news = Completion()
        self._exhausted = False

    def run(self) -> list[Any]:
        """Feed and collect until all is done. If that fails, what is still under way is cancelled."""
        try:
            return self._run()
        except BaseException:
            self._cancel()
            raise

    def _cancel(self) -> None:
        for lane in self._lanes.values():
            if not lane.under_way:
                continue
            peer = lane.under_way[0].peer
            if peer is not None:
                self._process.cancel_calls(peer, lane.under_way)
                continue
            for item in lane.under_way:
                item.future.cancel()

    def _run(self) -> list[Any]:
        ended = self._ended
        while True:
            self._feed()
            if not ended:
                if not any(lane.under_way for lane in self._lanes.values()):
                    if self._exhausted and not self._again:
                        return self._outcomes.in_order()
                    time.sleep(max(self._until_look() or 0.0, 0.001))
                    continue
                self._news = news = Completion()
                if not ended:
                    self._wait(news)
            while ended:
                self._handle(ended.popleft())

    def _wait(self, news: Completion) -> None:
        at_work = [lane.under_way[0].peer for lane in self._lanes.values() if lane.under_way]
        peers = [peer for peer in at_work if peer is not None]
        if len(peers) == len(at_work):
            self._process.wait_for_any(news, peers, self._until_look())
        else:
            self._process.wait_here(news, None, Deadline(self._until_look()))

    def note(self, item: _Item) -> None:
        """An item has ended: called by whoever received its result."""
        self._ended.append(item)
        news = self._news
        if not news.done:
            news.complete(0, None)

    # ---- feeding ----------------------------------------------------------------------------------------------

    def _feed(self) -> None:
        """Fill the window of every worker that has done half of it. New workers join in, dead ones are left out."""
        if self._exhausted and not self._again:
            return
        pids = self._process.membership.workers()
        if pids == [DRIVER]:
            raise ProcessExitedException(0, "all workers are gone while a pmap was running")
        batch = self._batch_size
        for pid in pids:
            lane = self._lanes.get(pid)
            if lane is None:
                lane = self._lanes[pid] = _Lane()
            under_way = len(lane.under_way)
            if pid == self._process.pid:
                if not under_way and not self._start_here(lane):
                    return
                continue
            if under_way > lane.window // 2:
                continue
            lane.widen(time.perf_counter())
            while under_way < lane.window:
                items = self._next_items(batch if batch > 1 else lane.window - under_way)
                if not items:
                    return
                if not self._send(pid, lane, items):
                    break
                under_way += len(items)

    def _next_items(self, count: int) -> list[_Item]:
        if self._again:
            now = time.monotonic()
            for position, (due, item) in enumerate(self._again):
                if due <= now:
                    del self._again[position]
                    return [item]
        if self._exhausted:
            return []
        items = [_Item(index, args) for index, args in itertools.islice(self._items, count)]
        if len(items) < count:
            self._exhausted = True
        return items

    def _start_here(self, lane: _Lane) -> bool:
        """This worker's own share; False if there is nothing to do."""
        for item in self._next_items(1):
            item.map = self
            item.pid = self._process.pid
            item.peer = None
            item.shared = False
            item.future = remotecall(self._f, item.pid, *item.args)
            lane.under_way.append(item)
            item.future.add_done_callback(item.end_here)
            return True
        return False

    def _send(self, pid: int, lane: _Lane, items: list[_Item]) -> bool:
        try:
            peer = self._process.peer(pid)
            shared = len(items) > 1
            for item in items:
                item.map = self
                item.pid = pid
                item.peer = peer
                item.shared = shared
            self._process.start_each(self._f, peer, [item.args for item in items], items)
        except ProcessExitedException:
            # It went before it was asked: the items are still ours to give to another.
            self._again.extend((0.0, item) for item in items)
            return False
        except SerializeError as error:
            if shared:  # one of them cannot be pickled. Alone, each is told from the others
                return all([self._send(pid, lane, [item]) for item in items])
            self._process.check_function(peer, self._f)  # if it is the function, no item can be sent: raised here
            lane.under_way.extend(items)
            items[0].complete(_NOT_SENT, error)
            return True
        lane.under_way.extend(items)
        return True

    # ---- handling ---------------------------------------------------------------------------------------------

    def _handle(self, item: _Item) -> None:
        lane = self._lanes[item.pid]
        under_way = lane.under_way
        outcome = item.outcome
        if outcome == LOST and lane.victim is None:
            # What came before the death has been handled. Of what is left and is not said to have begun, the worker was
            # at the oldest, if at any (see `running.Each`).
            lane.victim = next((other for other in under_way if not other.started), item)
        if under_way[0] is item:
            under_way.popleft()
        else:
            under_way.remove(item)
        lane.ended += 1
        if (outcome == LOST and item is not lane.victim and not item.started) or (
            outcome == Outcome.NOT_RUN and item.shared
        ):
            # It has not begun (it waited behind another, or came in one message with something that cannot be
            # unpickled there), so to send it again repeats nothing.
            self._again.append((0.0, _Item(item.index, item.args)))
            return
        try:
            value = item.value(self._process)
        except HybridDistError as error:
            delay = self._outcomes.error(item.index, error)
            if delay is not None:
                self._again.append((time.monotonic() + delay, _Item(item.index, item.args)))
        else:
            self._outcomes.value(item.index, value)

    def _until_look(self) -> float | None:
        """How long to wait for results: until a retry is due, and not long while a new worker would have work."""
        if self._exhausted and not self._again:
            return None
        now = time.monotonic()
        return min([_LOOK_SECONDS, *(due - now for due, _ in self._again if due > now)])
