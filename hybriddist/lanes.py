"""What is under way to each worker of a map: calls, in order, and how many or how large they may be.

A worker that gets its next item only after the last result has come idles for a round trip; with items of
microseconds that is most of the time. So there is a second thing under way behind the one it is at:

* of single items as many as fit in 2 ms, and never a second one behind anything slower: a slow item holds back no
  other that a free worker could take;
* of batches two, each made to take 20 ms; likewise only one, if an item takes longer than that, or nobody knows yet.

What an item costs is what its worker says, or what it takes to send it, if that is more. Not the time from result to
result: with many workers on few CPUs each waits for the others most of that time, and its window would stay small just
where every message costs a switch between processes (64 workers on two CPUs did a fortieth of the items).

What this module does not know: how calls travel, and what becomes of results (``mapping.py``).
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from time import monotonic
from typing import TYPE_CHECKING, Any, Final

from hybriddist.batches import BUDGET_SECONDS
from hybriddist.runtime.completion import Completion
from hybriddist.supply import Entry

if TYPE_CHECKING:
    from hybriddist.future import Future
    from hybriddist.runtime.peer import Peer

_AHEAD_SECONDS: Final = 0.002
"""Work that may wait at a worker behind the item it is at."""

_MOST_AHEAD: Final = 256

A_DOZEN: Final = 16
"""Results of tiny items that are handled together."""

_BATCH_SECONDS: Final = 0.4 * BUDGET_SECONDS
_LANE_SECONDS: Final = 0.005
"""Work that is worth a further lane."""
_BATCHES: Final = 2
_MOST_IN_BATCH: Final = 1 << 14
_FIRST_LANES: Final = range(2, 9)
"""A map of batches begins with as many lanes as there are CPUs, within these bounds."""
_FIRST_ANSWER_SECONDS: Final = 0.002
_CALL_SECONDS: Final = 0.0002
"""What a batch may take beside its items, where processes wait for a CPU."""
_EVIDENCE: Final = 4
"""A window may be a quarter of the items that have ended, in all lanes, when they were as quick as that."""


class Unit(Completion):
    """One call under way: of an item, or of a batch. Its completion is noted by its map.

    Attributes:
        indices: of the items.
        items: their arguments.
        pid: where it runs.
        peer: None: it runs in this process, and ``future`` brings its result.
        shared: whether it was sent in one message with others.
        sent: when (`time.monotonic`).
        begun: when its worker said that it begins (`time.monotonic`); 0.0: it has not said so.
        note: called by whoever receives its result.
        withdrawn: it could not be sent, and its items were given back.
        overdue: when it has run for too long and was interrupted: the time at which its worker is given up.
    """

    __slots__ = ("begun", "future", "indices", "items", "note", "overdue", "peer", "pid", "sent", "shared", "withdrawn")

    future: Future

    def __init__(
        self,
        indices: Sequence[int],
        items: Sequence[Any],
        pid: int,
        peer: Peer | None,
        note: Callable[[Unit], None],
        now: float,
        *,
        shared: bool = False,
    ) -> None:
        """It is about to be sent."""
        # Not `super().__init__()`: nobody waits for a unit alone, and that is half of the time.
        self.done = self.started = False
        self.outcome = 0
        self.content = None
        self.indices = indices
        self.items = items
        self.pid = pid
        self.peer = peer
        self.note = note
        self.sent = now
        self.begun = 0.0
        self.overdue = 0.0
        self.shared = shared
        self.withdrawn = False

    def entries(self, first: int = 0) -> Iterator[Entry]:
        """Its items, one by one, from position ``first`` on."""
        return zip(self.indices[first:], self.items[first:], strict=True)

    def begin(self) -> None:
        """The worker says that it begins."""
        super().begin()
        self.begun = monotonic()

    def complete(self, outcome: int, content: Any) -> None:
        """The result is here, or the worker is gone."""
        self.outcome = outcome
        self.content = content
        self.done = True
        self.note(self)


class Pace:
    """What all lanes of a map know together.

    Args:
        cpus: that this process may use.

    Attributes:
        ended: how many items have.
    """

    def __init__(self, cpus: int) -> None:
        self._fewest = min(max(cpus, _FIRST_LANES[0]), _FIRST_LANES[-1])
        self.ended = 0
        self._heard = monotonic()
        self._recent_items = 0.0
        self._recent_seconds = 0.0

    def end(self, items: int, seconds: float) -> None:
        """A batch has ended, in which so many items were run, in such a time."""
        self.ended += items
        self._heard = monotonic()
        self._recent_items = 0.9 * self._recent_items + items
        self._recent_seconds = 0.9 * self._recent_seconds + max(0.0, seconds - _CALL_SECONDS)

    def want_another(self) -> None:
        """An item failed at a worker, and is to be tried at another: there should be one more."""
        self._fewest += 1

    def patience(self) -> float:
        """Seconds without an answer after which a map of batches is no longer content with the lanes that it has."""
        return BUDGET_SECONDS if self.ended else _FIRST_ANSWER_SECONDS

    def lanes_worth(self, left: int | None, now: float) -> float:
        """How many lanes of batches there is work for.

        To wake a worker costs as much as some hundred tiny items (with 64 workers on two CPUs 100,000 of them took
        three times as long as with two, and 1.5 times with eight at first). So a map begins with a few lanes. It opens
        more when each will have some milliseconds of work, or when those that there are do not answer.

        Args:
            left: items that nobody has; None: nobody knows, and as many are expected as have been.
        """
        if now - self._heard > self.patience():
            return math.inf
        if not self._recent_items:
            return self._fewest
        work = (self.ended if left is None else left) * self._recent_seconds / self._recent_items
        return max(self._fewest, work / _LANE_SECONDS)


class Lane:
    """The units under way to one worker, in the order in which they were sent."""

    __slots__ = (
        "_batches",
        "_busy_ns",
        "_ended",
        "_pace",
        "_sending",
        "_sent",
        "f",
        "kept",
        "size",
        "under_way",
        "victim",
        "window",
    )

    f: Callable[..., Any]
    """What is called on this worker."""
    kept: Any
    """Must live as long as that is called."""

    def __init__(self, pace: Pace, *, batches: bool) -> None:
        self._pace = pace
        self._batches = batches
        self.under_way: deque[Unit] = deque()
        self.window = 1
        """How many units may be under way."""
        self.size = 1
        """How many items a unit may have."""
        self.victim: Unit | None = None
        """The unit at which its worker died."""
        # Since the last look:
        self._busy_ns = 0
        self._ended = 0
        self._sending = 0.0
        self._sent = 0

    def sent(self, units: Sequence[Unit], seconds: float) -> None:
        """Units were sent; so long it took."""
        self._sending += seconds
        for unit in units:
            self._sent += len(unit.items)

    def end(self, unit: Unit, items: int, nanoseconds: int) -> None:
        """A unit has ended, in which so many items were run, in such a time."""
        under_way = self.under_way
        if under_way[0] is unit:
            under_way.popleft()
        else:
            under_way.remove(unit)
        self._ended += items
        self._busy_ns += nanoseconds
        if self._batches:
            self._pace.end(items, nanoseconds * 1e-9)
        else:
            self._pace.ended += items

    def widen(self) -> None:
        """Set the window to what takes `_AHEAD_SECONDS`; it grows step by step, and shrinks at once."""
        seconds = self._item_seconds()
        if seconds is not None:
            most = max(self.window * 2, self._pace.ended // _EVIDENCE)
            self.window = max(1, min(_MOST_AHEAD, most, int(_AHEAD_SECONDS / seconds)))

    def enlarge(self) -> None:
        """Set the size of the next batch to what takes `_BATCH_SECONDS`, likewise, and how many there may be."""
        seconds = self._item_seconds()
        if seconds is not None:
            most = max(self.size * 4, self._pace.ended // _EVIDENCE)
            self.size = max(1, min(_MOST_IN_BATCH, most, int(_BATCH_SECONDS / seconds)))
            self.window = _BATCHES if seconds < _BATCH_SECONDS else 1

    def _item_seconds(self) -> float | None:
        """What an item cost since the last look; None: nothing is known."""
        if not self._ended:
            return None
        seconds = max(self._busy_ns * 1e-9 / self._ended, 1e-7)
        if self._sent:
            seconds = max(seconds, self._sending / self._sent)
        self._busy_ns = self._ended = self._sent = 0
        self._sending = 0.0
        return seconds

    def fair_size(self, left: int | None, lanes: int) -> int:
        """Items of the next batch. Near the end fewer, down to an eighth, so that all lanes end at about the same time.

        Args:
            left: items that nobody has, if that is known.
        """
        size = self.size
        return size if left is None else max(1, min(size, max(size // 8, left // (2 * lanes))))

    def has_many(self) -> bool:
        """Whether there is so much under way that results may be handled by the dozen. To wait for each costs more than
        to handle it (10,000 no-ops, one map after the other: 55 ms, and 65)."""
        return len(self.under_way) >= 2 * A_DOZEN

    def at_work(self) -> Unit | None:
        """The unit that the worker is at, as far as is known: the oldest that is not said to have begun before."""
        return next((unit for unit in self.under_way if not unit.started), None)
