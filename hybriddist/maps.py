"""`pmap`, `imap` and `imap_unordered`: apply a function to every item, each on the next free worker.

What this module does not know: how the items get to the workers (``mapping.py``), and maps without workers
(``maps_here.py``).
"""

from __future__ import annotations

import contextlib
import math
import numbers
from collections.abc import Callable, Generator, Iterable, Iterator
from typing import Any, Final, Literal

from hybriddist.crew import Crew, IdleCrew, PoolCrew
from hybriddist.ids import DRIVER, as_whole
from hybriddist.loop_guard import refuse_on_loop
from hybriddist.mapping import Mapping
from hybriddist.maps_here import ThreadedMap, iterate_here
from hybriddist.outcomes import Outcomes, PassingOutcomes, checked_delays, common_length, common_shape, flat, in_shape
from hybriddist.pools import AbstractWorkerPool
from hybriddist.progress import Progress
from hybriddist.records import Record
from hybriddist.runtime.current import current
from hybriddist.runtime.process import Process
from hybriddist.supply import Supply

LOOK_AHEAD: Final = 16
"""Items a worker that `imap` reads ahead of what was taken from it, at least; more of quick ones."""

_MOST_LOOK_AHEAD: Final = 4096

Handler = Callable[[BaseException], Any]
Check = Callable[[Any, BaseException], Any]
BatchSize = int | Literal["auto"]


def pmap(
    f: Callable[..., Any],
    /,
    *iterables: Any,
    distributed: bool = True,
    batch_size: BatchSize = 1,
    on_error: Callable[[BaseException], Any] | None = None,
    retry_delays: Iterable[float] = (),
    retry_check: Callable[[Any, BaseException], Any] | None = None,
    progress: bool = False,
    item_timeout: float | None = None,
) -> Any:
    """``[f(x) for x in iterable]`` on the workers; of several iterables elementwise, as long as the shortest.

    Args:
        f: the function; anything callable that can be pickled.
        *iterables: read lazily, on the calling thread. Numpy arrays give an array of the same shape. A worker pool may
            come first: then its workers do it.
        distributed: False runs everything in this process, on one thread per worker.
        batch_size: items a request. They run in order, and one that takes longer than some milliseconds holds up the
            others no longer. "auto": for many small items; a batch is one call, made to take some milliseconds. Its
            items run one after the other; each has its own result, error and retries.
        on_error: called here with the original exception of an item; what it returns stands in the result. It runs
            inside an ``except`` block: a bare ``raise`` re-raises. It comes before any retry.
        retry_delays: seconds to wait before each further attempt of an item. Iterated for each item that fails, as far
            as it needs, so they may be endless, and an `ExponentialBackOff` draws each item's jitter. An iterator
            (`itertools.repeat(0.1)`) is read once, and gives all items the same delays.
        retry_check: ``check(state, exception)`` returns whether to try again, or a new state and that.
        progress: show a progress bar on stderr (with tqdm where it is installed).
        item_timeout: seconds that an item may take, from its own begin. One that takes longer is interrupted and fails
            with `TimeoutError`; a local worker that does not react to that in two seconds is ended and replaced. Items
            then go one by one, whatever the ``batch_size``. In this process an item has a thread, which is left to
            itself if it does not react.

    Returns:
        A list in input order.

    Raises:
        RemoteException: of the first item that failed, with ``.index``; the others' work is cancelled.
        ProcessExitedException: its worker died, likewise with ``.index``. A batch of "auto" dies as a whole.
        TimeoutError: of ``item_timeout``, likewise.
        ClusterError: the pool has no living worker.
        RuntimeError: called with an ``async def`` on the event loop that would have to run it.

    Example::

        hd.pmap(str.upper, ["a", "b"])      # ["A", "B"]

    Source: Julia's Distributed, ``pmap``.
    """
    task = _Task.checked(
        "pmap", f, iterables, distributed, batch_size, on_error, retry_delays, retry_check, item_timeout
    )
    with Progress(progress, task.length) as bar:
        outcomes = Outcomes(bar, *task.handling())
        process = current()
        if task.is_local(process):
            steps = task.run_here(process, outcomes, task.supply())
        else:
            steps = task.mapping(process, outcomes, task.supply()).run()
        for _ in steps:
            pass
    return outcomes.results if task.shape is None else in_shape(outcomes.results, task.shape)


