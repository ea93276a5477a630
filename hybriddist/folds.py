"""Reductions: each worker folds its chunk, neighbours combine large partial results, the caller folds the rest.

::

    chunks      0     1     2     3   │   4        of one node │ of another
    workers     2     3     2     3   │   4
    partial     p0    p1    p2    p3  │   p4       small: sent to the caller; large: kept where it is
                 └─◄──┘      └─◄──┘   │            the left one's worker fetches the right one, in shared memory
                    └────◄────┘       │
    caller      (init · p0123) · p4                one value a node

Which partial results meet is fixed by the chunks and the nodes that have them, not by who is quick: inside a node,
rounding errors are the same in each run. Where all are small, further calls are not worth it: the caller folds them
from the left.

What this module does not know: where the items come from, and who chose the processes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from itertools import zip_longest
from typing import Any

from hybriddist.chunks import UnderWay, cut, run_chunk
from hybriddist.core.partition import fold_rounds, neighbours
from hybriddist.core.payload import is_small, safe_text
from hybriddist.deadline import NEVER, Deadline
from hybriddist.errors import ProcessExitedException, RemoteException
from hybriddist.future import Future
from hybriddist.limits import FAILURE_GRACE_SECONDS, SMALL_PARTIAL_BYTES
from hybriddist.runtime.inquiry import member
from hybriddist.runtime.process import Process

Reducer = Callable[[Any, Any], Any]


class Kept:
    """A partial result that stayed with the process that computed it."""

    __slots__ = ("future",)

    def __init__(self, future: Future) -> None:
        self.future = future


class _Lost:
    """Instead of a combined result: the process that kept one of the two is gone."""

    __slots__ = ("error",)

    def __init__(self, error: ProcessExitedException) -> None:
        self.error = error


# ---- on the workers ---------------------------------------------------------------------------------------------


def _fold_chunk(f: Callable[..., Any], chunk: Any, reduce: Reducer, chunked: bool, may_stay: bool) -> Any:
    value = run_chunk(f, chunk, reduce, chunked)
    return _kept_if_large(value) if may_stay else value


def _combine(reduce: Reducer, left: Any, right: Any, may_stay: bool) -> Any:
    try:
        left, right = (part.future.fetch() if isinstance(part, Kept) else part for part in (left, right))
    except ProcessExitedException as error:
        return _Lost(error)
    value = reduce(left, right)
    return _kept_if_large(value) if may_stay else value


def _kept_if_large(value: Any) -> Any:
    return value if is_small(value, SMALL_PARTIAL_BYTES) else Kept(Future().put(value))


# ---- at the caller ----------------------------------------------------------------------------------------------


class Reduction:
    """One loop with a reducer.

    Args:
        f: called for each item, or for each chunk if ``chunked``.
        items: what is cut; ``parts`` are the positions of the chunks, in order.
        pids: who works; each gets its next chunk when it has done one. One that is named twice has two at a time.
    """

    def __init__(
        self,
        process: Process,
        f: Callable[..., Any],
        items: Any,
        parts: Sequence[range],
        pids: Sequence[int],
        reduce: Reducer,
        chunked: bool,
    ) -> None:
        self._process = process
        self._f = f
        self._items = items
        self._parts = parts
        self._pids = pids
        self._reduce = reduce
        self._chunked = chunked
        self._under_way = UnderWay(process)
        self._places: list[int] = [0] * len(parts)
        """Which process has, or had, each chunk."""
        self._nodes = {pid: member(process, pid).node for pid in pids}
        elsewhere = sorted(set(pids) - {process.pid})
        may_connect = process.membership.may_connect
        self._combines = len(parts) > 1 and all(may_connect(a, b) for a in elsewhere for b in elsewhere if a < b)
        """Whether partial results may stay: there are several, and their processes may talk to each other."""

    def run(self) -> list[Any]:
        """The values that are left for the caller to fold, in order.

        If anything goes wrong, a Ctrl-C included, all that is under way is cancelled.
        """
        try:
            partials = self._fold_chunks()
            self._combine_neighbours(partials)
            return [part.future.fetch() if isinstance(part, Kept) else part for part in partials]
        except BaseException:
            self._under_way.cancel()
            raise

    def _fold_chunks(self) -> list[Any]:
        left = deque(range(len(self._parts)))

        def begin(pid: int) -> None:
            if left:
                index = left.popleft()
                self._places[index] = pid
                may_stay = self._combines and pid != self._process.pid
                chunk = cut(self._items, self._parts[index])
                self._under_way.begin(index, pid, _fold_chunk, self._f, chunk, self._reduce, self._chunked, may_stay)

        for pid in self._pids:
            begin(pid)
        return self._collect([None] * len(self._parts), lambda index: begin(self._places[index]))

    def _combine_neighbours(self, partials: list[Any]) -> None:
        """Combine, on the workers, what is kept there and its neighbours of the same node. Shortens the list."""
        runs = [run for run in neighbours(self._labels()) if any(isinstance(partials[i], Kept) for i in run)]
        used: set[int] = set()
        for pairs in zip_longest(*(_rounds(run) for run in runs), fillvalue=[]):
            for left, right, last in (pair for pairs_of_run in pairs for pair in pairs_of_run):
                holder = next((part for part in (partials[left], partials[right]) if isinstance(part, Kept)), None)
                pid = self._places[left] if holder is None else holder.future.where
                self._under_way.begin(left, pid, _combine, self._reduce, partials[left], partials[right], not last)
                used.add(right)
            self._collect(partials)
            for index in used:
                partials[index] = None  # its worker frees it now, and not at the end
        partials[:] = [part for index, part in enumerate(partials) if index not in used]

    def _labels(self) -> list[int]:
        """A number for each chunk: equal for neighbours on one node that may be combined there."""
        here = self._process.pid
        return [
            -1 - index if not self._combines or pid == here else self._nodes[pid]
            for index, pid in enumerate(self._places)
        ]

    def _collect(self, results: list[Any], then: Callable[[int], None] = lambda _: None) -> list[Any]:
        """Wait for all that is under way, and put the values into ``results``.

        Args:
            then: called with the key of each call that ended well, while none has failed: it may begin another.
        """
        failures: dict[int, Exception] = {}
        grace = NEVER
        while len(self._under_way):
            ended = self._under_way.next(grace.remaining())
            if ended is None:
                break  # the others go on without an error
            key, future = ended
            try:
                value = future.fetch()
                if isinstance(value, _Lost):
                    raise value.error
            except Exception as error:
                if not failures:
                    grace = Deadline(FAILURE_GRACE_SECONDS)
                failures[key] = error
                continue
            results[key] = value
            if not failures:
                then(key)
        if failures:
            raise self._told_together(failures)
        return results

    def _told_together(self, failures: dict[int, Exception]) -> Exception:
        """The first failure in order of the chunks, with the others in its notes and in ``others``."""
        first, *others = sorted(failures)
        error = failures[first]
        for index in others:
            error.add_note(f"Also failed: {self._name(index)}: {_line(failures[index])}")
        error.others = tuple(failures[index] for index in others)  # type: ignore[attr-defined]
        return error

    def _name(self, index: int) -> str:
        return chunk_name(index, self._parts, self._places[index])


def chunk_name(index: int, parts: Sequence[range], pid: int) -> str:
    """How people count: chunks from 1, items by position."""
    part = parts[index]
    return f"chunk {index + 1} of {len(parts)} (items[{part.start}:{part.stop}]) on process {pid}"


def _rounds(run: range) -> list[list[tuple[int, int, bool]]]:
    """For each round: left, right, and whether the result is that of the whole run."""
    rounds = list(fold_rounds(len(run)))
    return [
        [(run[left], run[right], number == len(rounds)) for left, right in pairs]
        for number, pairs in enumerate(rounds, 1)
    ]


def _line(error: Exception) -> str:
    """One line of an error: of a remote one the original's type and text."""
    original = error.__cause__ if isinstance(error, RemoteException) and error.__cause__ is not None else error
    return safe_text(original).partition("\n")[0]


__all__ = ["Kept", "Reduction", "chunk_name"]
