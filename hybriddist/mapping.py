"""The engine of `pmap` and `imap`: feed the workers, collect what comes, give out again what has to be.

One thread, the caller's, does all of it; iterators, `on_error` and `retry_check` run there and nowhere else. Results
are noted by whichever thread receives them and handled in order of arrival::

    supply ─► feed ─► units under way, by lane ─► ended units noted ─► handle ─► outcomes
      ▲                                                                  │
      └────────── retries, and what had not begun ───────────────────────┘

A worker answers unit by unit. It says so when it begins one while an older one has no result, so when it dies it is
known which units had begun, and which never did: only those are given to others. A worker that maps takes its share
too: one unit at a time, on another thread, while this one waits.

What this module does not know: how calls travel, who works (``crew.py``), how much goes to whom (``lanes.py``), what is
left to do (``supply.py``), how long an item may take (``time_limits.py``), and what errors and results come to
(``outcomes.py``).
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import CancelledError
from functools import partial
from typing import Any, Final

from hybriddist.batches import Report, open_report, run_batch
from hybriddist.calls import remotecall
from hybriddist.core.messages import EachFlag, Outcome
from hybriddist.crew import Crew
from hybriddist.deadline import Deadline
from hybriddist.errors import HybridDistError, ProcessExitedException, SerializeError
from hybriddist.future import Future
from hybriddist.ids import DRIVER
from hybriddist.lanes import A_DOZEN, Lane, Pace, Unit
from hybriddist.outcomes import Outcomes
from hybriddist.runtime.asking import LOST, decline_value
from hybriddist.runtime.completion import Completion
from hybriddist.runtime.process import Process, usable_cpu_count
from hybriddist.supply import Entry, Supply
from hybriddist.time_limits import TimeLimit

_LOOK_SECONDS: Final = 0.1
"""While there is something to give out, how often new workers are looked for at least."""

_LOOK_SOON_SECONDS: Final = 0.001
"""When results are handled by the dozen, how late they may be."""

_VALUE: Final = int(Outcome.VALUE)
_NOT_SENT: Final = -2
"""Outcome of an item that cannot be pickled; the content is the exception."""

_Part = tuple[Sequence[int], Sequence[Any]]
"""Items for one unit: their indices, and their arguments."""


class Mapping:
    """One map over workers.

    Args:
        process: this process.
        f: the function.
        supply: the arguments of each item, as a tuple; in batches of items with one argument: that.
        outcomes: hears of the ends of items.
        crew: who works.
        batch_size: items a message; 0: batches of adapting size, each one call.
        item_timeout: seconds for an item, from its begin.
        several: whether items are tuples.
    """

    def __init__(
        self,
        process: Process,
        f: Callable[..., Any],
        supply: Supply,
        outcomes: Outcomes,
        crew: Crew,
        batch_size: int = 1,
        item_timeout: float | None = None,
        several: bool = True,
    ) -> None:
        self._process = process
        self._batched = batch_size == 0
        self._f = f
        self._several = several
        self._supply = supply
        self._outcomes = outcomes
        self._crew = crew
        self._flags = EachFlag.PATIENT if self._batched else 0 if item_timeout is None else EachFlag.ANNOUNCED
        self._batch_size = batch_size
        self._limit = None if item_timeout is None else TimeLimit(item_timeout, process, crew)
        self._pace = Pace(usable_cpu_count())
        self._lanes: dict[int, Lane] = {}
        self._hungry: dict[int, None] = {}
        """The lanes that may have room, longest since first: so a retry goes to another worker."""
        self._ended: deque[Unit] = deque()
        self._news = Completion()
        self._enough = 1
        """How many ended units are worth waking up for."""
        self._looked = self._worth = 0.0
        """When new workers were looked for, and how many lanes there was work for then."""

    def run(self) -> Generator[None, None, None]:
        """Feed and collect until all is done, with a stop whenever something was handled.

        If it fails, or is closed before the end, what is still under way is cancelled.
        """
        try:
            yield from self._run()
        except BaseException:
            self._cancel()
            raise
        finally:
            self._crew.disband()

    def is_starving(self) -> bool:
        """Whether some worker has nothing to do, only because nothing more may be read."""
        return self._supply.may_read <= 1 and any(not lane.under_way for lane in self._lanes.values())

    def _cancel(self) -> None:
        for lane in self._lanes.values():
            if lane.under_way and (peer := lane.under_way[0].peer) is not None:
                self._process.cancel_calls(peer, lane.under_way)
            for unit in lane.under_way:
                unit.note = decline_value
                if unit.peer is None:
                    unit.future.cancel()
        while self._ended:
            decline_value(self._ended.popleft())

    def _run(self) -> Generator[None, None, None]:
        ended, supply = self._ended, self._supply
        while True:
            self._feed()
            if not ended:
                if any(lane.under_way for lane in self._lanes.values()):
                    self._news = news = Completion()
                    self._wait(news)
                elif supply.is_empty():
                    return
                elif not supply.is_held_back():
                    time.sleep(min(max(supply.seconds(), 0.001), _LOOK_SECONDS))
                    continue
            while ended:
                self._handle(ended.popleft())
            if self._limit is not None:
                self._limit.enforce(self._under_way())
            yield

    def _wait(self, news: Completion) -> None:
        seconds = self._seconds_to_wait()
        if all(lane.has_many() for lane in self._lanes.values()):
            self._enough = A_DOZEN
            seconds = _LOOK_SOON_SECONDS if seconds is None else min(seconds, _LOOK_SOON_SECONDS)
        else:
            self._enough = 1
        if len(self._ended) >= self._enough:
            return
        at_work = [lane.under_way[0].peer for lane in self._lanes.values() if lane.under_way]
        peers = [peer for peer in at_work if peer is not None]
        if len(peers) == len(at_work):
            self._process.wait_for_any(news, peers, seconds)
        else:
            self._process.wait_here(news, None, Deadline(seconds))

    def _seconds_to_wait(self) -> float | None:
        """How long to wait for results: until something is due, and not long while a new worker would have work."""
        times = []
        if not self._supply.is_empty() and not self._supply.is_held_back():
            patience = _LOOK_SECONDS if self._worth == math.inf else self._pace.patience()
            times = [patience, self._supply.seconds()]
        if self._limit is not None:
            times.append(self._limit.until_due(self._under_way()))
        return max(0.0, min(times)) if times else None

    def _note(self, unit: Unit) -> None:
        """A unit has ended: called by whoever received its result."""
        self._ended.append(unit)
        news = self._news
        if not news.done and len(self._ended) >= self._enough:
            news.complete(0, None)

    # ---- feeding ----------------------------------------------------------------------------------------------

    def _feed(self) -> None:
        """Fill the lanes that have done half of what they had. New workers join in, those that leave get no more."""
        if self._supply.is_empty() or self._supply.is_held_back():
            return
        now, left = time.monotonic(), self._supply.left()
        worth = self._pace.lanes_worth(left, now) if self._batched else math.inf
        if now - self._looked >= _LOOK_SECONDS or not self._lanes or worth > self._worth:
            self._looked, self._worth = now, worth
            for pid in reversed(self._crew.newcomers(self._lanes, left, max(1, worth - len(self._lanes)))):
                self._open_lane(pid)
        working = {DRIVER, *self._process.membership.workers()}
        for pid in list(self._hungry):
            lane = self._lanes[pid]
            limit = 0 if pid == self._process.pid else lane.window // 2
            if len(lane.under_way) <= limit:
                if pid not in working:
                    if not lane.under_way:
                        self._retire(pid)
                elif not self._fill(pid, lane):
                    if self._supply.is_empty():
                        self._retire(*[pid for pid in self._hungry if not self._lanes[pid].under_way])
                    return
            self._hungry.pop(pid, None)

    def _open_lane(self, pid: int) -> None:
        """A worker takes part."""
        lane = self._lanes[pid] = Lane(self._pace, batches=self._batched)
        self._hungry = {pid: None, **self._hungry}
        try:
            f, lane.kept = self._crew.function_on(pid, self._f)
        except ProcessExitedException:  # a moment ago it was there
            self._retire(pid)
            return
        lane.f = partial(run_batch, f, several=self._several) if self._batched else f

    def _fill(self, pid: int, lane: Lane) -> bool:
        """Send until the window is full; False if there is nothing to send."""
        if self._batched:
            lane.enlarge()
        elif self._limit is None:  # else each goes alone, to the thread that interrupts reach best
            lane.widen()
        if pid == self._process.pid:
            return self._start_here(pid, lane)
        while (room := lane.window - len(lane.under_way)) > 0:
            if self._batched:
                indices, items = self._supply.take(lane.fair_size(self._supply.left(), len(self._lanes)))
                parts: list[_Part] = [(indices, items)] if items else []
            else:
                indices, items = self._supply.take(self._batch_size if self._batch_size > 1 else room)
                parts = [((index,), (item,)) for index, item in zip(indices, items, strict=True)]
            if not parts:
                return False
            if not self._send(pid, lane, parts):
                return True
        return True

    def _arguments(self, items: Sequence[Any]) -> Any:
        return (items,) if self._batched else items[0]

    def _start_here(self, pid: int, lane: Lane) -> bool:
        """This process's own share; False if there is nothing to do."""
        indices, items = self._supply.take(
            lane.fair_size(self._supply.left(), len(self._lanes)) if self._batched else 1
        )
        if not items:
            return False
        unit = Unit(indices, items, pid, None, self._note, time.monotonic())
        unit.begun = unit.sent
        unit.future = future = remotecall(lane.f, pid, *self._arguments(items))
        lane.under_way.append(unit)
        lane.sent((unit,), 0.0)
        future.add_done_callback(partial(_end_here, unit))
        return True

    def _send(self, pid: int, lane: Lane, parts: list[_Part]) -> bool:
        """Send parts in one message, a unit each. False: the worker is gone, and gets no more."""
        units: list[Unit] = []
        try:
            peer = self._process.peer(pid)
            note, now, shared = self._note, time.monotonic(), len(parts) > 1
            units = [Unit(indices, items, pid, peer, note, now, shared=shared) for indices, items in parts]
            arguments = [self._arguments(items) for _, items in parts]
            lane.under_way.extend(units)  # first: a Ctrl-C may strike when they have just gone
            try:
                self._process.start_each(lane.f, peer, arguments, units, self._flags)
            except Exception:
                for _ in units:
                    lane.under_way.pop()
                raise
            lane.sent(units, time.monotonic() - now)
        except ProcessExitedException:
            # It went before it was asked: the items are still ours to give to another. Their units may have been told
            # of the end as well, by whoever found the connection lost.
            for unit in units:
                unit.withdrawn = True
            self._supply.give_back(entry for part in parts for entry in zip(*part, strict=True))
            if not lane.under_way:
                self._retire(pid)
            return False
        except SerializeError as error:
            return self._send_singly(pid, lane, parts, error)
        return True

    def _send_singly(self, pid: int, lane: Lane, parts: list[_Part], error: SerializeError) -> bool:
        """Something in a message cannot be pickled. Alone, each item is told from the others."""
        indices, items = parts[0]
        if len(parts) > 1 or len(items) > 1:
            alone: list[_Part] = [((index,), (item,)) for part in parts for index, item in zip(*part, strict=True)]
            return all([self._send(pid, lane, [part]) for part in alone])
        peer = self._process.peer(pid)
        self._process.check_function(peer, lane.f)  # if it is the function, no item can be sent: raised here
        unit = Unit(indices, items, pid, peer, self._note, time.monotonic())
        lane.under_way.append(unit)
        lane.sent((unit,), 0.0)
        unit.complete(_NOT_SENT, error)
        return True

    def _retire(self, *pids: int) -> None:
        """Workers that are gone or have nothing to do: should they be needed again, they are newcomers."""
        for pid in pids:
            del self._lanes[pid]
            self._hungry.pop(pid, None)
        self._crew.dismiss(pids)

    # ---- handling ---------------------------------------------------------------------------------------------

    def _handle(self, unit: Unit) -> None:
        if unit.withdrawn:
            return
        lane = self._lanes[unit.pid]
        if unit.outcome == _VALUE and unit.peer is not None:
            lane.end(unit, self._settle(unit), unit.content.nanoseconds)
        else:
            self._handle_rarely(unit, lane)
        if not lane.under_way and (lane.victim is not None or self._supply.is_empty()):
            self._retire(unit.pid)
        elif lane.victim is None:
            self._hungry.pop(unit.pid, None)  # it may have had room before: now it is the last
            self._hungry[unit.pid] = None

    def _handle_rarely(self, unit: Unit, lane: Lane) -> None:
        """A unit that has no value, or ran in this process."""
        outcome = unit.outcome
        if outcome == LOST and lane.victim is None:
            # What came before the death has been handled. Of what is left and is not said to have begun, the worker was
            # at the oldest, if at any (see `running.Each`).
            lane.victim = lane.at_work() or unit
        count = 0
        if outcome == LOST and unit is not lane.victim and not unit.started:
            self._supply.give_back(unit.entries())  # it has not begun, so to send it again repeats nothing
        elif outcome == Outcome.NOT_RUN and (unit.shared or len(unit.items) > 1):
            # Something in the message cannot be unpickled there. Alone, each item is told from the others.
            for entry in unit.entries():
                self._supply.again(entry, 0.0)
        else:
            count = self._settle(unit)
        lane.end(unit, count, int((time.monotonic() - unit.sent) * 1e9) if unit.peer is None else 0)

    def _settle(self, unit: Unit) -> int:
        """Hand the ends of a unit's items on; how many were run."""
        try:
            peer = unit.peer
            if peer is None:
                value = unit.future.fetch()
            elif unit.outcome == _NOT_SENT:
                raise unit.content
            else:
                value = self._process.value_of(unit, peer)
        except (HybridDistError, CancelledError) as raised:
            error: Exception = raised
            if unit.overdue and self._limit is not None:
                error = self._limit.error()
                error.__cause__ = raised
            for entry in unit.entries():
                self._failed(entry, error)
            return len(unit.items)
        if self._batched:
            return self._settle_batch(unit, value)
        self._outcomes.value(unit.indices[0], value)
        return 1

    def _settle_batch(self, unit: Unit, report: Report) -> int:
        values = report.values
        count = len(values)
        if count < len(unit.items):
            self._supply.give_back(unit.entries(count))
        failed = open_report(report, unit.pid)
        if not failed:
            self._outcomes.values(unit.indices, values)
            return count
        for at, value in enumerate(values):
            if at not in failed:
                self._outcomes.value(unit.indices[at], value)
        for at, failure in sorted(failed.items()):
            try:
                raise failure  # handlers see it being handled, as that of an item that went alone
            except HybridDistError:
                self._failed((unit.indices[at], unit.items[at]), failure)
        return count

    def _failed(self, entry: Entry, error: Exception) -> None:
        delay = self._outcomes.error(entry[0], error)
        if delay is not None:
            self._pace.want_another()
            self._looked = 0.0
            self._supply.again(entry, delay)

    def _under_way(self) -> Iterator[Unit]:
        return (unit for lane in self._lanes.values() for unit in lane.under_way)


def _end_here(unit: Unit, _: Future) -> None:
    """It ran in this process, and its future has ended."""
    unit.complete(Outcome.VALUE, None)