def imap(
    f: Callable[..., Any],
    /,
    *iterables: Any,
    distributed: bool = True,
    batch_size: BatchSize = 1,
    on_error: Callable[[BaseException], Any] | None = None,
    retry_delays: Iterable[float] = (),
    retry_check: Callable[[Any, BaseException], Any] | None = None,
    progress: bool = False,
    item_timeout: float | None = None,
) -> Iterator[Any]:
    """`pmap` as a generator: results in input order, while the input is still being read. It may be endless.

    Args:
        f, *iterables, and the keywords: as `pmap`. They are checked now, not when the first result is asked for.

    Yields:
        The results. Not much more is read than was taken: some items a worker, more if they are quick. When it is
        closed, by ``break`` for instance, what is outstanding is cancelled.

    Raises:
        Others: as `pmap`, when all results before the failed item that were there have been taken.

    Example::

        for result in hd.imap(f, itertools.count()):
            if result > 100:
                break

    Source: `multiprocessing.pool.Pool.imap`, with a bound.
    """
    task = _Task.checked(
        "imap", f, iterables, distributed, batch_size, on_error, retry_delays, retry_check, item_timeout
    )
    return _results(task, ordered=True, shown=progress)


def imap_unordered(
    f: Callable[..., Any],
    /,
    *iterables: Any,
    distributed: bool = True,
    batch_size: BatchSize = 1,
    on_error: Callable[[BaseException], Any] | None = None,
    retry_delays: Iterable[float] = (),
    retry_check: Callable[[Any, BaseException], Any] | None = None,
    progress: bool = False,
    item_timeout: float | None = None,
) -> Iterator[Any]:
    """`imap`, with the results as they come.

    Source: `multiprocessing.pool.Pool.imap_unordered`, with a bound.
    """
    task = _Task.checked(
        "imap_unordered", f, iterables, distributed, batch_size, on_error, retry_delays, retry_check, item_timeout
    )
    return _results(task, ordered=False, shown=progress)


def _results(task: _Task, *, ordered: bool, shown: bool) -> Iterator[Any]:
    with Progress(shown, task.length) as bar:
        outcomes = PassingOutcomes(bar, *task.handling())
        process = current()
        supply = task.supply()
        if task.is_local(process):
            supply.may_read = 2 * task.threads(process)
            steps = task.run_here(process, outcomes, supply)
            yield from _taken(steps, outcomes, supply, None, ordered=ordered)
            return
        supply.may_read = LOOK_AHEAD * process.membership.nworkers()
        mapping = task.mapping(process, outcomes, supply)
        yield from _taken(mapping.run(), outcomes, supply, mapping, ordered=ordered)


def _taken(
    steps: Generator[None, None, None],
    outcomes: PassingOutcomes,
    supply: Supply,
    mapping: Mapping | None,
    *,
    ordered: bool,
) -> Iterator[Any]:
    """Run the steps of a map, and yield its results. Each result that is taken lets one more item be read."""
    taken = 0
    failure: BaseException | None = None
    more = int(supply.may_read)
    going = True
    with contextlib.closing(steps):
        while going:
            try:
                next(steps)
            except StopIteration:
                going = False
            except Exception as error:
                failure, going = error, False
            starving = mapping is not None and mapping.is_starving()
            came = outcomes.take(taken if ordered else None)
            # Results that wait here wait for a slow one before them. If there are none, all are quick.
            if starving and not outcomes.waiting and more < _MOST_LOOK_AHEAD:
                supply.may_read += more
                more *= 2
            while came:
                yield came.popleft()
                taken += 1
                supply.may_read += 1
        if failure is not None:
            raise failure


