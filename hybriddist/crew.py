"""Who works for a map: all workers of the cluster, those of them that no other map has, or those that a pool gives.

A map asks again and again, so that workers which come while it runs join in. Those of a pool are taken when there is
something to do, and put back when there is nothing left: several maps and calls may share a pool. A map that runs on a
worker works itself too, with the CPU that it would only wait with (on a pool's map: if it is a member of the pool, and
gets nobody). So a map inside a map need not wait for a worker that the outer one has, and a worker computes for one of
them at a time. Two maps that hold each other's pools do wait for each other, as whoever takes from two pools may.

What this module does not know: what is to be done.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Container, Iterable, Sequence, Sized
from contextlib import suppress
from time import monotonic
from typing import Any, Final, Protocol

from hybriddist.cluster import replace_worker
from hybriddist.core.engagements import Key
from hybriddist.errors import ClusterError, HybridDistError, ProcessExitedException
from hybriddist.ids import DRIVER
from hybriddist.placing import Placing
from hybriddist.pools import AbstractWorkerPool
from hybriddist.runtime.completion import Completion
from hybriddist.runtime.current import current
from hybriddist.runtime.process import Process

_TAKE_SECONDS: Final = 0.02
_ANSWERS: Final = 10
"""How long to wait for a worker that is said to be free, if somebody was faster: so many seconds, and as many times as
long as the pool's process, which may be far away or busy, took to say so."""

_POOL_SECONDS: Final = 0.1
"""How long a map without any worker waits for the pool before it looks at what else there is."""


class Known(Container[int], Sized, Protocol):
    """Those that work already."""


class Crew:
    """All workers of the cluster, but for those that work for maps on workers, unless there are no others.

    Args:
        process: this process.
    """

    def __init__(self, process: Process) -> None:
        self._process = process
        self._placing = Placing(process)
        self._replacements = 0
        """How many are on their way."""
        self._key = process.pid, next(process.engagements.numbers)
        self._engaged: set[int] = set()
        """Whom other maps are told of, or a pool misses."""

    def newcomers(self, known: Known, left: int | None, most: float) -> list[int]:
        """Workers that are not known yet.

        Args:
            known: those that work already. If nobody does there is time to wait.
            left: the items that are to be given out; None: nobody knows.
            most: so many are enough, at least 1.

        Raises:
            ProcessExitedException: nobody is left.
        """
        unknown = self._unknown(known)
        process = self._process
        busy = process.engagements.engaged_by_others(process.pid, process.membership.procs())
        found = [pid for pid in unknown if pid not in busy]
        if not found and not len(known):
            found = unknown
        wanted = most if left is None else min(most, max(1, left))
        found = found[: None if wanted == math.inf else int(wanted)]
        self._engage(found)
        return found

    def _engage(self, pids: Iterable[int]) -> None:
        """The other maps are to know whom this one has."""
        new = [pid for pid in pids if pid not in self._engaged]
        if new:
            self._engaged.update(new)
            self._tell(engage, new)

    def _tell(self, function: Callable[..., None], *args: Any) -> None:
        """Have it done by the driver, at once: the next map of this process asks who is idle."""
        with suppress(ProcessExitedException):  # the driver is gone, and all ends
            self._process.fetch_call(function, DRIVER, (self._key, *args), {})

    def _unknown(self, known: Known) -> list[int]:
        membership, own = self._process.membership, self._process.pid
        pids = membership.workers()
        if pids == [DRIVER]:
            if self._replacements:
                return []
            raise ProcessExitedException(0, "all workers are gone while a map was running")
        return [pid for pid in pids if pid not in known and (pid == own or membership.may_connect(own, pid))]

    def function_on(self, pid: int, f: Callable[..., Any]) -> tuple[Callable[..., Any], Any]:
        """What is to be called on a worker, and what is to be kept until it has ended.

        Raises:
            ProcessExitedException: the worker is gone.
        """
        return self._placing.function_on(pid, f)

    def dismiss(self, pids: Iterable[int]) -> None:
        """There is nothing more for these workers."""
        engaged = list(self._engaged.intersection(pids))
        if engaged:
            self._engaged.difference_update(engaged)
            self._tell(release, engaged)

    def disband(self) -> None:
        """Dismiss all. What an interrupt interrupts is done later, on another thread."""
        try:
            self._end()
        except BaseException:
            self._process.spawn(self._end, "hybriddist-crew")
            raise

    def _end(self) -> None:
        self._tell(end)  # whatever we know of whom we have: an interrupt may have kept us from hearing it

    def replace(self, pid: int, unit: Completion) -> None:
        """End a worker that does not react, unless it does before that, and start another one like it.

        Returns at once.
        """
        self._replacements += 1
        self._process.spawn(lambda: self._replace(pid, unit), "hybriddist-replacement")

    def _replace(self, pid: int, unit: Completion) -> None:
        try:
            if unit.done:
                return
            new = self._process.fetch_call(replace_worker, DRIVER, (pid,), {})
            if new is not None:
                self._join(new)
        except HybridDistError as error:
            print(f"hybriddist: worker {pid} did not react, and there is no other for it: {error}", file=sys.stderr)
        finally:
            self._replacements -= 1

    def _join(self, pid: int) -> None:
        """A new worker has come in place of another."""


