"""`broadcast`: a large read-only value, once per node.

::

    driver                     worker 2                worker 5, on another node         worker 6, on that node
    broadcast(value)           b.value                 b.value                           b.value
      pickled into a block ──► maps it, unpickles ───► copies it to its node once ─────► maps that copy
                               over it                 (in rounds, if it is pushed)

What travels is a handle, a few bytes. A push to several nodes is a tree: whoever has it serves one node more in each
round.

What this module does not know: how the pickle lies in the block (``runtime/pickled_blocks.py``), and who keeps a block
(``runtime/block_handle.py``).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final, Generic, TypeVar

from hybriddist.calls import remotecall
from hybriddist.errors import CompositeException, HybridDistError, SerializeError
from hybriddist.future import Future
from hybriddist.ids import as_pid
from hybriddist.runtime.current import current
from hybriddist.runtime.inquiry import member
from hybriddist.runtime.pickled_blocks import PickledBlock
from hybriddist.runtime.process import Process

T = TypeVar("T")

_MISSING: Final = object()


class Broadcast(PickledBlock, Generic[T]):
    """A value that every process of the cluster can have, and that is once in the memory of each node.

    Made by `broadcast`. Pass it on as an argument, in a closure, through a channel: that takes a few bytes. A process
    has one object for it, whatever way it came. The memory is freed when no process has the handle, or a view of an
    array in the value, any more; ``hd.finalize`` gives a handle up at once. It outlives the process that made it where
    another one has used it.
    """

    __slots__ = ("_value",)

    def _adopt(self, parts: tuple[Any, ...]) -> None:
        super()._adopt(parts)
        self._value: Any = _MISSING

    @property
    def value(self) -> T:
        """The value, as it was when `broadcast` was called: on each process the same object each time.

        Its arrays are read-only views of the shared memory, also on the process that made it, and keep that memory as
        long as they live. The rest (a list with arrays in it, say) is the process's own. The first access unpickles
        the value, which on the node that it comes from copies no array. On another node one process fetches the data,
        and the others map its copy; that blocks.

        Raises:
            InvalidStateException: the handle was given up.
            ProcessExitedException: no process that has the value can be reached.
            DeserializeError: the value cannot be unpickled here.
        """
        value: Any = self._value
        if value is _MISSING:
            if self._ended:
                self._map()  # raises
            value = self._load(own=False)
            with self._lock:
                if self._value is _MISSING:
                    self._value = value
                value = self._value
        return value  # type: ignore[no-any-return]

    def _end(self) -> None:
        super()._end()
        self._value = _MISSING

    def __repr__(self) -> str:
        if self._ended:
            return "<Broadcast, finalized>"
        return f"<Broadcast of {self._length} bytes, from process {self._origin.whence}>"


def broadcast(value: T, pids: int | Iterable[int] | None = None) -> Broadcast[T]:
    """Put a large value that nobody changes into shared memory, for all processes.

    The value is pickled once, and its arrays are copied once, into memory that all processes of the node map. What was
    passed in can be changed or dropped afterwards. Blocks for that copy; with ``pids`` until these have the value too.

    Where shared memory has no room for it there is one `RuntimeWarning` that says how to get more; the value then
    travels by a connection, once to each process that uses it.

    Args:
        value: anything that can be pickled, but nothing with references (futures, channels, shared arrays) in it. Worth
            while for large arrays, and for objects that hold them.
        pids: processes that get and unpickle the value now: one or several. By default each fetches it when it first
            uses `Broadcast.value`.

    Returns:
        The handle, to be passed on.

    Raises:
        SerializeError: the value cannot be pickled, or has references in it.
        NoSuchProcessError: one of ``pids`` is not there; nothing was sent.
        CompositeException: what went wrong on ``pids``, in their order; the others have the value.

    Example::

        table = hd.broadcast(np.random.rand(25_000_000))
        hd.pmap(lambda i: table.value[i::100].sum(), range(100))

    Source: none in Julia's Distributed; its users ask for it. Spark's ``broadcast``, Ray's ``put``.
    """
    process = current()
    receivers: list[int] = []
    if pids is not None:
        receivers = list(dict.fromkeys(as_pid(pid) for pid in ([pids] if isinstance(pids, int) else pids)))
        for pid in receivers:
            member(process, pid)
    encoded = process.references.encode_for_all(value, ("the value",))
    if encoded is None:
        raise SerializeError(
            "the value has references in it (a Future, a RemoteChannel, a shared array, another Broadcast), which each "
            "process needs for itself: broadcast what they refer to, or pass them as arguments"
        )
    handle: Broadcast[T] = Broadcast._with(process, *encoded, "a broadcast value")
    _push(process, handle, receivers)
    return handle


# ---- pushing --------------------------------------------------------------------------------------------------------


def _push(process: Process, handle: Broadcast[Any], pids: list[int]) -> None:
    """Have these processes map and unpickle it. First one of each node, in rounds; then all others.

    Raises:
        CompositeException: of the failures.
    """
    failures: dict[int, Exception] = {}
    have = [process.pid]
    left = _one_of_each_node(process, pids)
    leaders = set(left)
    while left:
        now, left = left[: len(have)], left[len(have) :]
        sources = dict(zip(now, have, strict=False))
        failures |= _receive_on(handle, sources)
        have += [pid for pid in now if pid not in failures]
    failures |= _receive_on(handle, {pid: 0 for pid in pids if pid not in leaders})
    if failures:
        raise CompositeException("broadcast failed", [failures[pid] for pid in pids if pid in failures])


def _one_of_each_node(process: Process, pids: list[int]) -> list[int]:
    """One process of each other node, the lowest: a node's first process is the one that makes its copy."""
    here = member(process, process.pid).node
    found: dict[Any, int] = {}
    for pid in sorted(pids):
        node = member(process, pid).node
        if node != here:
            found.setdefault(node, pid)
    return list(found.values())


def _receive_on(handle: Broadcast[Any], sources: dict[int, int]) -> dict[int, Exception]:
    """Push it to processes, each from its source; what went wrong, by pid."""
    failures: dict[int, Exception] = {}
    calls: dict[int, Future] = {}
    for pid, source in sources.items():
        try:
            calls[pid] = remotecall(_receive, pid, handle, source)
        except HybridDistError as error:
            failures[pid] = error
    for pid, call in calls.items():
        try:
            call.fetch()
        except HybridDistError as error:
            failures[pid] = error
    return failures


def _receive(handle: Broadcast[Any], source: int) -> None:
    """Runs on a process that is to have it."""
    handle._source = source
    handle.value  # noqa: B018  # unpickled now, and kept


__all__ = ["Broadcast", "broadcast"]