class _Task(Record):
    """What a map is to do, checked."""

    f: Callable[..., Any]
    pool: AbstractWorkerPool | None
    iterators: tuple[Iterator[Any], ...]
    """Made once: what an iterable does for that may be seen."""
    length: int | None
    """How many items there will be, if the iterables tell."""
    shape: tuple[int, ...] | None
    """Of the result, if it is to be an array."""
    distributed: bool
    batch_size: int
    """0: batches of adapting size."""
    on_error: Callable[[BaseException], Any] | None
    delays: Iterable[float]
    retry_check: Callable[[Any, BaseException], Any] | None
    item_timeout: float | None

    @classmethod
    def checked(
        cls,
        name: str,
        f: Any,
        iterables: tuple[Any, ...],
        distributed: Any,
        batch_size: Any,
        on_error: Any,
        retry_delays: Iterable[float],
        retry_check: Any,
        item_timeout: Any,
    ) -> _Task:
        """The task that these arguments describe.

        Raises:
            TypeError, ValueError: one is wrong; nothing was read or sent.
        """
        if not callable(f):
            raise TypeError(f"{name} needs a function, not {type(f).__name__}")
        pool = None
        if iterables and isinstance(iterables[0], AbstractWorkerPool):
            pool, *rest = iterables
            iterables = tuple(rest)
        if not iterables:
            raise TypeError(f"{name} needs at least one iterable")
        rows = [flat(iterable) for iterable in iterables]
        iterators = tuple(map(iter, rows))
        size = 0 if isinstance(batch_size, str) and batch_size == "auto" else as_whole(batch_size) or -1
        if size < 0:
            raise ValueError(f"batch_size must be a whole number of 1 and more, or 'auto', not {batch_size!r}")
        for keyword, function in (("on_error", on_error), ("retry_check", retry_check)):
            if function is not None and not callable(function):
                raise TypeError(f"{keyword} must be a function, not {type(function).__name__}")
        if item_timeout is not None:
            if isinstance(item_timeout, bool) or not isinstance(item_timeout, numbers.Real):
                raise TypeError(f"item_timeout must be a number of seconds, not {type(item_timeout).__name__}")
            item_timeout = float(item_timeout)
            if not 0 < item_timeout < math.inf:
                raise ValueError(f"item_timeout must be more than 0 seconds, not {item_timeout!r}")
            size = 1
        refuse_on_loop(current(), name, f)
        return cls(
            f, pool, iterators, common_length(rows), common_shape(iterables), bool(distributed), size, on_error,
            checked_delays(retry_delays), retry_check, item_timeout,
        )  # fmt: skip

    def handling(self) -> tuple[Handler | None, Iterable[float], Check | None]:
        """What `Outcomes` wants to know."""
        return self.on_error, self.delays, self.retry_check

    def is_local(self, process: Process) -> bool:
        """Whether there is nobody but this process to do it."""
        return not self.distributed or (self.pool is None and process.membership.workers() == [process.pid])

    def threads(self, process: Process) -> int:
        return 1 if self.distributed else process.membership.nworkers()

    def run_here(self, process: Process, outcomes: Outcomes, supply: Supply) -> Generator[None, None, None]:
        """Without workers."""
        threads = self.threads(process)
        if threads == 1 and self.item_timeout is None:
            return iterate_here(process, self.f, zip(*self.iterators, strict=False), outcomes)
        return ThreadedMap(process, self.f, supply, outcomes, threads, self.item_timeout).run()

    def supply(self) -> Supply:
        if self.has_tuples():
            return Supply(zip(*self.iterators, strict=False), self.length)
        return Supply(self.iterators[0], self.length)

    def has_tuples(self) -> bool:
        """Whether an item is a tuple of arguments; in batches on workers a single argument needs none."""
        return self.batch_size != 0 or len(self.iterators) > 1 or not self.distributed

    def mapping(self, process: Process, outcomes: Outcomes, supply: Supply) -> Mapping:
        if self.pool is not None:
            crew: Crew = PoolCrew(process, self.pool)
        else:
            crew = Crew(process) if process.pid == DRIVER else IdleCrew(process)
        return Mapping(process, self.f, supply, outcomes, crew, self.batch_size, self.item_timeout, self.has_tuples())