class IdleCrew(Crew):
    """The workers that no map has, and this process: for a map that runs on a worker."""

    def newcomers(self, known: Known, left: int | None, most: float) -> list[int]:
        """See `Crew.newcomers`. The driver says who is idle."""
        own = self._process.pid
        unknown = self._unknown(known)
        found = [own] if own in unknown else []
        others = [pid for pid in unknown if pid != own]
        wanted = (most if left is None else min(most, max(1, left))) - len(found)
        if others and wanted > 0:
            idle = self._process.fetch_call(engage_idle, DRIVER, (self._key, others, wanted), {})
            self._engaged.update(idle)
            found += idle
        return found


def engage(key: Key, pids: Sequence[int]) -> None:
    """On the driver: see `Engagements.engage`."""
    current().engagements.engage(key, pids)


def engage_idle(key: Key, pids: Sequence[int], most: float) -> list[int]:
    """On the driver: see `Engagements.engage_idle`."""
    process = current()
    return process.engagements.engage_idle(key, pids, most, process.membership.procs())


def release(key: Key, pids: Sequence[int]) -> None:
    """On the driver: see `Engagements.release`."""
    current().engagements.release(key, pids)


def end(key: Key) -> None:
    """On the driver: see `Engagements.end`."""
    current().engagements.end(key)


class PoolCrew(Crew):
    """The workers of a pool.

    Args:
        pool: the pool.
    """

    def __init__(self, process: Process, pool: AbstractWorkerPool) -> None:
        super().__init__(process)
        self._pool = pool

    def newcomers(self, known: Known, left: int | None, most: float) -> list[int]:
        """See `Crew.newcomers`. Takes them from the pool.

        Raises:
            ClusterError: nobody in the pool lives.
        """
        found: list[int] = []
        wanted = most if left is None else min(most, max(1, left))
        while len(found) < wanted:
            asked = monotonic()
            if not self._pool.isready():
                break
            pid = self._take(_TAKE_SECONDS + _ANSWERS * (monotonic() - asked))
            if pid is None:
                break  # somebody was faster
            if pid in known or pid in found:  # the pool gives one several times: pid 1, where there are no workers
                self._pool.put(pid)
                break
            found.append(pid)
        if not found and not len(known):
            own = self._process.pid
            if own != DRIVER and self._pool.has_member(own):
                return [own]  # not from the pool: nobody waits for it
            pid = self._take(_POOL_SECONDS)
            if pid is not None:
                found.append(pid)
        return found

    def _take(self, seconds: float) -> int | None:
        try:
            pid = self._pool.take(timeout=seconds)
        except TimeoutError:
            return None
        except ClusterError:
            if self._replacements:  # the last member is gone, and another is on its way
                return None
            raise
        self._engage((pid,))
        return pid

    def function_on(self, pid: int, f: Callable[..., Any]) -> tuple[Callable[..., Any], Any]:
        if pid in self._engaged:
            there, kept = self._pool.function_on(pid, f)
            if there is not f:
                return there, kept
        return super().function_on(pid, f)

    def dismiss(self, pids: Iterable[int]) -> None:
        taken = self._engaged.intersection(pids)
        super().dismiss(taken)
        for pid in taken:
            self._pool.put(pid)

    def _end(self) -> None:
        while self._engaged:
            self._pool.put(self._engaged.pop())
        super()._end()

    def _join(self, pid: int) -> None:
        self._pool.push(pid)
