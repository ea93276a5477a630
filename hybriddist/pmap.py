"""`pmap`: apply a function to every item, each on the next free worker.

One thread, the caller's, feeds the workers and collects the results; iterators, `on_error` and `retry_check` run there
and nowhere else. Results are noted by whichever thread receives them and handled in order of arrival::

    items ─► feed ─► calls under way, by worker ─► results noted ─► handle ─► results in input order
                 ▲        (1 each; more while                          │
                 └─ again  items take microseconds)  ◄── retry ────────┘

A worker that gets its next item only after the last result has come idles for a round trip; with items of
microseconds that is most of the time. So the number of calls under way grows to what fits in 2 ms, and stays 1 for
anything slower: a slow item never holds back another that a free worker could take. Workers say when they start a
call that was waiting behind another, so when one dies it is known which items it held, and which never started.

What this module does not know: how calls travel.
"""

from __future__ import annotations

import itertools
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from hybriddist.core import captured
from hybriddist.core.messages import REPORT_START, Mode
from hybriddist.errors import HybridDistError, ProcessExitedException, RemoteException
from hybriddist.outcomes import Outcomes, common_length, common_shape, flat, in_shape
from hybriddist.progress import Progress
from hybriddist.runtime.completion import Completion
from hybriddist.runtime.current import current
from hybriddist.runtime.peer import Peer
from hybriddist.runtime.process import LOST, Process

_AHEAD_SECONDS = 0.002
"""Work that may wait at a worker behind the item it is at."""

_MOST_AHEAD = 64


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
        RemoteException: of the first item that failed, with ``.index``; the others' results are dropped.
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
    delays = tuple(retry_delays)
    with Progress(progress, common_length(iterables)) as bar:
        outcomes = Outcomes(on_error, delays, retry_check, bar)
        items = enumerate(zip(*(flat(iterable) for iterable in iterables), strict=False))
        process = current()
        if not distributed or process.membership.workers() == [process.pid]:
            results = _run_here(process, f, items, outcomes, process.membership.nworkers() if not distributed else 1)
        else:
            results = _Map(process, f, items, outcomes, batch_size).run()
    if shape is None:
        return results
    return in_shape(results, shape)


class _Work:
    """One request under way: some items, usually one."""

    __slots__ = ("completion", "items", "peer", "sent")

    def __init__(self, items: list[tuple[int, tuple[Any, ...]]], peer: Peer) -> None:
        self.items = items
        self.peer = peer
        self.completion: Completion | None = None
        self.sent = 0.0


class _Lane:
    """The requests under way to one worker, in the order in which they were sent."""

    def __init__(self) -> None:
        self.under_way: deque[_Work] = deque()
        self.allowed = 1
        self.victim: _Work | None = None
        self._seconds = 0.0
        self._last = 0.0

    def note_end(self, work: _Work, now: float) -> None:
        """A result came: how many requests may be under way from now on."""
        took = now - max(work.sent, self._last)
        self._last = now
        self._seconds = took if not self._seconds else max(took, 0.75 * self._seconds + 0.25 * took)
        self.allowed = max(1, min(_MOST_AHEAD, self.allowed * 2, int(_AHEAD_SECONDS / max(self._seconds, 1e-9))))


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
        self._ended: deque[_Work] = deque()
        self._again: list[tuple[float, int, tuple[Any, ...]]] = []
        self._news = Completion()
        self._exhausted = False

    def run(self) -> list[Any]:
        """Feed and collect until all is done."""
        process = self._process
        while True:
            self._feed()
            if not self._ended:
                lanes = [lane for lane in self._lanes.values() if lane.under_way]
                if not lanes:
                    if self._exhausted and not self._again:
                        return self._outcomes.in_order()
                    self._sleep_until_retry()
                    continue
                self._news = news = Completion()
                if not self._ended:
                    process.wait_for_any(news, [lane.under_way[0].peer for lane in lanes], self._retry_timeout())
            while self._ended:
                self._handle(self._ended.popleft())

    # ---- feeding ----------------------------------------------------------------------------------------------

    def _feed(self) -> None:
        """Give every worker with room its next request. New workers join in, dead ones are left out."""
        if self._exhausted and not self._again:
            return
        pids = self._process.membership.workers()
        if pids == [self._process.pid]:
            raise ProcessExitedException(0, "all workers are gone while a pmap was running")
        for pid in pids:
            lane = self._lanes.get(pid)
            if lane is None:
                lane = self._lanes[pid] = _Lane()
            while len(lane.under_way) < lane.allowed:
                items = self._next_items()
                if not items:
                    return
                if not self._send(pid, lane, items):
                    break

    def _next_items(self) -> list[tuple[int, tuple[Any, ...]]]:
        if self._again:
            now = time.monotonic()
            for position, (due, index, args) in enumerate(self._again):
                if due <= now:
                    del self._again[position]
                    return [(index, args)]
        if self._exhausted:
            return []
        items = list(itertools.islice(self._items, self._batch_size))
        if len(items) < self._batch_size:
            self._exhausted = True
        return items

    def _send(self, pid: int, lane: _Lane, items: list[tuple[int, tuple[Any, ...]]]) -> bool:
        process = self._process
        if len(items) == 1:
            function, args = self._f, items[0][1]
        else:
            function, args = _run_batch, (self._f, [args for _, args in items])
        try:
            peer = process.peer(pid)
            work = _Work(items, peer)
            work.sent = time.perf_counter()
            completion = process.start_call(function, peer, args, {}, Mode.FETCH | REPORT_START, 0, 0)
        except ProcessExitedException:
            # It went before it was asked: the items are still ours to give to another.
            self._again.extend((0.0, index, args) for index, args in items)
            return False
        work.completion = completion
        lane.under_way.append(work)
        completion.add_callback(lambda _: self._note(work))
        return True

    def _note(self, work: _Work) -> None:
        """A request has ended: called by whoever received its result."""
        self._ended.append(work)
        news = self._news
        if not news.done:
            news.complete(0, None)

    # ---- handling ---------------------------------------------------------------------------------------------

    def _handle(self, work: _Work) -> None:
        completion, peer = work.completion, work.peer
        assert completion is not None
        lane = self._lanes[peer.pid]
        if completion.outcome == LOST and lane.victim is None:
            # The results that came before the death have been handled: the oldest request left is the one it was at.
            lane.victim = lane.under_way[0]
        lane.under_way.remove(work)
        lane.note_end(work, time.perf_counter())
        if completion.outcome == LOST and work is not lane.victim and not completion.started:
            # It was waiting behind another and had not begun, so to give it to somebody else repeats nothing.
            self._again.extend((0.0, index, args) for index, args in work.items)
            return
        try:
            value = self._process.value_of(completion, peer)
        except HybridDistError as error:
            for index, args in work.items:
                self._failed(index, args, error)
            return
        if len(work.items) == 1:
            self._outcomes.value(work.items[0][0], value)
            return
        for (index, args), (failed, content) in zip(work.items, value, strict=True):
            if failed:
                self._failed(index, args, RemoteException(peer.pid, content))
            else:
                self._outcomes.value(index, content)

    def _failed(self, index: int, args: tuple[Any, ...], error: Exception) -> None:
        delay = self._outcomes.error(index, error)
        if delay is not None:
            self._again.append((time.monotonic() + delay, index, args))

    def _retry_timeout(self) -> float | None:
        return max(0.0, min(due for due, _, _ in self._again) - time.monotonic()) if self._again else None

    def _sleep_until_retry(self) -> None:
        time.sleep(self._retry_timeout() or 0.0)


def _run_batch(f: Callable[..., Any], batch: list[tuple[Any, ...]]) -> list[tuple[bool, Any]]:
    """On a worker: several items in one request; one that fails does not stop the others."""
    ends: list[tuple[bool, Any]] = []
    for args in batch:
        try:
            ends.append((False, f(*args)))
        except Exception as error:
            ends.append((True, captured.capture(error)))
    return ends


def _run_here(
    process: Process, f: Callable[..., Any], items: Iterator[Any], outcomes: Outcomes, threads: int
) -> list[Any]:
    """Without workers: on this thread, or on some threads of this process."""
    if threads == 1:
        for index, args in items:
            _attempt(process, f, index, args, outcomes)
        return outcomes.in_order()
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(threads) as pool:
        under_way: deque[tuple[int, Any, Any]] = deque()
        for index, args in items:
            under_way.append((index, args, pool.submit(process.call_here, f, args, {})))
            if len(under_way) >= 2 * threads:
                _collect(process, f, under_way.popleft(), outcomes)
        while under_way:
            _collect(process, f, under_way.popleft(), outcomes)
    return outcomes.in_order()


def _collect(process: Process, f: Callable[..., Any], entry: tuple[int, Any, Any], outcomes: Outcomes) -> None:
    index, args, future = entry
    try:
        outcomes.value(index, future.result())
    except RemoteException as error:
        delay = outcomes.error(index, error)
        if delay is not None:
            time.sleep(delay)
            _attempt(process, f, index, args, outcomes)


def _attempt(process: Process, f: Callable[..., Any], index: int, args: Any, outcomes: Outcomes) -> None:
    while True:
        try:
            value = process.call_here(f, args, {})
        except RemoteException as error:
            delay = outcomes.error(index, error)
            if delay is None:
                return
            time.sleep(delay)
        else:
            outcomes.value(index, value)
            return
